"""Sizes in bytes as text, and checks of disk space before anything is written."""

import errno
import os
import re
import shutil
from pathlib import Path

from dim_jax.errors import InputError, check

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk that is full
GIB = 2**30
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": GIB, "TIB": 2**40}


def format_bytes(size: int) -> str:
    """Bytes as "6.98 GiB"."""
    power, number = 0, float(size)
    while number >= 1024 and power < len(UNITS) - 1:
        power, number = power + 1, number / 1024
    return f"{number:.0f} {UNITS[power]}" if number >= 100 else f"{number:.3g} {UNITS[power]}"


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as "16MiB" (2**20 bytes each) or "5GB" (10**9 bytes each); `option` is named in errors.

    Raises:
        InputError: it is not a size, or less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", text.strip(), re.IGNORECASE | re.ASCII)
    number = float(match[1]) if match else 0.0  # infinite, if it has hundreds of digits
    size = int(number * BYTES[match[2].upper()]) if match and number < 2.0**63 else 0
    check(size >= 1, f"{option} {text}: give a number above 0 with its unit, such as 16MiB or 5GB.")
    return size


def is_creatable(folder: Path) -> bool:
    """Whether an absolute folder exists or can be made, and files can be written to it."""
    nearest = _nearest_existing(folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def describe_os_error(error: OSError, folder: Path) -> str:
    """The reason of a failed write; with the free space if the disk is full."""
    reason = error.strerror or str(error)
    return f"{reason}; {format_bytes(free_bytes(folder))} are free" if error.errno == errno.ENOSPC else reason


def check_space(folder: Path, num_bytes: int, *, purpose: str, remedy: str) -> None:
    """Refuse to write more bytes than there is space for.

    Args:
        folder: to write to; it need not exist yet.
        num_bytes: to be written.
        purpose: what is to be written, for the error.
        remedy: what to do about it, as a sentence.

    Raises:
        InputError: the disk has less space.
    """
    free = free_bytes(folder)
    if num_bytes > free:
        raise InputError(f"{purpose}: no space in {folder} ({format_bytes(num_bytes)} are needed, {format_bytes(free)} are free). {remedy}")


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_nearest_existing(folder)).free


def _nearest_existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
