"""UltraEdit: parquet files of edits, the pictures as encoded bytes in them.

    source_image, edited_image    struct of `bytes` (the file) and `path`
    edit_prompt                   the instruction

A parquet file is read by groups of rows: one row costs as much as its group. For many rounds in random order that is slow on a disk that
is not fast; the last groups are kept, so reading in order is quick. Source: huggingface.co/datasets/BleachNick/UltraEdit.
"""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dim_jax.data.stored import Entry, Stored
from dim_jax.errors import InputError, require

SOURCE, TARGET, TEXT = "source_image", "edited_image", "edit_prompt"


class UltraEdit:
    """The rows of all parquet files of a folder, in order of their paths. They are edits; there are no captions.

    Raises:
        InputError: `pyarrow` is missing, a file is damaged or lacks a column; and when a row is read, with its file and number: it has no
            instruction, or a picture cannot be read.
    """

    def __init__(self, folder: Path, kind: Literal["edit", "caption"]):
        require("pyarrow", extra="data", what="UltraEdit")
        self._files = sorted(folder.rglob("*.parquet")) if kind == "edit" else []
        rows, self._groups = [0], []
        for path in self._files:
            groups = _group_sizes(path)
            self._groups.append(np.cumsum([0, *groups]))
            rows.append(sum(groups))
        self._starts = np.cumsum(rows)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def entry(self, index: int) -> Entry:
        file = int(np.searchsorted(self._starts, index, "right")) - 1
        row = index - int(self._starts[file])
        group = int(np.searchsorted(self._groups[file], row, "right")) - 1
        path, place = self._files[file], row - int(self._groups[file][group])
        where = f"{path}, row {row + 1}"
        text = _value(path, group, TEXT, place)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: {TEXT} is {text!r}, but must be a text. Leave the row out (data.bad_samples).")
        source, target = (Stored(f"{where}, {column}", partial(_picture, path, group, column, place, where)) for column in (SOURCE, TARGET))
        return Entry(f"{path.stem}/{row}", (text,), None, source, target)


def _group_sizes(path: Path) -> list[int]:
    """Rows of each group."""
    with _opened(path) as file:
        columns = file.schema_arrow.names
        if missing := [name for name in (SOURCE, TARGET, TEXT) if name not in columns]:
            raise InputError(f"{path}: lacks {', '.join(missing)}; its columns are {', '.join(columns)}. Give files of UltraEdit.")
        return [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]


def _picture(path: Path, group: int, column: str, place: int, where: str) -> bytes:
    found = _value(path, group, column, place)
    if not (isinstance(found, dict) and isinstance(found.get("bytes"), bytes)):
        raise InputError(f"{where}: {column} holds no bytes of a picture. Leave the row out (data.bad_samples).")
    return found["bytes"]


def _value(path: Path, group: int, column: str, place: int) -> Any:
    return _column(path, group, column)[place].as_py()


@lru_cache(8)
def _column(path: Path, group: int, column: str) -> Any:
    from pyarrow import ArrowException

    with _opened(path) as file:
        try:
            return file.read_row_group(group, columns=[column]).column(0)
        except (ArrowException, OSError) as error:
            raise InputError(f"{path}: group {group} of its rows is damaged ({error}). Download it again.") from error


def _opened(path: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path, memory_map=True)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: is no parquet file, or damaged ({error}). Download it again.") from error
