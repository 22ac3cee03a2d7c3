"""ArrayRecord files: records are read one by one, in any order, by any process; damage is found when a record is read."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError, check, first_line, require_packages
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import AnyPath, read_errors


def check_installed() -> None:
    """Refuse to go on if the package that reads and writes records is missing."""
    require_packages("array_record", extra="data", feature="A data set")


class Records:
    """The records of one file, with its name in every error.

    Args:
        path: the file. One in a bucket is copied to this machine, since ArrayRecord reads local files.
        missing: what to do if there is no such file, for the error.
        damaged: what to do if it is damaged.

    Raises:
        InputError: there is no such file, or `array_record` is not installed; also when it is read: it is damaged.
    """

    def __init__(self, path: AnyPath, *, missing: str, damaged: str):
        with read_errors(path):
            check(path.is_file(), f"{path}: no such file. {missing}")
        self.path, self._damaged = path, damaged
        check_installed()
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        local_path = os.fspath(cached_path(path))
        self._source = self._read(lambda: ArrayRecordDataSource(local_path))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        return self._read(lambda: self._source[index])

    def at(self, indices: Sequence[int]) -> list[bytes]:
        """Several records, which takes a tenth of the time of one by one."""
        return list(self._read(lambda: self._source.__getitems__(indices)))

    def all(self) -> list[bytes]:
        """Every record."""
        return self.at(range(len(self)))

    def _read(self, read):
        try:
            return read()
        except RuntimeError as error:
            raise InputError(f"{self.path}: damaged ({first_line(error)}). {self._damaged}") from error


class NewRecords:
    """A file that grows by one record at a time; `close` ends it.

    Raises:
        OSError: nothing can be written, such as on a full disk.
    """

    def __init__(self, path: Path, *, compressed: bool = True):
        check_installed()
        from array_record.python.array_record_module import ArrayRecordWriter

        self._writer = _with_os_errors(lambda: ArrayRecordWriter(os.fspath(path), "group_size:1" + ("" if compressed else ",uncompressed")))

    def write(self, record: bytes) -> None:
        _with_os_errors(lambda: self._writer.write(record))

    def close(self) -> None:
        _with_os_errors(self._writer.close)


def new_records(path: Path, *, compressed: bool = True) -> closing[NewRecords]:
    """A file to write records to, as a context that closes it."""
    return closing(NewRecords(path, compressed=compressed))


def _with_os_errors(write: Callable[[], Any]) -> Any:
    try:
        return write()
    except RuntimeError as error:  # the only error of ArrayRecord
        raise OSError(first_line(error)) from error
