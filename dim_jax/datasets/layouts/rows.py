"""Rows of JSON files by number, with file and line in every error; and reading of files at any offset."""

import io
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dim_jax.errors import InputError, check, check_unicode, prefix_errors
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import AnyPath, file_size, is_remote, open_regular, read_errors, read_json, read_range

BLOCK = 2**24  # bytes that are searched for line ends at once


class JsonLines:
    """The objects of a jsonl file: the offsets of its lines are found once, when it is opened, and are pickled.

    That reads the whole file, so a file in a bucket is copied to this machine: otherwise each row would be a request.
    """

    def __init__(self, path: AnyPath):
        self.path = path
        self._ends = _line_ends(path)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> "Row":
        start = int(self._ends[index - 1]) + 1 if index else 0
        where = f"{self.path}, line {index + 1}"
        with prefix_errors(where):
            line = read_at(cached_path(self.path), start, int(self._ends[index]) - start)
        try:
            fields = json_loads(line)
        except ValueError as error:
            raise InputError(f"{where}: is not JSON ({error}). Repair the line, or remove it.") from error
        return Row(fields, where)


class JsonArray:
    """The objects of a JSON file that is one array, small enough for memory."""

    def __init__(self, path: AnyPath):
        self.path = path
        self._rows = read_json(path)
        check(isinstance(self._rows, list), f"{path}: is not a JSON array of rows. Download it again.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> "Row":
        return Row(self._rows[index], f"{self.path}, row {index + 1}")


class Row:
    """The fields of one row; `where` names it in errors."""

    def __init__(self, fields: object, where: str):
        if not isinstance(fields, dict):
            raise InputError(f"{where}: is not a JSON object. Repair it, or remove it.")
        check_unicode(json.dumps(fields, ensure_ascii=False), where)
        self.fields, self.where = fields, where

    def text(self, *names: str) -> str:
        """The first of these fields that exists. Raises InputError if there is none, or it is not text or empty."""
        value = next((self.fields[name] for name in names if name in self.fields), None)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.where}: {' or '.join(names)} is {value!r}, but must be a text. Repair the row, or remove it.")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is one text or a list of them. Raises InputError if it is neither, or a text is empty."""
        value = self.fields.get(name)
        texts = value if isinstance(value, list) else [value]
        good = tuple(text for text in texts if isinstance(text, str) and text.strip())
        if not good or len(good) < len(texts):
            raise InputError(f"{self.where}: {name} is {value!r}, but must be a text, or a list of texts. Repair the row, or remove it.")
        return good


def read_at(path: AnyPath, start: int, size: int) -> bytes:
    """Bytes of a file (in a bucket by one request); safe in threads and forked processes, since there is no shared file position."""
    if is_remote(path):
        return read_range(path, start, size)
    with read_errors(path):
        return os.pread(_descriptor(Path(path)), size, start)


@cache
def _descriptor(path: Path) -> int:
    """Stays open until the process ends: a source has few such files and reads them all the time."""
    with open_regular(path) as file:
        return os.dup(file.fileno())


def _line_ends(path: AnyPath) -> Int[np.ndarray, " lines"]:
    """Offset of each line's end: of its line feed, or of the end of the file."""
    ends, offset = [], 0
    with open_regular(cached_path(path)) as file, read_errors(path):
        while block := file.read(BLOCK):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset)
            offset += len(block)
            unfinished = not block.endswith(b"\n")
    if offset and unfinished:
        ends.append(np.array([offset]))
    return np.concatenate(ends) if ends else np.zeros(0, np.int64)


class ConcatenatedFile(io.RawIOBase):
    """Files read as one."""

    def __init__(self, paths: Sequence[AnyPath]):
        self._paths, self._position = paths, 0
        self.sizes = [file_size(path) for path in paths]
        self._starts = np.cumsum([0, *self.sizes])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: int(self._starts[-1])}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        data = self.pread(int(self._starts[-1]) if size is None or size < 0 else size, self._position)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.pread(min(len(buffer), 2**24), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def pread(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on; fewer only at the end."""
        chunks = []
        while size and offset < self._starts[-1]:
            file = int(np.searchsorted(self._starts, offset, "right")) - 1
            chunk = read_at(self._paths[file], offset - int(self._starts[file]), min(size, int(self._starts[file + 1]) - offset))
            chunks.append(chunk)
            offset, size = offset + len(chunk), size - len(chunk)
        return b"".join(chunks)
