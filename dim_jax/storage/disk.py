"""Bytes in words, and room for them on a disk, which is asked before anything is written."""

import errno
import os
import re
import shutil
from pathlib import Path

from dim_jax.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk that is full
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def format_bytes(size: int) -> str:
    """Bytes as "6.98 GiB"."""
    power, number = 0, float(size)
    while number >= 1024 and power < len(UNITS) - 1:
        power, number = power + 1, number / 1024
    return f"{number:.0f} {UNITS[power]}" if number >= 100 else f"{number:.3g} {UNITS[power]}"


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as "16MiB" (2**20 bytes each) or "5GB" (10**9 bytes each); `option` is who asks for it.

    Raises:
        InputError: it is none, or less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(float(match[1]) * BYTES[match[2].upper()]) if match else 0
    if size < 1:
        raise InputError(f"{option} {text}: give a number above 0 with its unit, such as 16MiB or 5GB.")
    return size


def may_be_made(folder: Path) -> bool:
    """Whether an absolute folder is there, or can be made, and files can be written to it."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def refusal(error: OSError, place: Path) -> str:
    """Why a file system takes no more, with what is free where it is full."""
    reason = error.strerror or str(error)
    return f"{reason}; {format_bytes(_free(place))} are free" if error.errno == errno.ENOSPC else reason


def check_space(place: Path, needs: int, *, what: str, remedy: str) -> None:
    """Refuse to write more bytes than there is room for.

    Args:
        place: the folder that they are to be written in, which need not be there yet.
        needs: how many.
        what: they are, for the error.
        remedy: what to do about it, as a sentence.

    Raises:
        InputError: the disk has less room.
    """
    free = _free(place)
    if needs > free:
        raise InputError(f"{what}: no space in {place} ({format_bytes(needs)} are needed, {format_bytes(free)} are free). {remedy}")


def _free(place: Path) -> int:
    return shutil.disk_usage(next(folder for folder in (place, *place.absolute().parents) if folder.exists())).free
