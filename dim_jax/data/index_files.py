"""The files that `dim index` writes: arrays by name, which appear whole or not at all, on this machine or in a bucket."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dim_jax.errors import InputError
from dim_jax.folders import new_file
from dim_jax.paths import AnyPath


def write_index(path: AnyPath, **arrays: np.ndarray) -> None:
    """Write a file, in place of another.

    Raises:
        InputError: it cannot be written.
    """
    with new_file(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


@contextmanager
def open_index(path: AnyPath) -> Iterator[Any]:
    """The arrays of a file, by name; whatever of them cannot be understood within the block is damage.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            yield file
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is damaged ({error}). Remove it, and index the source again (dim index).") from error
