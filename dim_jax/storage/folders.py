"""Output folders and files that appear whole or not at all, on this machine and in a bucket.

A local one is written under a temporary name beside its place, which no other writer has, and renamed. A bucket has no rename: there a
folder is written to this machine, uploaded under a temporary name and copied from it within the bucket, and while that lasts a file
`UNFINISHED` lies in it; a file is uploaded in one piece.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from etils import epath

from dim_jax.errors import InputError
from dim_jax.storage.disk import NO_SPACE, check_space, refusal
from dim_jax.storage.locks import lock_output
from dim_jax.storage.paths import AnyPath, absolute, is_remote, move, upload

REMEDY = "Free some space, or choose an output on another disk."
UNFINISHED = "unfinished"
SCRATCH = re.compile(r"\..*\.[0-9a-f]{16}\.partial")
PathT = TypeVar("PathT", Path, epath.Path)


def is_checkpoint(folder: AnyPath) -> bool:
    """Whether a folder holds tensors, directly or one level down: safetensors or Orbax."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors", "*/orbax.checkpoint"))


class Kind(NamedTuple):
    """What a folder is for: its name in errors, and how one is recognized. Only a folder of the same kind is overwritten."""

    name: str
    fits: Callable[[AnyPath], bool]


CHECKPOINT = Kind("checkpoint folder", is_checkpoint)


@contextmanager
def new_folder(target: AnyPath, *, overwrite: bool = False, needs: int = 0, kind: Kind = CHECKPOINT) -> Iterator[Path]:
    """An empty folder of this machine to write into, which becomes `target` at the end, and is removed if anything goes wrong.

    Args:
        target: the folder to make; its parents are made as well.
        overwrite: replace a folder of this kind that is already there, once the new one is whole.
        needs: bytes that will be written; less free space than that is an error before anything is written.
        kind: what the folder will be.

    Raises:
        InputError: `target` exists (and may not be overwritten, or is of another kind), another run makes it, the disk is full, or
            a bucket is out of reach.
    """
    target = absolute(target)
    with lock_output(target):
        _check_new(target, overwrite, kind)
        with _local_folder(target, needs) if isinstance(target, Path) else _remote_folder(target, needs) as scratch:
            yield scratch


@contextmanager
def new_remote_folder(target: epath.Path, *, overwrite: bool = False, kind: Kind = CHECKPOINT) -> Iterator[epath.Path]:
    """The same of a bucket, but written to there: for what several machines write together. Only one of them opens it."""
    with lock_output(target):
        _check_new(target, overwrite, kind)
        whole = _beside(target)
        with ExitStack() as failed:
            failed.callback(whole.rmtree, missing_ok=True)
            yield whole
            failed.pop_all()  # from here on it is not removed: where moving it is cut off, it is all there is
        _replace(target, whole)


def check_name(folder: AnyPath) -> None:
    """Refuse a folder of a bucket that gcsfs would take for a pattern, and remove others with it.

    Raises:
        InputError: naming the characters.
    """
    if is_remote(folder) and (found := sorted(set(re.findall(r"[*?\[#\x00-\x1f]", os.fspath(folder))))):
        raise InputError(f"{folder}: folders that are written in a bucket may not have {' '.join(map(ascii, found))}. Choose another name.")


def _check_new(target: AnyPath, overwrite: bool, kind: Kind) -> None:
    check_name(target)
    if target.exists() or (isinstance(target, Path) and target.is_symlink()):
        if not overwrite:
            raise InputError(f"{target} exists. Choose another output, or overwrite it (--overwrite).")
        if not _may_be_replaced(target, kind):
            raise InputError(f"{target} is no {kind.name}, so it is not overwritten. Remove it, or choose another output.")


def _may_be_replaced(target: AnyPath, kind: Kind) -> bool:
    if not target.is_dir() or (isinstance(target, Path) and target.is_symlink()):
        return False
    return not any(target.iterdir()) or kind.fits(target) or (target / UNFINISHED).exists()


@contextmanager
def _local_folder(target: Path, needs: int) -> Iterator[Path]:
    with ExitStack() as opened:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            check_space(target.parent, needs, what=str(target), remedy=REMEDY)
            scratch = opened.enter_context(_scratch(target, Path.mkdir))
        except OSError as error:
            raise InputError(f"{target}: cannot be made ({error.strerror}). Choose an output folder that you may write to.") from error
        with _no_full_disk(target):
            yield scratch
            if os.path.lexists(target):
                old = _beside(target, "old")
                target.rename(old)
                scratch.rename(target)
                shutil.rmtree(old)
            else:
                scratch.rename(target)


@contextmanager
def _remote_folder(target: epath.Path, needs: int) -> Iterator[Path]:
    whole = _beside(target)
    with tempfile.TemporaryDirectory(prefix="dim_jax-") as folder:
        check_space(Path(folder), needs, what=f"{target}, which is put together on this machine", remedy="Free some space, or set TMPDIR.")
        scratch = Path(folder) / target.name
        scratch.mkdir()
        with _no_full_disk(target):
            yield scratch
        upload(scratch, whole)
    _replace(target, whole)


def _beside(target: PathT, ending: str = "partial") -> PathT:
    """A name beside `target` that nobody else takes, however many write to it at once, and that is not too long where its own is not."""
    return target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.{ending}")


@contextmanager
def _scratch(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A file or folder beside `target`, for this writer alone; gone at the end, unless it was renamed.

    It is locked meanwhile, so what is not locked was left by a process that was killed, and is removed by the next one that writes there.
    """
    with suppress(OSError):  # a folder that may not be listed
        _remove_left(target.parent.absolute())
    while True:
        scratch = _beside(target)
        make(scratch)
        with suppress(FileNotFoundError):  # another process took it for left, before it was locked
            lock = os.open(scratch, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_SH)
            if scratch.exists():
                break
            os.close(lock)
    try:
        yield scratch
    finally:
        _remove(scratch)
        os.close(lock)


@lru_cache(4096)
def _remove_left(folder: Path) -> None:
    """Once a process and folder: it may have many entries."""
    for left in folder.iterdir():
        if SCRATCH.fullmatch(left.name):
            with suppress(OSError):  # it is locked, gone, somebody else's, or of a file system without locks
                lock = os.open(left, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(left)
                finally:
                    os.close(lock)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _replace(target: epath.Path, whole: epath.Path) -> None:
    """Move a whole folder of a bucket to its place, where another may be."""
    old = [path for path in target.iterdir() if path.name != UNFINISHED] if target.exists() else []
    (target / UNFINISHED).write_text(f"{whole}\n")
    for path in old:
        path.rmtree() if path.is_dir() else path.unlink()
    move(whole, target)
    (target / UNFINISHED).unlink()


@contextmanager
def filled(folder: AnyPath) -> Iterator[Path]:
    """A folder of this machine to put files in, for libraries that write where they are told: `folder`, which is made, or one whose files
    are uploaded to it at the end. What lies there stays.

    Raises:
        InputError: the bucket is out of reach.
    """
    if isinstance(folder, Path):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="dim_jax-") as scratch:
            yield Path(scratch)
            upload(Path(scratch), folder)


def check_finished(folder: AnyPath) -> None:
    """Refuse a folder of a bucket that was not yet, or never, copied to its end.

    Raises:
        InputError: naming where the whole folder is.
    """
    if is_remote(folder) and (folder / UNFINISHED).exists():
        whole = (folder / UNFINISHED).read_text().strip()
        raise InputError(f"{folder}: its copying was cut off, or is still going on. The whole folder is {whole}; move it here.")


def append(path: AnyPath, text: str) -> None:
    """Add text to a file's end, all of it or nothing. A bucket cannot do that: there the file is read and written anew, in one piece.

    Raises:
        InputError: as `writing`.
    """
    if isinstance(path, Path):
        with writing(path), path.open("ab", buffering=0) as file:
            size, data = os.fstat(file.fileno()).st_size, text.encode(errors="backslashreplace")
            try:
                if file.write(data) < len(data):  # what a disk had room for
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise
    else:
        path.write_text((path.read_text() if path.exists() else "") + text)


def check_file(path: AnyPath, *, overwrite: bool) -> None:
    """Refuses a path where no file may be written.

    Raises:
        InputError: its folder is missing or closed, or it exists and may not be overwritten.
    """
    if isinstance(path, Path):
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist. Make it first, or choose another output.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise InputError(
                f"{path}: nothing may be written to the folder {path.parent}. Change its permissions, or choose another output."
            )
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file that could be overwritten. Choose another output.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists. Choose another output, or overwrite it (--overwrite).")


@contextmanager
def new_file(path: AnyPath) -> Iterator[Path]:
    """A name on this machine to write to, which becomes `path` at the end, replacing what was there; removed if anything goes wrong.

    Raises:
        InputError: it cannot be written, such as on a full disk.
    """
    with writing(path):
        if isinstance(path, Path):
            with _scratch(path, Path.touch) as scratch:
                yield scratch
                scratch.replace(path)
        else:
            with tempfile.TemporaryDirectory(prefix="dim_jax-") as folder:
                yield Path(folder) / path.name
                upload(Path(folder) / path.name, path)


@contextmanager
def writing(place: AnyPath) -> Iterator[None]:
    """Where a file system refuses what is done within it, one InputError that names the place and says what to do."""
    try:
        yield
    except OSError as error:
        reason = refusal(error, place) if isinstance(place, Path) else error.strerror or error
        raise InputError(
            f"{place}: cannot be written ({reason}). Free some space there, make it writable, or choose another output."
        ) from error


@contextmanager
def _no_full_disk(target: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (*NO_SPACE, errno.EROFS):
            raise
        raise InputError(f"{target}: no space ({error.strerror or 'the disk is full'}). Nothing was kept. {REMEDY}") from error
