"""Copies of a bucket's files, for what reads whole files of its own machine: one for all processes there, kept from run to run.

    ~/.cache/dim_jax/buckets/BUCKET/data/emoji/pictures.array_record      a copy, under its name in the bucket
    ~/.cache/dim_jax/buckets/BUCKET/data/emoji/.pictures.array_record.of  which generation of it

What lies beside each other in the bucket does so here, so the copy of a file leads to its folder.
"""

import os
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock

from dim_jax.errors import InputError
from dim_jax.storage.disk import NO_SPACE, check_space
from dim_jax.storage.folders import new_file
from dim_jax.storage.paths import GS, AnyPath, bucket_of, is_remote, storage, storage_errors

FOLDER = "DIM_JAX_CACHE"


def cached_path(path: AnyPath) -> Path:
    """The file on this machine; of a bucket, a copy in the folder that DIM_JAX_CACHE names, by default ~/.cache/dim_jax/buckets.

    It is fetched once, whichever process asks first, and anew where another file has taken its place in the bucket; what a process has, it
    does not ask for again.

    Raises:
        InputError: there is no such file, it cannot be fetched, or there is no space for it.
    """
    return _kept(os.fspath(path), _folder()) if is_remote(path) else Path(path)


def check_disk_space(paths: Sequence[AnyPath]) -> None:
    """Refuse files that cannot all be kept before the first of them is fetched. Those of this machine need no space.

    Raises:
        InputError: one of them is not there, or there is no space.
    """
    remote, missing = sorted(path for path in paths if is_remote(path)), dict[AnyPath, int]()
    for parent, files in groupby(remote, lambda path: path.parent):
        with storage_errors(parent):
            infos = {one["name"]: one for one in storage(parent).ls(os.fspath(parent), detail=True)}
        for path in files:
            info = infos.get(os.fspath(path).removeprefix(GS))
            if info is None:
                raise InputError(f"{path}: no such file. Copy it there, or build it again.")
            if not _is_kept(_place(path, _folder()), _version(info)):
                missing[path] = info["size"]
    if missing:
        others = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        first = next(iter(missing))
        check_space(_folder(), sum(missing.values()), what=f"copies of {first}{others}", remedy=_remedy(first))


@cache
def _kept(path: str, folder: Path) -> Path:
    with storage_errors(path):
        info = storage(path).info(path)
    copy, version = _place(path, folder), _version(info)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_beside(copy, "lock")):
            if not _is_kept(copy, version):
                _fetch(path, info["size"], copy, folder)
                _beside(copy, "of").write_text(version)
    except OSError as error:
        raise InputError(f"{folder}: nothing can be kept there ({error.strerror}). Name another folder: {FOLDER}=FOLDER") from error
    return copy


def _fetch(path: str, size: int, copy: Path, folder: Path) -> None:
    with new_file(copy) as scratch:  # which removes what a process that was killed left of it
        check_space(folder, size, what=f"a copy of {path}", remedy=_remedy(path))
        try:
            with storage_errors(path):
                storage(path).get_file(path, os.fspath(scratch))
        except InputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE:
                raise InputError(f"a copy of {path}: no space in {folder} ({error.__cause__.strerror}). {_remedy(path)}") from error
            raise
        if scratch.stat().st_size != size:
            raise InputError(f"{path}: was written anew while it was fetched. Start again.")


def _remedy(path: str | os.PathLike) -> str:
    mounted = f"mount the bucket (gcsfuse --implicit-dirs {bucket_of(path)} /mnt/data) and name the folder there"
    return f"Name a folder on another disk ({FOLDER}=FOLDER), or {mounted}."


def _is_kept(copy: Path, version: str) -> bool:
    note = _beside(copy, "of")
    return copy.is_file() and note.is_file() and note.read_text() == version


def _version(info: dict[str, Any]) -> str:
    """What changes with every writing of a file."""
    return f"{info['generation']} {info['size']}"


def _place(path: str | os.PathLike, folder: Path) -> Path:
    return folder / os.fspath(path).removeprefix(GS)


def _beside(copy: Path, ending: str) -> Path:
    return copy.with_name(f".{copy.name}.{ending}")


def _folder() -> Path:
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(FOLDER) or Path(own) / "dim_jax/buckets").absolute()
