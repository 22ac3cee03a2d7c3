"""Output folders and files that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dim_jax.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GIB = 2**30


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds tensors, directly or one level down: safetensors or Orbax."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors", "*/orbax.checkpoint"))


class Kind(NamedTuple):
    """What a folder is for: its name in errors, and how one is recognized. Only a folder of the same kind is overwritten."""

    name: str
    fits: Callable[[Path], bool]


CHECKPOINT = Kind("checkpoint folder", is_checkpoint)


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False, needs: int = 0, kind: Kind = CHECKPOINT) -> Iterator[Path]:
    """An empty folder beside `target` to write into; renamed to `target` at the end, removed if anything goes wrong.

    Args:
        target: the folder to make; its parents are made as well.
        overwrite: replace a folder of this kind that is already there, once the new one is whole.
        needs: bytes that will be written; less free space than that is an error before anything is written.
        kind: what the folder will be.

    Raises:
        InputError: `target` exists (and may not be overwritten, or is of another kind), or the disk is full.
    """
    target = Path(os.path.abspath(target))
    if os.path.lexists(target):
        if not overwrite:
            raise InputError(f"{target} exists. Choose another output, or overwrite it (--overwrite).")
        if not target.is_dir() or target.is_symlink() or (any(target.iterdir()) and not kind.fits(target)):
            raise InputError(f"{target} is no {kind.name}, so it is not overwritten. Remove it, or choose another output.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needs > free:
            raise InputError(_full(target, f"{needs / GIB:.2f} GiB are needed, {free / GIB:.2f} GiB are free"))
        scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    except OSError as error:
        raise InputError(f"{target}: cannot be made ({error.strerror}). Choose an output folder that you may write to.") from error
    try:
        yield scratch
        if os.path.lexists(target):
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise InputError(_full(target, error.strerror or "the disk is full")) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_file(path: Path, *, overwrite: bool) -> None:
    """Refuses a path where no file may be written.

    Raises:
        InputError: its folder is missing or closed, or it exists and may not be overwritten.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist. Make it first, or choose another output.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: nothing may be written to the folder {path.parent}. Change its permissions, or choose another output.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file that could be overwritten. Choose another output.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists. Choose another output, or overwrite it (--overwrite).")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to `path` at the end, which replaces what was there, and removed if anything goes wrong.

    Raises:
        InputError: it cannot be written, such as on a full disk.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield scratch
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}). Free some space or choose another output.") from error
    finally:
        scratch.unlink(missing_ok=True)


def _full(target: Path, why: str) -> str:
    return f"{target}: no space ({why}). Nothing was kept; free some space or choose an output on another disk."
