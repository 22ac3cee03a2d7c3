"""Paths that a user names: of this machine, or of Google Cloud Storage (gs://BUCKET/...), with the same methods.

Local ones are pathlib's, those of a bucket epath's (of etils), which reaches it through gcsfs. What needs a file of this machine (a mapped
one, a library that opens it itself) takes `local` for the life of a process, or a copy that stays (`local_cache`); whole outputs are
written by `dim_jax.storage.folders`.
"""

import atexit
import errno
import glob
import json
import os
import posixpath
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from etils import epath

from dim_jax.errors import InputError, require

AnyPath = Path | epath.Path
GS = "gs://"
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)  # a name that is too long may still be one in an archive
_EPath: Any = type(epath.Path())
_glob_of_epath = _EPath.glob


def _glob(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """epath takes the folder's name as a pattern too: in "runs/[lr=1e-3]" Orbax would find none of its files, and never merge them."""
    return _glob_of_epath(_EPath(glob.escape(os.fspath(folder))), pattern)


_EPath.glob = _glob


def as_path(path: str | os.PathLike) -> AnyPath:
    """The path that a user named.

    Raises:
        InputError: it is of another kind of storage, or its bucket cannot be reached.
    """
    text = os.fspath(path)
    if text.startswith(GS):
        storage(text)
        return epath.Path(text)
    if scheme := scheme_of(text):
        raise InputError(f'{text}: paths are of this machine, or of Google Cloud Storage ("{GS}BUCKET/..."), not {scheme}.')
    return Path(text)


def scheme_of(path: str | os.PathLike) -> str:
    """What an address begins with, such as "gs"; of a path of this machine nothing. A Path has lost the second slash."""
    found = re.match(r"(\w+):/", os.fspath(path))
    return found[1] if found else ""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is of a bucket."""
    return os.fspath(path).startswith(GS)


def absolute(path: AnyPath) -> AnyPath:
    """The path from its root, without following links."""
    return path if is_remote(path) else Path(os.path.abspath(path))


def resolved(path: AnyPath) -> AnyPath:
    """The path from its root, with links followed; a bucket has none."""
    return path.resolve() if isinstance(path, Path) else path


def size_of(path: AnyPath) -> int:
    """Bytes of a file."""
    return path.stat().st_size if isinstance(path, Path) else path.stat().length


def entries(folder: AnyPath, pattern: str = "*") -> list[AnyPath]:
    """What lies directly in a folder and has such a name, in order; nothing, if there is no such folder. In a bucket a `glob` would list
    all that lies below it as well."""
    try:
        return sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """The files in a folder, and in the folders in it, that have such a name, in order of their paths."""
    if isinstance(folder, Path):
        return sorted(folder.rglob(pattern))
    with storage_errors(folder):
        return sorted(epath.Path(GS + name) for name in storage(folder).find(os.fspath(folder)) if fnmatchcase(Path(name).name, pattern))


def within(folder: AnyPath, name: str) -> AnyPath:
    """The file that a data set names, from its folder; `..` in the middle is gone.

    Raises:
        InputError: the name is absolute, an address, or leads out of the folder, be it by links.
    """
    plain = posixpath.normpath(name.replace("\\", "/"))
    if "\0" in name or plain.startswith("/") or plain.split("/")[0] == ".." or re.match(r"[A-Za-z]:|\w[\w+.-]+:/", plain):
        raise InputError(f"{name!r} is no path within {folder}. Name files from that folder on, and put them there.")
    path = folder / (plain if "\\" not in name else name)
    if isinstance(path, Path):
        root, place = os.path.realpath(folder), os.path.realpath(path)
        if os.path.commonpath([root, place]) != root:
            raise InputError(f"{path}: is a link to {place}, out of {folder}. Put the file itself there.")
    return path


def local(path: AnyPath) -> Path:
    """The file or folder on this machine: a remote one is fetched once in this process, and removed at its end.

    Raises:
        InputError: it cannot be fetched.
    """
    return _fetched(os.fspath(path)) if is_remote(path) else Path(path)


@cache
def _fetched(path: str) -> Path:
    with storage_errors(path):
        names = storage(path).find(path)  # without "gs://"; the one name of a file
        if not names:
            raise InputError(f"{path}: there is no such file or folder. Check the address.")
        storage(path).get(names, [str(_copies() / name) for name in names])
    return _copies() / path.removeprefix(GS)


@cache
def _copies() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dim_jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_span(path: AnyPath, start: int, size: int) -> bytes:
    """`size` bytes of a file in a bucket, from `start`, by one request.

    Raises:
        InputError: they cannot be read.
    """
    with storage_errors(path):
        return storage(path).cat_file(os.fspath(path), start, start + size)


def read_if_there(path: AnyPath) -> bytes | None:
    """The bytes of a file, of a bucket by one request; None: there is no such file.

    Raises:
        InputError: it cannot be read, or is no ordinary file; or the bucket cannot be reached.
    """
    if isinstance(path, Path):
        try:
            with open_regular(path) as file:
                return file.read()
        except InputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in MISSING:
                return None
            raise
    with storage_errors(path):
        try:
            return storage(path).cat_file(os.fspath(path))
        except FileNotFoundError:
            return None


def read_json(path: AnyPath) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())  # in any encoding that JSON may have
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a JSON file ({error}). Restore it, or fetch it again.") from error


def open_regular(path: Path) -> BufferedReader:
    """An ordinary file, to read; others may have no end, or wait for a writer for ever.

    Raises:
        InputError: it cannot be opened, or is no ordinary file.
    """
    with unreadable(path):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return os.fdopen(file, "rb")
        os.close(file)
        raise OSError(errno.EINVAL, "it is a folder" if os.path.isdir(path) else "it is no ordinary file")


@contextmanager
def unreadable(path: str | os.PathLike) -> Iterator[None]:
    """Where a file of this machine cannot be read, one InputError that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{os.fspath(path)}: cannot be read ({reason}). Mend or replace it, or leave out what names it.") from error


def upload(source: Path, target: AnyPath) -> None:
    """Copy a file, or what is in a folder, to a bucket. Each file appears whole or not at all.

    Raises:
        InputError: the bucket cannot be written to.
    """
    names = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()] if source.is_dir() else [Path()]
    with storage_errors(target):
        storage(target).put([str(source / name) for name in names], [os.fspath(target / name) for name in names])


def move(source: AnyPath, target: AnyPath) -> None:
    """Move what is in a folder of a bucket to another one of it. The bucket does so by itself, file by file.

    Raises:
        InputError: the bucket cannot be written to.
    """
    files = storage(source)
    with storage_errors(target):
        for name in files.find(os.fspath(source)):
            files.cp_file(name, os.fspath(target).removeprefix(GS) + name.removeprefix(os.fspath(source).removeprefix(GS)))
        files.rm(os.fspath(source), recursive=True)


def storage(path: str | os.PathLike) -> Any:
    """The file system of a bucket's path, which epath takes too, for what epath cannot do. Its errors are those of `told`.

    Raises:
        InputError: the bucket cannot be reached.
    """
    return _opened(bucket_of(path), os.getpid())


def bucket_of(path: str | os.PathLike) -> str:
    """The name of a path's bucket."""
    return os.fspath(path).removeprefix(GS).split("/")[0]


@cache
def _opened(bucket: str, process: int) -> Any:
    """A process that was forked needs one of its own: the thread that sends requests is not in it."""
    require("gcsfs", extra="gcs", what=f"{GS}{bucket}")
    from fsspec import config, filesystem

    # Orbax writes past gcsfs, whose listings would be out of date.
    config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with storage_errors(f"{GS}{bucket}"):
        files: Any = filesystem("gcs", finalize_on_close=True)
        files.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    return files


@contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
    """Where a bucket fails, one InputError that says what to do."""
    import aiohttp
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (OSError, HttpError, GoogleAuthError, aiohttp.ClientError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{os.fspath(path)}: cannot be reached ({reason}). Check the name, the network, and who you are there: "
            "gcloud auth application-default login, or the service account of this machine."
        ) from error
