"""Copies of a bucket's files, for libraries that open local files: one for all processes of a machine, kept from run to run.

    ~/.cache/dim_jax/buckets/BUCKET/data/emoji/pictures.array_record      a copy, under its name in the bucket
    ~/.cache/dim_jax/buckets/BUCKET/data/emoji/.pictures.array_record.of  which generation of it

Files of one folder in the bucket are in one folder here, so the copy of a file leads to the others.
"""

import os
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock

from dim_jax.errors import InputError, check
from dim_jax.storage.disk import NO_SPACE, check_space
from dim_jax.storage.folders import new_file
from dim_jax.storage.paths import GS, AnyPath, bucket_of, file_system, is_remote, storage_errors

CACHE_VARIABLE = "DIM_JAX_CACHE"


def cached_path(path: AnyPath) -> Path:
    """The file on this machine. For a bucket: a copy in the folder DIM_JAX_CACHE, by default ~/.cache/dim_jax/buckets.

    The first process that needs it fetches it. It is fetched again if the file in the bucket has changed; a process checks that once.

    Raises:
        InputError: there is no such file, it cannot be fetched, or there is no space for it.
    """
    return _cached_copy(os.fspath(path), cache_folder("buckets")) if is_remote(path) else Path(path)


def check_disk_space(paths: Sequence[AnyPath]) -> None:
    """Refuse files that there is no space for, before the first of them is fetched. Those of this machine need no space.

    Raises:
        InputError: one of them is missing, or there is too little space.
    """
    remote, missing = sorted(path for path in paths if is_remote(path)), dict[AnyPath, int]()
    for parent, files in groupby(remote, lambda path: path.parent):
        with storage_errors(parent):
            infos = {info["name"]: info for info in file_system(parent).ls(os.fspath(parent), detail=True)}
        for path in files:
            info = infos.get(os.fspath(path).removeprefix(GS))
            if info is None:
                raise InputError(f"{path}: no such file. Copy it there, or build it again.")
            if not _is_current(_copy_path(path, cache_folder("buckets")), _version(info)):
                missing[path] = info["size"]
    if missing:
        others = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        first = next(iter(missing))
        check_space(cache_folder("buckets"), sum(missing.values()), purpose=f"copies of {first}{others}", remedy=_remedy(first))


@cache
def _cached_copy(path: str, folder: Path) -> Path:
    with storage_errors(path):
        info = file_system(path).info(path)
    copy, version = _copy_path(path, folder), _version(info)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_sibling(copy, "lock")):
            if not _is_current(copy, version):
                _fetch(path, info["size"], copy, folder)
                _sibling(copy, "of").write_text(version)
    except OSError as error:
        raise InputError(
            f"{folder}: copies cannot be written there ({error.strerror}). Set another folder: {CACHE_VARIABLE}=FOLDER"
        ) from error
    return copy


def _fetch(path: str, size: int, copy: Path, folder: Path) -> None:
    with new_file(copy) as scratch:  # which also removes the partial copy of a killed process
        check_space(folder, size, purpose=f"a copy of {path}", remedy=_remedy(path))
        try:
            with storage_errors(path):
                file_system(path).get_file(path, os.fspath(scratch))
        except InputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE:
                raise InputError(f"a copy of {path}: no space in {folder} ({error.__cause__.strerror}). {_remedy(path)}") from error
            raise
        check(scratch.stat().st_size == size, f"{path}: changed while it was fetched. Start again.")


def _remedy(path: str | os.PathLike) -> str:
    mounted = f"mount the bucket (gcsfuse --implicit-dirs {bucket_of(path)} /mnt/data) and give the folder there"
    return f"Set a folder on another disk ({CACHE_VARIABLE}=FOLDER), or {mounted}."


def _is_current(copy: Path, version: str) -> bool:
    note = _sibling(copy, "of")
    return copy.is_file() and note.is_file() and note.read_text() == version


def _version(info: dict[str, Any]) -> str:
    """Changes with every write of the file."""
    return f"{info['generation']} {info['size']}"


def _copy_path(path: str | os.PathLike, folder: Path) -> Path:
    return folder / os.fspath(path).removeprefix(GS)


def _sibling(copy: Path, ending: str) -> Path:
    return copy.with_name(f".{copy.name}.{ending}")


def cache_folder(name: str = "") -> Path:
    """The folder DIM_JAX_CACHE, by default `name` in ~/.cache/dim_jax (XDG_CACHE_HOME stands for ~/.cache)."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(cache_home, "dim_jax", name)).absolute()
