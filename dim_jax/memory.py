"""Running out of a device's memory, as an error that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from dim_jax.errors import InputError


@contextmanager
def memory_errors(operation: str, remedy: str) -> Iterator[None]:
    """Within it, running out of memory is an `InputError`: `operation` takes more than there is; `remedy` is a sentence."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        # What XLA says on accelerators, and on the CPU.
        if isinstance(error, jax.errors.JaxRuntimeError) and not re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
            raise
        reason = next(iter(str(error).splitlines()), "out of memory").rstrip(".")
        raise InputError(f"{operation} takes more memory than this device has ({reason}). {remedy}") from error
