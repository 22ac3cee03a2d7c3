"""Files of records (ArrayRecord): any record is read alone, in any order, by any process; damage is found when it is read."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError, require
from dim_jax.storage.local_cache import cached_path
from dim_jax.storage.paths import AnyPath


def check_installed() -> None:
    """Refuse where the package that reads and writes the records is missing."""
    require("array_record", extra="data", what="A data set")


class Records:
    """The records of one file, with its name in every error.

    Args:
        path: the file; of one in a bucket a copy is kept on this machine, since ArrayRecord reads files of its own machine.
        made_by: what to do where there is none, for the error.
        mend: what to do where it is damaged.

    Raises:
        InputError: there is no such file, or `array_record` is not installed; also in reading: it is damaged.
    """

    def __init__(self, path: AnyPath, *, made_by: str, mend: str):
        if not path.is_file():
            raise InputError(f"{path}: no such file. {made_by}")
        self.path, self._mend = path, mend
        check_installed()
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        here = os.fspath(cached_path(path))
        self._source = self._whole(lambda: ArrayRecordDataSource(here))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        return self._whole(lambda: self._source[index])

    def all(self) -> list[bytes]:
        """Every record, which is quicker than one by one."""
        return list(self._whole(lambda: self._source.__getitems__(range(len(self._source)))))

    def _whole(self, read):
        try:
            return read()
        except RuntimeError as error:
            raise InputError(f"{self.path}: damaged ({str(error).splitlines()[0]}). {self._mend}") from error


class NewRecords:
    """A file that grows by one record at a time; `close` ends it.

    Raises:
        OSError: nothing can be written, such as on a full disk.
    """

    def __init__(self, path: Path, *, compressed: bool = True):
        check_installed()
        from array_record.python.array_record_module import ArrayRecordWriter

        self._writer = _written(lambda: ArrayRecordWriter(os.fspath(path), "group_size:1" + ("" if compressed else ",uncompressed")))

    def write(self, record: bytes) -> None:
        _written(lambda: self._writer.write(record))

    def close(self) -> None:
        _written(self._writer.close)


def new_records(path: Path, *, compressed: bool = True) -> closing[NewRecords]:
    """A file to write records to, which is closed in the end."""
    return closing(NewRecords(path, compressed=compressed))


def _written(write: Callable[[], Any]) -> Any:
    try:
        return write()
    except RuntimeError as error:  # which is all that ArrayRecord raises
        raise OSError(str(error).splitlines()[0]) from error
