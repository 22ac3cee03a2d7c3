"""Pictures of a data set: files in its folder, or members of tar and zip archives there, which may be compressed and split into parts.

An archive is read once from end to end to index its members (members.npz) and, if it is compressed by gzip, whatever its name says, points
where decompression can start (NAME.points, one every 16 MiB). Then each picture is read in place. In a bucket a picture is one request; in
a compressed archive it is one for each 4 MiB from the last point on. A zip has a table of its members, each compressed by itself.
"""

import io
import json
import lzma
import os
import posixpath
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial, reduce
from itertools import chain
from string import ascii_lowercase, digits
from typing import Any

import numpy as np
from rich.console import Console

from dim_jax.data.example import LazyImage
from dim_jax.datasets.layouts.rows import ConcatenatedFile
from dim_jax.errors import InputError, check, prefix_errors, require_packages
from dim_jax.storage.folders import make_folder, new_file
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import AnyPath, entries, is_remote, read_errors, read_if_exists, resolve_within

ARCHIVE = re.compile(r"(?P<name>.+\.(tar|tar\.gz|tgz|zip))(?P<part>\.part.*)?")
UNREAD = re.compile(r".+\.(tar\.(bz2|xz|zst|lz4)|tbz2?|txz|7z|rar)(\.part.*)?")
GZIP = b"\x1f\x8b"
NUMBERED = re.compile(r"(?P<name>.+_part_)(?P<number>\d+)\.tar")
MEMBERS = "members.npz"
SPACING = 16 * 2**20
MAX_LINKS = 40  # as on Linux
BUFFER, REMOTE_BUFFER = 2**20, 2**22  # bytes that are read at once; from a bucket each read is a request
ZIP_BUFFER = 2**16  # less, since its members are read one by one


# What zipfile raises for damaged archives, methods and encryption that it does not know, and names that are not valid text.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
Links = dict[str, tuple[bool, str]]  # of an archive: name -> (hard link or not, target)


@dataclass(frozen=True)
class ImageStore:
    """The pictures of a set by their paths in `folder`; `index` is the folder for the index of its archives."""

    folder: AnyPath
    index_folder: AnyPath

    def lazy_image(self, name: str, where: str) -> LazyImage:
        """A picture that is not read yet; `where` names its row in errors."""
        return LazyImage(f"{where}: {name}", partial(self._read, name, where))

    def _read(self, name: str, where: str) -> bytes:
        with prefix_errors(where):
            return self._read_any(name)

    def _read_any(self, name: str) -> bytes:
        path = resolve_within(self.folder, name)
        # Some machines decompose letters with accents in names of files: "é" is one character in a text and two there, or the reverse.
        names = dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))])
        readers = [
            reader for name in names for reader in (partial(read_if_exists, resolve_within(self.folder, name)), partial(self._member, name))
        ]
        if is_remote(path) and _is_indexed(self.index_folder):
            readers.reverse()  # asking a bucket for a missing file takes as long as reading a member
        for reader in readers:
            if (data := reader()) is not None:
                return data
        archives = _open_archives(self.folder, self.index_folder)
        if archives is None:
            unread = [entry.name for entry in entries(self.folder) if UNREAD.fullmatch(entry.name)]
            remedy = (
                f"Unpack {unread[0]} there: tar, tar.gz and zip alone are read." if unread else "Put the picture there, or the archives."
            )
            raise InputError(f"there is no {path}, and no archive in {self.folder}. {remedy}")
        raise InputError(f"there is no {path}, and {name} is in none of {archives.names}. Download what is missing.")

    def _member(self, name: str) -> bytes | None:
        archives = _open_archives(self.folder, self.index_folder)
        return None if archives is None else archives.read(posixpath.normpath(name))


def index_archives(folder: AnyPath, index_folder: AnyPath, console: Console | None = None) -> None:
    """Write the index of the archives in `folder` to `index`, unless it exists.

    An archive counts as extracted, and is left out, if its first member is in the folder.

    Raises:
        InputError: parts of an archive are missing, or it is damaged.
    """
    archives = find_archives(folder, index_folder)
    if not archives or (index_folder / MEMBERS).exists():
        return
    make_folder(index_folder)
    names, spans, links = list[str](), list[tuple[int, int, int]](), Links()
    for number, archive in enumerate(archives):
        archive_links = Links()
        members = archive.members(archive_links)
        first = next(members, None)
        if first is not None and os.path.isfile(folder / _normalize(first[0])):
            continue
        if console is not None:
            console.out(f"reading {archive.name}", highlight=False)
        for name, offset, size in chain([first], members) if first else ():
            names.append(_normalize(name))
            spans.append((number, offset, size))
        links |= archive_links
    table = np.array(spans, np.int64).reshape(-1, 3)
    with new_file(index_folder / MEMBERS) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, places=table, names=np.array(json.dumps(names)), links=np.array(json.dumps(links)))
    _open_archives.cache_clear()
    _is_indexed.cache_clear()


class TarArchive:
    """A tar, whose file may be split into parts (`images.tar.gz.part00`, ...); `index` is the folder for its points, if compressed."""

    def __init__(self, name: str, paths: list[AnyPath], index_folder: AnyPath):
        self.name, self.paths = name, paths
        self._file, self._points = ConcatenatedFile(paths), index_folder / f"{name}.points"
        self._buffer = REMOTE_BUFFER if is_remote(paths[0]) else BUFFER

    def members(self, links: Links) -> Iterator[tuple[str, int, int]]:
        """Name, offset and size of each file in it; at the end the points are written. Adds its links to `links`."""
        try:
            # Read as a stream: seeking between members would decompress the same data again and again.
            stream: Any = self._open_gzip(None) if self._compressed else ConcatenatedFile(self.paths)
            with (
                io.BufferedReader(stream, self._buffer) as file,
                tarfile.open(fileobj=file, mode="r|" if self._compressed else "r:") as tar,
            ):
                for member in tar:
                    if member.isfile():
                        links.pop(_normalize(member.name), None)
                        yield member.name, member.offset_data, member.size
                    elif member.islnk() or member.issym():
                        links[_normalize(member.name)] = member.islnk(), member.linkname
                    vars(tar)["members"] = []  # tarfile keeps all members otherwise
                if self._compressed:
                    stream.build_full_index()
                # tarfile takes the end of the file for the end of the archive, also in the middle of a header or of compressed data.
                stream.seek(tar.offset)
                end = stream.read(tarfile.BLOCKSIZE)
                if len(end) < tarfile.BLOCKSIZE and (end or self._compressed):
                    raise EOFError("its end is missing")
                if self._compressed:
                    with new_file(self._points) as scratch:
                        stream.export_index(str(scratch))
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
            raise _damaged(self, error) from error

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of its contents. Raises InputError if they cannot be read."""
        with read_errors(self.paths[0]):
            return (self._indexed_gzip if self._compressed else self._file).pread(size, offset)

    @cached_property
    def _compressed(self) -> bool:
        return self._file.pread(len(GZIP), 0) == GZIP

    @cached_property
    def _indexed_gzip(self) -> Any:
        return self._open_gzip(str(cached_path(self._points)))

    def _open_gzip(self, points: str | None) -> Any:
        require_packages("indexed_gzip", extra="data", feature="A compressed archive")
        from indexed_gzip import IndexedGzipFile

        return IndexedGzipFile(
            fileobj=ConcatenatedFile(self.paths), spacing=SPACING, readbuf_size=self._buffer, buffer_size=2**16, index_file=points
        )


class ZipArchive:
    """A zip, whose file may be split into parts (`images.zip.part00`, ...). An offset is that of a member's header."""

    def __init__(self, name: str, paths: list[AnyPath]):
        self.name, self.paths = name, paths

    def members(self, links: Links) -> Iterator[tuple[str, int, int]]:
        """As `TarArchive.members`. On Unix a link is a member that holds its target."""
        try:
            for offset, member in self._members.items():
                if stat.S_ISLNK(member.external_attr >> 16):
                    links[_normalize(member.filename)] = False, self._file.read(member).decode()
                elif not member.is_dir():
                    links.pop(_normalize(member.filename), None)
                    yield member.filename, offset, member.file_size
        except ZIP_ERRORS as error:
            raise _damaged(self, error) from error

    def read(self, offset: int, size: int) -> bytes:
        """The content of a member. Raises InputError if it is damaged, encrypted, or compressed by a method that Python does not know."""
        try:
            return self._file.read(self._members[offset])
        except ZIP_ERRORS as error:
            raise InputError(f"{self.name}: a picture cannot be read ({error}). Put the picture itself there.") from error

    @cached_property
    def _file(self) -> zipfile.ZipFile:
        buffer = REMOTE_BUFFER if is_remote(self.paths[0]) else ZIP_BUFFER
        return zipfile.ZipFile(io.BufferedReader(ConcatenatedFile(self.paths), buffer))

    @cached_property
    def _members(self) -> dict[int, zipfile.ZipInfo]:
        return {member.header_offset: member for member in self._file.infolist()}


AnyArchive = TarArchive | ZipArchive


def _damaged(archive: AnyArchive, error: Exception) -> InputError:
    return InputError(
        f"{archive.paths[-1]}: the archive {archive.name} is damaged or incomplete ({error}). It was read from "
        f"{len(archive.paths)} file(s), of which this is the last: download the missing ones, or all again."
    )


class _Archives:
    """The archives of a folder, with the index of their members."""

    def __init__(self, archives: list[AnyArchive], index_folder: AnyPath):
        self._archives = archives
        with np.load(io.BytesIO((index_folder / MEMBERS).read_bytes()), allow_pickle=False) as file:
            names, self._spans = json.loads(str(file["names"])), file["places"]
            self._links = {name: (hard, target) for name, (hard, target) in json.loads(str(file["links"])).items()}
        self._numbers = {name: number for number, name in enumerate(names)}

    @property
    def names(self) -> str:
        return f"{', '.join(archive.name for archive in self._archives[:3])}{', ...' if len(self._archives) > 3 else ''}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a member, with links followed; None: there is no such member.

        Raises:
            InputError: it is a link to nothing in these archives, or it cannot be read.
        """
        plain = follow_links(name, self._links)
        number = self._numbers.get(plain)
        if number is None:
            if plain == name:
                return None
            raise InputError(f"{name} is a link to {plain}, which is in none of {self.names}. Put the picture itself in its place.")
        archive, offset, size = self._spans[number].tolist()
        return self._archives[archive].read(offset, size)


def follow_links(name: str, links: Mapping[str, tuple[bool, str]]) -> str:
    """The name of a member with links followed: it, or any folder of it, may be a link (name -> (hard, target)).

    Raises:
        InputError: a link leads out of the archives, or in circles.
    """
    remaining, resolved, num_links = name.split("/"), list[str](), 0
    while remaining:
        part = remaining.pop(0)
        if part == "..":
            check(resolved, f"{name} is a link out of its archive. Put the picture itself in its place.")
            resolved.pop()
        elif part not in ("", "."):
            resolved.append(part)
        if part != ".." and (link := links.get("/".join(resolved))):
            hard, target = link
            num_links += 1
            check(num_links <= MAX_LINKS, f"{name} is a link that leads in circles. Put the picture itself in its place.")
            if not hard and target.startswith("/"):
                raise InputError(f"{name} is a link to {target}, out of its archive. Put the picture itself in its place.")
            remaining, resolved = [*target.split("/"), *remaining], [] if hard else resolved[:-1]
    return "/".join(resolved)


@cache
def _is_indexed(index_folder: AnyPath) -> bool:
    return (index_folder / MEMBERS).exists()


@cache
def _open_archives(folder: AnyPath, index_folder: AnyPath) -> _Archives | None:
    archives = find_archives(folder, index_folder)
    if not archives:
        return None
    index_archives(folder, index_folder)
    return _Archives(archives, index_folder)


def find_archives(folder: AnyPath, index_folder: AnyPath) -> list[AnyArchive]:
    """The archives in a folder by name, their parts in order. Raises InputError if there is a gap in the numbers of parts."""
    parts: dict[str, list[AnyPath]] = {}
    for path in entries(folder):
        if match := ARCHIVE.fullmatch(path.name):
            parts.setdefault(match["name"], []).append(path)
    numbered: dict[str, list[int]] = {}
    for name, paths in parts.items():
        if ".part" in paths[0].name.removeprefix(name):
            _check_suffixes([path.name.removeprefix(f"{name}.part").strip("-_.") for path in paths], folder / name)
        if match := NUMBERED.fullmatch(name):
            numbered.setdefault(match["name"], []).append(int(match["number"]))
    for name, numbers in numbered.items():
        if gaps := sorted(set(range(min(numbers[0], 1), max(numbers))) - set(numbers)):
            raise InputError(f"{folder}: {name}{gaps[0]}.tar is missing (of {len(numbers) + len(gaps)} at least). Download it too.")
    return [
        ZipArchive(name, paths) if name.endswith(".zip") else TarArchive(name, paths, index_folder) for name, paths in sorted(parts.items())
    ]


def _check_suffixes(suffixes: list[str], name: AnyPath) -> None:
    """Refuse a gap in the names of parts, as `split` gives them: 00, 01, ... or aa, ab, ..."""
    letters = ascii_lowercase if all(suffix.isalpha() and suffix.islower() for suffix in suffixes) else digits
    if any(set(suffix) - set(letters) for suffix in suffixes):
        return  # another notation; a missing part will be noticed when the archive is read
    numbers = [reduce(lambda number, letter: number * len(letters) + letters.index(letter), suffix, 0) for suffix in suffixes]
    first = 1 if letters == digits and numbers[0] == 1 else 0
    gaps = sorted(set(range(first, numbers[-1])) - set(numbers))
    if gaps:
        missing = "".join(letters[gaps[0] // len(letters) ** digit % len(letters)] for digit in reversed(range(len(suffixes[0]))))
        raise InputError(f"{name}: part {missing} is missing, and {len(gaps) - 1} more of those up to {suffixes[-1]}. Download them too.")


def _normalize(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")
