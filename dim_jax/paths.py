"""Paths that a user names: of this machine, or of Google Cloud Storage (gs://BUCKET/...), with the same methods.

Local ones are pathlib's, those of a bucket epath's (of etils), which reaches it through gcsfs. What needs a file of this machine (a mapped
one, a library that opens it itself) takes `local`; whole outputs are written by `dim_jax.folders`.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from etils import epath

from dim_jax.errors import InputError, require

AnyPath = Path | epath.Path
GS = "gs://"


def as_path(path: str | os.PathLike) -> AnyPath:
    """The path that a user named.

    Raises:
        InputError: it is of another kind of storage, or its bucket cannot be reached.
    """
    text = os.fspath(path)
    if text.startswith(GS):
        _storage(text.removeprefix(GS).split("/")[0])
        return epath.Path(text)
    if scheme := re.match(r"(\w+):/", text):
        raise InputError(f'{text}: paths are of this machine, or of Google Cloud Storage ("{GS}BUCKET/..."), not {scheme[1]}.')
    return Path(text)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is of a bucket."""
    return os.fspath(path).startswith(GS)


def absolute(path: AnyPath) -> AnyPath:
    """The path from its root, without following links."""
    return path if is_remote(path) else Path(os.path.abspath(path))


def size_of(path: AnyPath) -> int:
    """Bytes of a file."""
    return path.stat().st_size if isinstance(path, Path) else path.stat().length


def local(path: AnyPath) -> Path:
    """The file or folder on this machine: a remote one is fetched once in this process, and removed at its end.

    Raises:
        InputError: it cannot be fetched.
    """
    return _fetched(os.fspath(path)) if is_remote(path) else Path(path)


@cache
def _fetched(path: str) -> Path:
    with _told(path):
        names = _files(path).find(path)  # without "gs://"; the one name of a file
        _files(path).get(names, [str(_copies() / name) for name in names])
    return _copies() / path.removeprefix(GS)


@cache
def _copies() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dim_jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_span(path: AnyPath, start: int, size: int) -> bytes:
    """`size` bytes of a file in a bucket, from `start`.

    Raises:
        InputError: they cannot be read.
    """
    with _told(path):
        return _files(path).cat_file(os.fspath(path), start, start + size)


def upload(source: Path, target: AnyPath) -> None:
    """Copy a file, or what is in a folder, to a bucket. Each file appears whole or not at all.

    Raises:
        InputError: the bucket cannot be written to.
    """
    names = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()] if source.is_dir() else [Path()]
    with _told(target):
        _files(target).put([str(source / name) for name in names], [os.fspath(target / name) for name in names])


def move(source: AnyPath, target: AnyPath) -> None:
    """Move what is in a folder of a bucket to another one of it. The bucket does so by itself, file by file.

    Raises:
        InputError: the bucket cannot be written to.
    """
    files = _files(source)
    with _told(target):
        for name in files.find(os.fspath(source)):
            files.cp_file(name, os.fspath(target).removeprefix(GS) + name.removeprefix(os.fspath(source).removeprefix(GS)))
        files.rm(os.fspath(source), recursive=True)


def _files(path: str | os.PathLike) -> Any:
    return _storage(os.fspath(path).removeprefix(GS).split("/")[0])


@cache
def _storage(bucket: str) -> Any:
    """The file system that epath takes too; its bucket can be listed."""
    require("gcsfs", extra="gcs", what=f"{GS}{bucket}")
    from fsspec import config, filesystem

    # Orbax writes past gcsfs, whose listings would be out of date.
    config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with _told(f"{GS}{bucket}"):
        files: Any = filesystem("gcs", finalize_on_close=True)
        files.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    return files


@contextmanager
def _told(path: str | os.PathLike) -> Iterator[None]:
    """Where a bucket fails, one error that says what to do."""
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
