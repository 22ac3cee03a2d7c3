"""UltraEdit: parquet files of edits, the pictures as encoded bytes in them.

    source_image, edited_image    struct of `bytes` (the file) and `path`
    edit_prompt                   the instruction

A column is read by row groups, since its pages are as large (pyarrow puts all pictures of a group into one page). A process caches one
group of each column, so reading in order is fast; in a bucket a group is one request. Source: huggingface.co/datasets/BleachNick/UltraEdit.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from dim_jax.data.example import Kind, LazyImage, RawExample
from dim_jax.datasets.layouts import Layout
from dim_jax.datasets.layouts.rows import ConcatenatedFile
from dim_jax.errors import InputError, prefix_errors, require_packages
from dim_jax.storage.paths import AnyPath, files_below, open_regular

AT_ONCE = 16  # files that are opened at the same time; in a bucket each takes a few requests
SOURCE, TARGET, TEXT = "source_image", "edited_image", "edit_prompt"


class UltraEditRows:
    """The rows of all parquet files of a folder, in order of their paths. They are edits; there are no captions.

    Raises:
        InputError: `pyarrow` is missing, a file is damaged or lacks a column; and when a row is read, with its file and number: it has no
            instruction, or a picture cannot be read.
    """

    def __init__(self, folder: AnyPath, kind: Kind, index_folder: AnyPath):
        del index_folder  # parquet files have an index of their own
        require_packages("pyarrow", extra="data", feature="UltraEdit")
        self._files = files_below(folder, "*.parquet") if kind == "edit" else []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._groups = [np.cumsum([0, *groups]) for groups in pool.map(_group_sizes, self._files)]
        self._starts = np.cumsum([0, *(int(groups[-1]) for groups in self._groups)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def raw(self, index: int) -> RawExample:
        file = int(np.searchsorted(self._starts, index, "right")) - 1
        row = index - int(self._starts[file])
        group = int(np.searchsorted(self._groups[file], row, "right")) - 1
        path, offset = self._files[file], row - int(self._groups[file][group])
        where = f"{path}, row {row + 1}"
        with prefix_errors(where):
            text = _value(path, group, TEXT, offset)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: {TEXT} is {text!r}, but must be a text. Leave the row out (--bad-samples).")
        source, target = (
            LazyImage(f"{where}, {column}", partial(_picture, path, group, column, offset, where)) for column in (SOURCE, TARGET)
        )
        return RawExample(f"{path.stem}/{row}", (text,), None, source, target)


def _group_sizes(path: AnyPath) -> list[int]:
    """Rows of each group."""
    file = _open_parquet(path)
    columns = [file.schema.column(number).path for number in range(len(file.schema))]
    if missing := [name for name in (f"{SOURCE}.bytes", f"{TARGET}.bytes", TEXT) if name not in columns]:
        raise InputError(f"{path}: lacks {', '.join(missing)}; its columns are {', '.join(columns)}. Give files of UltraEdit.")
    return [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]


def _picture(path: AnyPath, group: int, column: str, offset: int, where: str) -> bytes:
    with prefix_errors(where):
        value = _value(path, group, f"{column}.bytes", offset)  # only this leaf of the struct
    if not isinstance(value, dict) or not isinstance(value.get("bytes"), bytes):
        raise InputError(f"{where}: {column} has no bytes of a picture. Leave the row out (--bad-samples).")
    return value["bytes"]


# Column -> the group that was read last. Loader threads take turns, otherwise each would hold a group.
_last: dict[str, tuple[tuple[AnyPath, int], Any]] = {}
_turn = Lock()


def _value(path: AnyPath, group: int, column: str, offset: int) -> Any:
    from pyarrow import ArrowException

    with _turn:
        if column not in _last or _last[column][0] != (path, group):
            _last.pop(column, None)  # before the next is read, to hold only one
            try:
                _last[column] = (path, group), _open_parquet(path).read_row_group(group, columns=[column], use_threads=False).column(0)
            except (ArrowException, OSError) as error:
                raise InputError(f"{path}: group {group} of its rows is damaged ({error}). Download it again.") from error
        try:
            return _last[column][1][offset].as_py()
        except UnicodeDecodeError as error:
            raise InputError(f"{column} is not UTF-8 ({error}). Leave the row out (--bad-samples).") from error


@lru_cache(64)
def _open_parquet(path: AnyPath) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        if not isinstance(path, Path):
            return parquet.ParquetFile(ConcatenatedFile([path]))
        with open_regular(path):  # not mapped: an unreadable part of a mapped file would kill the process
            return parquet.ParquetFile(path, memory_map=False)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a parquet file, or damaged ({error}). Download it again.") from error


LAYOUT = Layout(lambda path: bool(files_below(path, "*.parquet")), UltraEditRows, "*.parquet of source_image, edited_image, edit_prompt")
