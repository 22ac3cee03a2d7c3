"""Copying, comparing and checking large arrays on the host, in chunks that fit a processor's cache."""

import math
import os
import tempfile
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np

TILE = 128  # elements: a tile of rows of one layout and columns of the other stays in cache
CHUNK = 2**18  # elements
LARGE = 2**28  # bytes


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, cast to its dtype; several times faster than numpy where the order of the axes differs."""
    if target.ndim < 2 or source.flags.c_contiguous or source.size < TILE * TILE:
        np.copyto(target, source, casting="unsafe")
        return
    a, b = sorted(np.argsort(target.shape)[-2:])  # the two largest axes
    index = [slice(None)] * target.ndim
    for i, j in product(range(0, target.shape[a], TILE), range(0, target.shape[b], 8 * TILE)):
        index[a], index[b] = slice(i, i + TILE), slice(j, j + 8 * TILE)
        np.copyto(target[tuple(index)], source[tuple(index)], casting="unsafe")


def empty(shape: tuple[int, ...], dtype: np.dtype, scratch: Path | None = None) -> np.ndarray:
    """An uninitialised array; a large one is mapped to a nameless file in the folder `scratch`, to save memory.

    Raises:
        OSError: the disk is full.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if scratch is None or size < LARGE:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=scratch) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # otherwise a write to a mapped page on a full disk would kill the process
        return np.memmap(file, dtype, "r+", shape=shape)


def contiguous(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """The same values in C order (and another dtype): the array itself if nothing changes."""
    dtype = np.dtype(dtype or array.dtype)
    if array.flags.c_contiguous and array.dtype == dtype:
        return array
    copy = np.empty(array.shape, dtype)
    copy_into(copy, array)
    return copy


def is_finite(array: np.ndarray) -> bool:
    """Whether no element is infinite or NaN."""
    flat = array.reshape(-1)
    for i in range(0, len(flat), CHUNK):
        chunk = flat[i : i + CHUNK]
        if chunk.dtype == ml_dtypes.bfloat16:  # its own isfinite is slow: all exponent bits set means infinite or NaN
            if ((chunk.view(np.uint16) & 0x7F80) == 0x7F80).any():
                return False
        elif not np.isfinite(chunk).all():
            return False
    return True


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays in C order have the same shape, dtype and bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    x, y = (array.reshape(-1).view(np.uint8) for array in (a, b))
    return all(np.array_equal(x[i : i + CHUNK], y[i : i + CHUNK]) for i in range(0, len(x), CHUNK))
