"""Paths of this machine and of Google Cloud Storage (gs://BUCKET/...), with the same methods.

Local paths are pathlib's. Those of a bucket are epath's (etils), which uses gcsfs. Code that needs a file on this machine (to map it, or
for a library that opens it) calls `local_path`, whose copy lasts as long as the process, or `local_cache`, whose copy stays.
`dim_jax.storage.folders` writes outputs.
"""

import atexit
import errno
import glob
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

from dim_jax.errors import InputError, check, first_line, require_packages
from dim_jax.storage.jsonl import json_loads

AnyPath = Path | epath.Path
GS = "gs://"
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)  # too long a name for a file may still be a member of an archive
_EPath: Any = type(epath.Path())
_glob_of_epath = _EPath.glob


def _glob(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Escapes the folder's name, which epath reads as a pattern too: in "runs/[lr=1e-3]" Orbax would find no files to merge."""
    return _glob_of_epath(_EPath(glob.escape(os.fspath(folder))), pattern)


_EPath.glob = _glob


def as_path(path: str | os.PathLike) -> AnyPath:
    """The path that a user gave.

    Raises:
        InputError: it is of another kind of storage, or the bucket cannot be reached.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(f"{text!r}: a path has no null character. Correct it.")
    if text.startswith(GS):
        file_system(text)
        return epath.Path(text)
    if scheme := scheme_of(text):
        raise InputError(f'{text}: {scheme} is not supported. Give a path of this machine, or of Google Cloud Storage ("{GS}BUCKET/...").')
    return Path(text)


def scheme_of(path: str | os.PathLike) -> str:
    """The scheme of an address, such as "gs"; "" for a path of this machine. (A Path has only one slash after it.)"""
    match = re.match(r"(\w+):/", os.fspath(path))
    return match[1] if match else ""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(GS)


def absolute(path: AnyPath) -> AnyPath:
    """The absolute path; links are not followed."""
    return path if is_remote(path) else Path(os.path.abspath(path))


def resolve(path: AnyPath) -> AnyPath:
    """The absolute path with links followed, as far as they lead somewhere; a bucket has none."""
    return Path(os.path.realpath(path)) if isinstance(path, Path) else path  # `resolve` raises for links in circles


def file_size(path: AnyPath) -> int:
    """Size of a file in bytes."""
    return path.stat().st_size if isinstance(path, Path) else path.stat().length


def entries(folder: AnyPath, pattern: str = "*") -> list[AnyPath]:
    """The files and folders directly in a folder that match a pattern, in order; none if there is no such folder. (In a bucket `glob` would
    list everything below as well.)"""
    try:
        return sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """The files below a folder whose names match a pattern, in order of their paths."""
    if isinstance(folder, Path):
        return sorted(folder.rglob(pattern))
    with storage_errors(folder):
        return sorted(
            epath.Path(GS + name) for name in file_system(folder).find(os.fspath(folder)) if fnmatchcase(Path(name).name, pattern)
        )


def resolve_within(folder: AnyPath, name: str) -> AnyPath:
    """The file that a data set names relative to its folder; a `..` in the middle is resolved.

    Raises:
        InputError: the name is absolute, an address, or leads out of the folder, perhaps by a link.
    """
    plain = posixpath.normpath(name.replace("\\", "/"))
    if "\0" in name or plain.startswith("/") or plain.split("/")[0] == ".." or re.match(r"[A-Za-z]:|\w[\w+.-]+:/", plain):
        raise InputError(f"{name!r} is not a path within {folder}. Put the file there, and give its name relative to that folder.")
    path = folder / (plain if "\\" not in name else name)
    if isinstance(path, Path):
        root, target = os.path.realpath(folder), os.path.realpath(path)
        check(os.path.commonpath([root, target]) == root, f"{path}: is a link to {target}, outside of {folder}. Put the file itself there.")
    return path


def local_path(path: AnyPath) -> Path:
    """The file or folder on this machine. A remote one is fetched once by this process, and removed when the process ends.

    Raises:
        InputError: it cannot be fetched.
    """
    return _fetch(os.fspath(path)) if is_remote(path) else Path(path)


@cache
def _fetch(path: str) -> Path:
    with storage_errors(path):
        names = file_system(path).find(path)  # without "gs://"; the one name of a file
        check(names, f"{path}: there is no such file or folder. Check the address.")
        file_system(path).get(names, [str(_copies_folder() / name) for name in names])
    return _copies_folder() / path.removeprefix(GS)


@cache
def _copies_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dim_jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_range(path: AnyPath, start: int, size: int) -> bytes:
    """`size` bytes of a file in a bucket, from `start`, by one request.

    Raises:
        InputError: they cannot be read.
    """
    with storage_errors(path):
        return file_system(path).cat_file(os.fspath(path), start, start + size)


def read_if_exists(path: AnyPath) -> bytes | None:
    """The bytes of a file (in a bucket by one request); None: there is no such file.

    Raises:
        InputError: it cannot be read, is not an ordinary file, or the bucket cannot be reached.
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
            return file_system(path).cat_file(os.fspath(path))
        except FileNotFoundError:
            return None


def read_json(path: AnyPath) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json_loads(path.read_bytes())  # in any encoding of JSON
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions.") from error
    except ValueError as error:
        raise InputError(f"{path}: is not a JSON file ({error}). Restore it, or fetch it again.") from error


def read_object(path: AnyPath) -> dict[str, Any]:
    """The same of a file that holds an object."""
    value = read_json(path)
    check(isinstance(value, dict), f"{path}: is not a JSON object. Restore it, or fetch it again.")
    return value


def open_regular(path: Path) -> BufferedReader:
    """Open an ordinary file to read. Others may have no end, or wait for a writer for ever.

    Raises:
        InputError: it cannot be opened, or is not an ordinary file.
    """
    with read_errors(path):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return os.fdopen(file, "rb")
        os.close(file)
        raise OSError(errno.EINVAL, "it is a folder" if os.path.isdir(path) else "it is not an ordinary file")


@contextmanager
def read_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn OSErrors of reading a file of this machine into one InputError that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{os.fspath(path)}: cannot be read ({reason}). Repair or replace it, or remove the entry that names it."
        ) from error


@contextmanager
def creation_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn OSErrors of making a file or folder of this machine into one InputError that names it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be made ({error.strerror}). Choose an output folder that you may write to.") from error


def upload(source: Path, target: AnyPath) -> None:
    """Copy a file, or the content of a folder, to a bucket. Each file appears complete or not at all.

    Raises:
        InputError: the bucket cannot be written to.
    """
    names = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()] if source.is_dir() else [Path()]
    with storage_errors(target):
        file_system(target).put([str(source / name) for name in names], [os.fspath(target / name) for name in names])


def move(source: AnyPath, target: AnyPath) -> None:
    """Move the content of a folder to another folder of the same bucket. The bucket does it, file by file.

    Raises:
        InputError: the bucket cannot be written to.
    """
    files = file_system(source)
    with storage_errors(target):
        for name in files.find(os.fspath(source)):
            files.cp_file(name, os.fspath(target).removeprefix(GS) + name.removeprefix(os.fspath(source).removeprefix(GS)))
        files.rm(os.fspath(source), recursive=True)


def file_system(path: str | os.PathLike) -> Any:
    """The file system of a bucket (the one that epath uses), for what epath cannot do. `storage_errors` translates its errors.

    Raises:
        InputError: the bucket cannot be reached.
    """
    return _open_file_system(bucket_of(path), os.getpid())


def bucket_of(path: str | os.PathLike) -> str:
    """The bucket of a path."""
    return os.fspath(path).removeprefix(GS).split("/")[0]


@cache
def _open_file_system(bucket: str, process: int) -> Any:
    """One for each process: a forked process lacks the thread that sends requests."""
    require_packages("gcsfs", extra="gcs", feature=f"{GS}{bucket}")
    from fsspec import config, filesystem

    # Orbax writes without gcsfs, whose cached listings would be out of date.
    config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with storage_errors(f"{GS}{bucket}"):
        files: Any = filesystem("gcs", finalize_on_close=True)
        files.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    return files


@contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn errors of a bucket into one InputError that says what to do."""
    import aiohttp
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (OSError, HttpError, GoogleAuthError, aiohttp.ClientError) as error:
        reason = first_line(error)
        raise InputError(
            f"{os.fspath(path)}: cannot be reached ({reason}). Check the name, the network, and your account: "
            "gcloud auth application-default login, or the service account of this machine."
        ) from error
