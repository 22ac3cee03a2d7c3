"""Pictures of a set: files in its folder, or members of the tar archives there, which may be compressed and cut into parts.

An archive is read once from end to end, to note where its members lie (members.npz), and for compressed ones points from which
decompression can start (NAME.points, one every 16 MiB). Then each picture is read where it lies. In a bucket, a picture is one request,
in a compressed archive one for each 4 MiB from the point before it on.
"""

import io
import json
import os
import posixpath
import re
import tarfile
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
from dim_jax.datasets.layouts.rows import Joined, naming
from dim_jax.errors import InputError, require
from dim_jax.storage.folders import new_file, writing
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import AnyPath, entries, is_remote, read_errors, read_if_there, within

ARCHIVE = re.compile(r"(?P<name>.+\.(tar|tar\.gz|tgz))(?P<part>\.part.*)?")
NUMBERED = re.compile(r"(?P<name>.+_part_)(?P<number>\d+)\.tar")
MEMBERS = "members.npz"
SPACING = 16 * 2**20
MOST_LINKS = 40  # one after the other, as Linux has it
BUFFER, FAR_BUFFER = 2**20, 2**22  # bytes that are read at once; of a bucket, where each time is a request


@dataclass(frozen=True)
class ImageStore:
    """The pictures of a set by their paths in `folder`; what is noted of its archives is kept in `index`."""

    folder: AnyPath
    index: AnyPath

    def stored(self, name: str, where: str) -> LazyImage:
        """A picture that has not been read; `where` names its row in errors."""
        return LazyImage(f"{where}: {name}", partial(self._read, name, where))

    def _read(self, name: str, where: str) -> bytes:
        with naming(where):
            return self._found(name)

    def _found(self, name: str) -> bytes:
        path = within(self.folder, name)
        ways = [partial(read_if_there, path), partial(self._member, name)]
        if is_remote(path) and _is_indexed(self.index):
            ways.reverse()  # to ask a bucket for a file that is not there takes as long as to read a member
        for way in ways:
            if (found := way()) is not None:
                return found
        archives = _opened(self.folder, self.index)
        if archives is None:
            raise InputError(f"there is no {path}, and no archive in {self.folder}. Put the picture there, or the archives.")
        raise InputError(f"there is no {path}, and {name} is in none of {archives.names}. Download what is missing.")

    def _member(self, name: str) -> bytes | None:
        archives = _opened(self.folder, self.index)
        return None if archives is None else archives.read(posixpath.normpath(name))


def index_archives(folder: AnyPath, index: AnyPath, console: Console | None = None) -> None:
    """Note in `index` where the members of the archives in `folder` lie; what is there already is kept.

    An archive counts as extracted, and is left out, if its first member lies in the folder.

    Raises:
        InputError: parts of an archive are missing, or it is damaged.
    """
    found = find_archives(folder, index)
    if not found or (index / MEMBERS).exists():
        return
    with writing(index):
        index.mkdir(parents=True, exist_ok=True)
    names, places, links = list[str](), list[tuple[int, int, int]](), dict[str, tuple[bool, str]]()
    for number, archive in enumerate(found):
        own: dict[str, tuple[bool, str]] = {}
        members = archive.members(own)
        first = next(members, None)
        if first is not None and os.path.isfile(folder / _plain(first[0])):
            continue
        if console is not None:
            console.out(f"reading {archive.name}", highlight=False)
        for name, offset, size in chain([first], members) if first else ():
            names.append(_plain(name))
            places.append((number, offset, size))
        links |= own
    table = np.array(places, np.int64).reshape(-1, 3)
    with new_file(index / MEMBERS) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, places=table, names=np.array(json.dumps(names)), links=np.array(json.dumps(links)))
    _opened.cache_clear()
    _is_indexed.cache_clear()


class Archive:
    """One tar, whose file may be cut into parts (`images.tar.gz.part00`, ...); `index` is where its points are kept, if compressed."""

    def __init__(self, name: str, paths: list[AnyPath], index: AnyPath):
        self.name, self.paths = name, paths
        self._file, self._points = Joined(paths), index / f"{name}.points"
        self._compressed = not name.endswith(".tar")
        self._buffer = FAR_BUFFER if is_remote(paths[0]) else BUFFER

    def members(self, links: dict[str, tuple[bool, str]]) -> Iterator[tuple[str, int, int]]:
        """Name, place and size of each file in it; at the end the points are written. `links` gains by name whether a link is a hard one,
        and what it is a link to."""
        try:
            # From one end to the other: to skip what lies between two members would decompress it again and again.
            with (
                io.BufferedReader(Joined(self.paths), self._buffer) as file,
                tarfile.open(fileobj=file, mode="r|gz" if self._compressed else "r:") as tar,
            ):
                for member in tar:
                    if member.isfile():
                        links.pop(_plain(member.name), None)
                        yield member.name, member.offset_data, member.size
                    elif member.islnk() or member.issym():
                        links[_plain(member.name)] = member.islnk(), member.linkname
                    vars(tar)["members"] = []  # or it would keep all of them
            if self._compressed:
                stream = self._unpacked(None)
                stream.build_full_index()
                with new_file(self._points) as scratch:
                    stream.export_index(str(scratch))
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
            raise InputError(
                f"{self.paths[-1]}: the archive {self.name} is damaged, or ends before its end ({error}). It was read from "
                f"{len(self.paths)} file(s), the last of which this is: download what is missing before or after, or all again."
            ) from error

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of its contents.

        Raises:
            InputError: they cannot be read.
        """
        with read_errors(self.paths[0]):
            return (self._from_points if self._compressed else self._file).pread(size, offset)

    @cached_property
    def _from_points(self) -> Any:
        return self._unpacked(str(cached_path(self._points)))

    def _unpacked(self, points: str | None) -> Any:
        require("indexed_gzip", extra="data", what="A compressed archive")
        from indexed_gzip import IndexedGzipFile

        return IndexedGzipFile(fileobj=Joined(self.paths), spacing=SPACING, readbuf_size=self._buffer, buffer_size=2**16, index_file=points)


class _Archives:
    """The archives of a folder, with the places of their members."""

    def __init__(self, found: list[Archive], index: AnyPath):
        self._found = found
        with np.load(io.BytesIO((index / MEMBERS).read_bytes()), allow_pickle=False) as file:
            names, self._places = json.loads(str(file["names"])), file["places"]
            self._links = {name: (hard, target) for name, (hard, target) in json.loads(str(file["links"])).items()}
        self._numbers = {name: number for number, name in enumerate(names)}

    @property
    def names(self) -> str:
        return f"{', '.join(archive.name for archive in self._found[:3])}{', ...' if len(self._found) > 3 else ''}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a member, or of what it is a link to; None: there is none of this name.

        Raises:
            InputError: it is a link to nothing in these archives; or it cannot be read.
        """
        plain = follow_links(name, self._links)
        number = self._numbers.get(plain)
        if number is None:
            if plain == name:
                return None
            raise InputError(f"{name} is a link to {plain}, which is in none of {self.names}. Put the picture itself in its place.")
        archive, offset, size = self._places[number].tolist()
        return self._found[archive].read(offset, size)


def follow_links(name: str, links: Mapping[str, tuple[bool, str]]) -> str:
    """What a name in archives leads to: it, or any folder of it, may be a link (hard or not, and to what).

    Raises:
        InputError: out of the archives, or in circles.
    """
    left, done, followed = name.split("/"), list[str](), 0
    while left:
        part = left.pop(0)
        if part == "..":
            if not done:
                raise InputError(f"{name} is a link out of its archive. Put the picture itself in its place.")
            done.pop()
        elif part not in ("", "."):
            done.append(part)
        if part != ".." and (link := links.get("/".join(done))):
            hard, target = link
            followed += 1
            if followed > MOST_LINKS:
                raise InputError(f"{name} is a link that leads in circles. Put the picture itself in its place.")
            if not hard and target.startswith("/"):
                raise InputError(f"{name} is a link to {target}, out of its archive. Put the picture itself in its place.")
            left, done = [*target.split("/"), *left], [] if hard else done[:-1]
    return "/".join(done)


@cache
def _is_indexed(index: AnyPath) -> bool:
    return (index / MEMBERS).exists()


@cache
def _opened(folder: AnyPath, index: AnyPath) -> _Archives | None:
    found = find_archives(folder, index)
    if not found:
        return None
    index_archives(folder, index)
    return _Archives(found, index)


def find_archives(folder: AnyPath, index: AnyPath) -> list[Archive]:
    """The archives in a folder by name, their parts in order.

    Raises:
        InputError: there is a gap in the numbers of parts.
    """
    parts: dict[str, list[AnyPath]] = {}
    for path in entries(folder):
        if found := ARCHIVE.fullmatch(path.name):
            parts.setdefault(found["name"], []).append(path)
    numbered: dict[str, list[int]] = {}
    for name, paths in parts.items():
        if ".part" in paths[0].name.removeprefix(name):
            _check_suffixes([path.name.removeprefix(f"{name}.part").strip("-_.") for path in paths], folder / name)
        if found := NUMBERED.fullmatch(name):
            numbered.setdefault(found["name"], []).append(int(found["number"]))
    for name, numbers in numbered.items():
        if gaps := sorted(set(range(min(numbers[0], 1), max(numbers))) - set(numbers)):
            raise InputError(f"{folder}: {name}{gaps[0]}.tar is missing (of {len(numbers) + len(gaps)} at least). Download it too.")
    return [Archive(name, paths, index) for name, paths in sorted(parts.items())]


def _check_suffixes(suffixes: list[str], name: AnyPath) -> None:
    """Refuse a gap in the names of parts, as `split` gives them: 00, 01, ... or aa, ab, ..."""
    letters = ascii_lowercase if all(suffix.isalpha() and suffix.islower() for suffix in suffixes) else digits
    if any(set(suffix) - set(letters) for suffix in suffixes):
        return  # another way of counting: what is missing shows when the archive is read
    numbers = [reduce(lambda number, letter: number * len(letters) + letters.index(letter), suffix, 0) for suffix in suffixes]
    first = 1 if letters == digits and numbers[0] == 1 else 0
    gaps = sorted(set(range(first, numbers[-1])) - set(numbers))
    if gaps:
        missing = "".join(letters[gaps[0] // len(letters) ** place % len(letters)] for place in reversed(range(len(suffixes[0]))))
        raise InputError(f"{name}: part {missing} is missing, and {len(gaps) - 1} more of those up to {suffixes[-1]}. Download them too.")


def _plain(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")
