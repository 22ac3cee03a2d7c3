"""Variables of the environment that libraries read as they are imported, where an error would be theirs. Imports `errors` alone."""

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from dim_jax.errors import InputError

# Of the hub's library, which others use as well.
READERS: dict[str, Callable[[str], Any]] = {
    "HF_ENDPOINT": lambda address: urlsplit(address).port,
    "HF_HUB_DOWNLOAD_TIMEOUT": int,
    "HF_HUB_ETAG_TIMEOUT": int,
}


def check_environment() -> None:
    """Refuse variables that a library could not read.

    Raises:
        InputError: names the variable.
    """
    for name, read in READERS.items():
        try:
            read(os.environ.get(name) or "0")
        except ValueError as error:
            raise InputError(f"{name} is {os.environ[name]!r}, which cannot be read ({error}). Mend or unset it.") from error
