"""Finds the picture of an image_path: at a URL, in a table, in a folder or in an archive, by the `place` of a rule."""

import csv
import os
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dim_jax.datasets.construction.ledger import MissingKeys
from dim_jax.datasets.construction.sources import LazyImage, read_picture
from dim_jax.errors import InputError, check, require_packages
from dim_jax.storage.paths import resolve_within

ROWS = 256  # of a table, read at once


class LocatedPicture(NamedTuple):
    """The picture of a key: its URL, or a stored file."""

    key: str
    location: str | LazyImage


def locate(rule: Mapping[str, Any], keys: MissingKeys, upstream: Path) -> Iterator[LocatedPicture]:
    """The pictures of the keys that are found, each once, in the order of the upstream files.

    Raises:
        InputError: the files are missing or damaged, lack a column, or the rule is wrong.
    """
    kind = rule.get("place")
    if kind not in LOCATORS:
        raise InputError(f"place is {kind!r}; it must be one of {', '.join(LOCATORS)}.")
    yield from LOCATORS[kind](rule, keys, upstream)


def _url(rule: Mapping[str, Any], keys: MissingKeys, upstream: Path) -> Iterator[LocatedPicture]:
    yield from (LocatedPicture(key, key) for key in keys if keys.claim(key))


def _table(rule: Mapping[str, Any], keys: MissingKeys, upstream: Path) -> Iterator[LocatedPicture]:
    value = rule.get("url") or rule.get("picture")
    if not rule.get("key") or not value:
        raise InputError('A rule with place = "table" needs `key`, and `url` or `picture`.')
    for path in _files(rule, upstream):
        rows = _csv_rows if path.suffix == ".csv" else _parquet_rows
        for key, cell in rows(path, rule["key"], value):
            if keys.claim(key):
                yield LocatedPicture(
                    key, str(cell) if "url" in rule else LazyImage(f"{path}, {key}", partial(_picture, cell, f"{path}, {key}"))
                )
        if not len(keys):
            return


def _parquet_rows(path: Path, key: str, value: str) -> Iterator[tuple[str, Any]]:
    require_packages("pyarrow", extra="construction", feature="Reading parquet files")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, key, value)
            for batch in file.iter_batches(ROWS, columns=[key, value]):
                yield from zip(map(str, batch.column(key).to_pylist()), batch.column(value).to_pylist(), strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a parquet file, or damaged ({error}). Download it again.") from error


def _csv_rows(path: Path, key: str, value: str) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        _check_columns(path, rows.fieldnames or [], key, value)
        yield from ((row[key], row[value]) for row in rows)


def _check_columns(path: Path, columns: Any, *needed: str) -> None:
    if missing := [name for name in needed if name not in columns]:
        raise InputError(f"{path}: has no column {' or '.join(missing)}, but {', '.join(columns)}. Correct the rule (--config).")


def _picture(value: Any, where: str) -> bytes:
    """The bytes in a cell, as they are or as the hub stores pictures: a struct with `bytes`."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise InputError(f"{where}: the cell has no bytes of a picture")
    return data


def _in_folder(rule: Mapping[str, Any], keys: MissingKeys, upstream: Path) -> Iterator[LocatedPicture]:
    """By its path, else by the one file whose path ends with it: archives are unpacked into folders of various names."""
    root = upstream / rule.get("files", ".")
    check(root.is_dir(), f"{root}: there is no such folder. Unpack the pictures there, or correct the rule (--config).")
    missing = defaultdict[str, list[str]](list)
    for key in keys:
        if os.path.lexists(root / key) or _is_outside(root, key):
            keys.claim(key)
            yield LocatedPicture(key, LazyImage(str(root / key), partial(read_picture, root, key)))
        else:
            missing[Path(key).name].append(key)
    candidates = defaultdict[str, list[Path]](list)
    for path in root.rglob("*") if missing else ():
        for key in missing.get(path.name, ()):
            if path.is_file() and f"/{path.relative_to(root).as_posix()}".endswith(f"/{key}"):
                candidates[key].append(path)
    for key, paths in sorted(candidates.items()):
        if len(paths) == 1 and keys.claim(key):
            yield LocatedPicture(key, LazyImage(str(paths[0]), partial(read_picture, root, str(paths[0].relative_to(root)))))


def _is_outside(root: Path, key: str) -> bool:
    try:
        resolve_within(root, key)
    except InputError:
        return True
    return False


def _tar(rule: Mapping[str, Any], keys: MissingKeys, upstream: Path) -> Iterator[LocatedPicture]:
    for path in _files(rule, upstream):
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    stem, _, suffix = member.name.removeprefix("./").rpartition(".")
                    if suffix.lower() in ("json", "txt") or member.isdir() or not keys.claim(stem):
                        continue
                    yield LocatedPicture(stem, LazyImage(f"{path}, {member.name}", _read_member(tar, member, f"{path}, {member.name}")))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"{path}: the archive is damaged ({error}). Download it again.") from error


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Callable[[], bytes]:
    """A function that returns the bytes of a member, with links followed. They are read now, since archives are read once, in order."""
    data = None
    with suppress(KeyError, RecursionError):  # a link to nothing in the archive, or in circles
        file = tar.extractfile(member)
        data = file and file.read()

    def read() -> bytes:
        if data is None:
            raise InputError(
                f"{where}: is a link to {member.linkname}, which is not a file in the archive"
                if member.linkname
                else f"{where}: is not a file"
            )
        return data

    return read


LOCATORS = {"url": _url, "table": _table, "files": _in_folder, "tar": _tar}


def _files(rule: Mapping[str, Any], upstream: Path) -> list[Path]:
    pattern = rule.get("files", "")
    paths = sorted(upstream.glob(pattern)) if pattern else []
    check(paths, f"{upstream}: has no {pattern or 'files'}. Download them (--fetch), or correct the rule (--config).")
    return paths
