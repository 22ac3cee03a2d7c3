"""Running out of a device's memory, as an error that says what to do; before it happens, where the parameters alone are too large."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax

from dim_jax.errors import InputError
from dim_jax.storage.disk import GIB


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


def check_memory(name: str, part_bytes: Callable[[], Mapping[str, int]], *, offload: bool) -> None:
    """Refuse parameters that do not fit into the memory of the default device: of all parts together, or with `offload` of each alone. A
    device that does not say how much it has, as a CPU, takes all.

    Raises:
        InputError: they do not fit; it has the size of each part.
    """
    device = jax.config.jax_default_device or jax.local_devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return
    sizes = part_bytes()
    needed = max(sizes.values()) if offload else sum(sizes.values())
    if needed <= limit:
        return
    parts = ", ".join(f"{part} {size / GIB:.1f}" for part, size in sizes.items())
    options = "--quantize int4, or int8" if offload else "--offload (one part at a time), --quantize int8 or int4"
    raise InputError(
        f"{name}: its parameters take {needed / GIB:.1f} GiB ({parts}), but JAX may use {limit / GIB:.1f} GiB of this device. Take "
        f"{options}, --dtype bfloat16, or raise XLA_PYTHON_CLIENT_MEM_FRACTION."
    )
