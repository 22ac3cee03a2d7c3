"""Output folders and files that appear complete or not at all, on this machine and in a bucket.

A local output is written under a temporary name of its own beside the target, and renamed. A bucket has no rename: a folder is written on
this machine, uploaded under a temporary name and copied within the bucket; during the copy it has a file `UNFINISHED`. A file is uploaded
in one piece.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from etils import epath

from dim_jax.errors import InputError, check
from dim_jax.storage.disk import NO_SPACE, check_space, describe_os_error
from dim_jax.storage.locks import lock_output, remove, remove_stale
from dim_jax.storage.paths import AnyPath, absolute, creation_errors, is_remote, move, upload

REMEDY = "Free some space, or choose an output on another disk."
UNFINISHED = "unfinished"
PathT = TypeVar("PathT", Path, epath.Path)


def is_checkpoint(folder: AnyPath) -> bool:
    """Whether a folder holds tensors, directly or one level down: safetensors or Orbax."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors", "*/orbax.checkpoint"))


class Kind(NamedTuple):
    """A kind of output folder: its name in errors, and a test for it. Only a folder of the same kind is overwritten."""

    name: str
    matches: Callable[[AnyPath], bool]


CHECKPOINT = Kind("checkpoint folder", is_checkpoint)


@contextmanager
def new_folder(target: AnyPath, *, overwrite: bool = False, num_bytes: int = 0, kind: Kind = CHECKPOINT) -> Iterator[Path]:
    """An empty folder of this machine to write into. It becomes `target` at the end, and is removed after an error.

    Args:
        target: the folder to make; its parents are made as well.
        overwrite: replace an existing folder of this kind, once the new one is complete.
        num_bytes: that will be written; checked before anything is written.
        kind: what the folder will be.

    Raises:
        InputError: `target` exists (and may not be overwritten, or is of another kind), another run writes it, the disk is full, or
            the bucket cannot be reached.
    """
    target = absolute(target)
    with lock_output(target):
        _check_new(target, overwrite, kind)
        with _local_folder(target, num_bytes) if isinstance(target, Path) else _remote_folder(target, num_bytes) as scratch:
            yield scratch


@contextmanager
def new_remote_folder(target: epath.Path, *, overwrite: bool = False, kind: Kind = CHECKPOINT) -> Iterator[epath.Path]:
    """The same for several machines that write to one folder of a bucket. Only one of them calls this."""
    with lock_output(target):
        _check_new(target, overwrite, kind)
        staged = _sibling(target)
        with ExitStack() as failed:
            failed.callback(staged.rmtree, missing_ok=True)
            yield staged
            failed.pop_all()  # keep it from here on: if the move is interrupted, it is the only copy
        _replace(target, staged)


def check_name(folder: AnyPath) -> None:
    """Refuse a folder name in a bucket that gcsfs would read as a pattern, and so delete other folders too.

    Raises:
        InputError: names the characters.
    """
    if is_remote(folder) and (forbidden := sorted(set(re.findall(r"[*?\[#\x00-\x1f]", os.fspath(folder))))):
        raise InputError(
            f"{folder}: the name of an output folder in a bucket may not contain {' '.join(map(ascii, forbidden))}. Choose another name."
        )


def _check_new(target: AnyPath, overwrite: bool, kind: Kind) -> None:
    check_name(target)
    if target.exists() or (isinstance(target, Path) and target.is_symlink()):
        check(overwrite, f"{target} exists. Choose another output, or overwrite it (--overwrite).")
        if not _is_replaceable(target, kind):
            raise InputError(f"{target} is not a {kind.name}, so it is not overwritten. Remove it, or choose another output.")


def _is_replaceable(target: AnyPath, kind: Kind) -> bool:
    if not target.is_dir() or (isinstance(target, Path) and target.is_symlink()):
        return False
    return not any(target.iterdir()) or kind.matches(target) or (target / UNFINISHED).exists()


@contextmanager
def _local_folder(target: Path, num_bytes: int) -> Iterator[Path]:
    with ExitStack() as opened:
        with creation_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            check_space(target.parent, num_bytes, purpose=str(target), remedy=REMEDY)
            scratch = opened.enter_context(_scratch(target, Path.mkdir))
        with _disk_full_errors(target):
            yield scratch
            if os.path.lexists(target):
                old = _sibling(target, "old")
                target.rename(old)
                scratch.rename(target)
                shutil.rmtree(old)
            else:
                scratch.rename(target)


@contextmanager
def _remote_folder(target: epath.Path, num_bytes: int) -> Iterator[Path]:
    staged = _sibling(target)
    with tempfile.TemporaryDirectory(prefix="dim_jax-") as folder:
        check_space(
            Path(folder), num_bytes, purpose=f"{target}, which is put together on this machine", remedy="Free some space, or set TMPDIR."
        )
        scratch = Path(folder) / target.name
        scratch.mkdir()
        with _disk_full_errors(target):
            yield scratch
        upload(scratch, staged)
    _replace(target, staged)


def _sibling(target: PathT, ending: str = "partial") -> PathT:
    """A unique name beside `target`; not too long, if the name of `target` is not."""
    return target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.{ending}")


@contextmanager
def _scratch(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A file or folder beside `target`, for this writer alone; gone at the end, unless it was renamed.

    It is locked meanwhile. So an unlocked one is of a process that was killed; the next writer in that folder removes it.
    """
    remove_stale(target.parent.absolute())
    while True:
        scratch = _sibling(target)
        make(scratch)
        with suppress(FileNotFoundError):  # another process removed it as stale, before it was locked
            lock = os.open(scratch, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_SH)
            if scratch.exists():
                break
            os.close(lock)
    try:
        yield scratch
    finally:
        remove(scratch)
        os.close(lock)


def _replace(target: epath.Path, staged: epath.Path) -> None:
    """Move a complete folder of a bucket to `target`, in place of the one that may be there."""
    old = [path for path in target.iterdir() if path.name != UNFINISHED] if target.exists() else []
    (target / UNFINISHED).write_text(f"{staged}\n")
    for path in old:
        path.rmtree() if path.is_dir() else path.unlink()
    move(staged, target)
    (target / UNFINISHED).unlink()


@contextmanager
def upload_on_exit(folder: AnyPath) -> Iterator[Path]:
    """A folder of this machine for libraries that write files themselves: `folder`, which is made, or one whose files are uploaded to it at
    the end. Existing files stay.

    Raises:
        InputError: the bucket cannot be reached.
    """
    if isinstance(folder, Path):
        make_folder(folder)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="dim_jax-") as scratch:
            yield Path(scratch)
            upload(Path(scratch), folder)


def check_finished(folder: AnyPath) -> None:
    """Refuse a folder of a bucket whose copy is not finished.

    Raises:
        InputError: names the complete folder.
    """
    if is_remote(folder) and (folder / UNFINISHED).exists():
        staged = (folder / UNFINISHED).read_text().strip()
        raise InputError(f"{folder}: its copy was interrupted, or is still running. The complete folder is {staged}; move it here.")


def append(path: AnyPath, text: str) -> None:
    """Append text to a file, all of it or nothing. Buckets cannot append: there the whole file is written again.

    Raises:
        InputError: as `write_errors`.
    """
    if isinstance(path, Path):
        with write_errors(path), path.open("ab", buffering=0) as file:
            size, data = os.fstat(file.fileno()).st_size, text.encode(errors="backslashreplace")
            try:
                if file.write(data) < len(data):  # the disk had no space for all
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise
    else:
        path.write_text((path.read_text() if path.exists() else "") + text)


def check_file(path: AnyPath, *, overwrite: bool) -> None:
    """Refuse a path where no file may be written.

    Raises:
        InputError: its folder is missing or closed, or it exists and may not be overwritten.
    """
    if isinstance(path, Path):
        check(path.parent.is_dir(), f"{path}: the folder {path.parent} does not exist. Make it first, or choose another output.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise InputError(f"{path}: the folder {path.parent} is not writable. Change its permissions, or choose another output.")
    check(not path.exists() or path.is_file(), f"{path} is not a file, so it is not overwritten. Choose another output.")
    check(not path.exists() or overwrite, f"{path} exists. Choose another output, or overwrite it (--overwrite).")


@contextmanager
def new_file(path: AnyPath) -> Iterator[Path]:
    """A file of this machine to write to. It replaces `path` at the end, and is removed after an error.

    Raises:
        InputError: it cannot be written, such as on a full disk.
    """
    with write_errors(path):
        if isinstance(path, Path):
            with _scratch(path, Path.touch) as scratch:
                yield scratch
                scratch.replace(path)
        else:
            with tempfile.TemporaryDirectory(prefix="dim_jax-") as folder:
                yield Path(folder) / path.name
                upload(Path(folder) / path.name, path)


def write_text(path: AnyPath, text: str) -> None:
    """Write a text in UTF-8, a lone surrogate as its escape in JSON. Errors as in `new_file`."""
    with new_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: AnyPath, value: Any, *, indent: int | None = 1) -> None:
    """Write a value as JSON. Errors as in `new_file`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def make_folder(path: AnyPath) -> None:
    """Make a folder and its parents, unless it exists. Errors as in `write_errors`."""
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def write_errors(path: AnyPath) -> Iterator[None]:
    """Turn OSErrors of writing into one InputError that names the path and says what to do."""
    try:
        yield
    except OSError as error:
        reason = describe_os_error(error, path) if isinstance(path, Path) else error.strerror or error
        raise InputError(
            f"{path}: cannot be written ({reason}). Free some space there, make it writable, or choose another output."
        ) from error


@contextmanager
def _disk_full_errors(target: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (*NO_SPACE, errno.EROFS):
            raise
        raise InputError(f"{target}: no space ({error.strerror or 'the disk is full'}). Nothing was kept. {REMEDY}") from error
