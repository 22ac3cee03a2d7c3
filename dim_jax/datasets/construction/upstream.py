"""Downloads and unpacks the upstream files of a sub-source."""

import asyncio
import lzma
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dim_jax.datasets.construction.download import Downloads
from dim_jax.errors import InputError
from dim_jax.storage.hub import fetch
from dim_jax.storage.paths import resolve_within

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def fetch_upstream(rule: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]) -> None:
    """Download the repository and the archives of a sub-source into its folder, and unpack them. Existing files stay.

    Raises:
        InputError: something cannot be downloaded or unpacked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "repo" in rule:
        fetch(rule["repo"], rule.get("patterns"), kind="dataset", folder=folder)
    for url in rule.get("archives", ()):
        path = folder / os.path.basename(unquote(urlsplit(url).path))
        if not path.exists():
            asyncio.run(_fetch(url, path, settings))
    for path in sorted(folder.rglob("*")) if rule.get("place") == "files" else ():
        if path.name.endswith(ARCHIVE_SUFFIXES) and path.is_file():
            unpack(path)


async def _fetch(url: str, path: Path, settings: Mapping[str, Any]) -> None:
    async with Downloads(settings) as downloads:
        await downloads.fetch(url, path)


def unpack(path: Path) -> None:
    """Unpack an archive into its own folder, as published paths require; a file beside it marks that it is unpacked.

    Raises:
        InputError: it is damaged, or would write outside of the folder.
    """
    mark = path.with_name(f".{path.name}.unpacked")
    if mark.exists():
        return
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                _unpack_zip(archive, path.parent)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(path.parent, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}). If it is damaged, remove it, and run the same command again.") from error
    mark.touch()


def _unpack_zip(archive: zipfile.ZipFile, folder: Path) -> None:
    """As tarfile's filter "data" does: links stay links, and nothing leads out of the folder. (zipfile itself writes the target of a link
    as text, and gives another name to what would leave.)

    Raises:
        InputError: a member or the target of a link lies outside of the folder.
    """
    links = dict[Path, str]()
    for member in archive.infolist():
        name = member.filename.lstrip("/")
        path = resolve_within(folder, name)
        if stat.S_ISLNK(member.external_attr >> 16):
            target = archive.read(member).decode()
            resolve_within(folder, target if target.startswith("/") else posixpath.join(posixpath.dirname(name), target))
            links[Path(path)] = target
        else:
            archive.extract(member, folder)
    for path, target in links.items():  # at the end, so that no member is written through one
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
