"""A cache of the outputs of the frozen parts for every row of a source: `dim cache` writes it, training reads it by row.

    cache.json                               its fingerprint (dim_jax/training/fingerprint.py), and the dtype of hidden states
    edit-DIM-Edit/part.json                  a component of the mixture: its source, number of rows, rows of a shard
    edit-DIM-Edit/00003-of-00400.array_record

For each of its rows a shard has a record with the latents, then a record with the hidden states of each prompt. The last record has the
number of each row's first record. A record has the layout of a safetensors file.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import Float, Int, Num

from dim_jax.data.dataset import Source
from dim_jax.data.example import Texts
from dim_jax.data.records import Records, new_records
from dim_jax.data.row_stats import RowStats
from dim_jax.errors import InputError, check, first_line, input_errors
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.storage.folders import new_file, write_json
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import AnyPath, entries, read_object

HiddenDtype = Literal["float32", "bfloat16", "int8"]
HIDDEN_DTYPES: tuple[HiddenDtype, ...] = get_args(HiddenDtype)
CACHE_FILE, PART_FILE = "cache.json", "part.json"
AGAIN = "call dim cache again, and it resumes."
NO_RECORD = -1  # a row without records
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "I8": np.dtype(np.int8)}


class HiddenStates(NamedTuple):
    """Hidden states of a turn as they are stored; `scale` is the value of an int8 step in each channel, else None."""

    hidden: Num[np.ndarray, "t d"]
    scale: Float[np.ndarray, " d"] | None


def quantize(hidden: Num[np.ndarray, "t d"], dtype: HiddenDtype) -> HiddenStates:
    """Hidden states in a dtype. In int8 the error is at most half of the channel's `scale`, which is 1/127 of its largest value."""
    if dtype != "int8":
        return HiddenStates(hidden.astype(_DTYPES["F32" if dtype == "float32" else "BF16"]), None)
    exact = hidden.astype(np.float32)
    scale = np.maximum(np.abs(exact).max(0), np.float32(1e-30)) / 127
    return HiddenStates(np.rint(exact / scale).astype(np.int8), scale)


def hidden_states_nbytes(tokens: int, width: int, dtype: HiddenDtype) -> int:
    """Bytes of the hidden states of a turn."""
    return tokens * width * {"float32": 4, "bfloat16": 2, "int8": 1}[dtype] + (4 * width if dtype == "int8" else 0)


@dataclass(frozen=True)
class CachedExample:
    """A row of a cache.

    Attributes:
        key: names the pictures, as in an `Example`.
        texts: its texts and blueprint.
        edit: whether there is a source.
        target: latents of the target picture.
        source: latents of the source picture; None for a caption.
        states: prompt -> the hidden states of its turn.
    """

    key: str
    texts: Texts
    edit: bool
    target: Float[np.ndarray, "h w c"]
    source: Float[np.ndarray, "h w c"] | None
    states: Callable[[str], HiddenStates]


class ShardLayout(NamedTuple):
    """The shards of a component of the mixture."""

    folder: AnyPath
    rows: int
    shard_rows: int

    @property
    def shards(self) -> int:
        return math.ceil(self.rows / self.shard_rows)

    def path(self, shard: int) -> AnyPath:
        return self.folder / f"{shard:05}-of-{self.shards:05}.array_record"

    def shard_range(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def missing(self) -> list[int]:
        """The shards that are not written yet."""
        existing = {path.name for path in entries(self.folder)}
        return [shard for shard in range(self.shards) if self.path(shard).name not in existing]


def component_folders(cache: AnyPath, names: Sequence[str]) -> list[AnyPath]:
    """The folder of each component (KIND:SOURCE). It has the name of the source alone, so that a source may move to another folder.

    Raises:
        InputError: two components would have the same folder.
    """
    folders = []
    for name in names:
        kind, _, source = name.partition(":")
        folder = cache / f"{kind}-{Path(source).name}"
        if folder in folders:
            raise InputError(
                f"{cache}: {name} and {names[folders.index(folder)]} would both be cached in {folder.name}. Rename one of the sources."
            )
        folders.append(folder)
    return folders


def read_shard_layout(folder: AnyPath, rows: int) -> ShardLayout | None:
    """The layout of a component with `rows` rows; None: it is not written yet.

    Raises:
        InputError: part.json is damaged, or has another number of rows.
    """
    path = folder / PART_FILE
    if not path.exists():
        return None
    fields = read_object(path)
    layout = ShardLayout(folder, fields.get("rows", 0), fields.get("shard_rows", 0))
    if not all(type(number) is int and number > 0 for number in layout[1:]):
        raise InputError(
            f"{path}: is damaged (rows and shard_rows must be whole numbers from 1 on). Remove the folder, and write it again."
        )
    check(layout.rows == rows, f"{folder}: has {layout.rows:,} rows, but the source has {rows:,}. Write another cache (dim cache --into).")
    return layout


def create_shard_layout(folder: AnyPath, source: str, rows: int, shard_rows: int) -> ShardLayout:
    """Write the part.json of a new component, which `read_shard_layout` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PART_FILE, {"source": source, "rows": rows, "shard_rows": shard_rows}, indent=None)
    return ShardLayout(folder, rows, shard_rows)


def pack(arrays: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None) -> bytes:
    """A record of arrays and notes (texts)."""
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(notes or {}))


def unpack(record: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and notes of a record that `pack` made, without a copy."""
    start = 8 + int.from_bytes(record[:8], "little")
    header = json_loads(record[8:start])
    notes = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        arrays[name] = np.frombuffer(record, dtype, math.prod(shape), start + entry["data_offsets"][0]).reshape(shape)
    return arrays, notes


def row_records(
    key: str, prompts: Mapping[str, HiddenStates], target: Float[np.ndarray, "h w c"], source: Float[np.ndarray, "h w c"] | None
) -> list[bytes]:
    """The records of a row: its latents, then the hidden states of each prompt."""
    arrays = {"target": target} | ({} if source is None else {"source": source})
    notes = {"key": key, "wordings": json.dumps([_digest(text) for text in prompts])}
    states = ({name: array for name, array in stored._asdict().items() if array is not None} for stored in prompts.values())
    return [pack(arrays, notes), *map(pack, states)]


def bad_record(error: str) -> bytes:
    """The record of a row that cannot be used."""
    return pack({}, {"error": error})


def write_shard(layout: ShardLayout, shard: int, rows: Iterable[tuple[int, list[bytes]]]) -> None:
    """Write a shard from (number of a row, its records), in any order.

    Raises:
        InputError: it cannot be written, such as on a full disk.
    """
    path, shard_rows = layout.path(shard), layout.shard_range(shard)
    first, count = np.full(len(shard_rows), NO_RECORD, "<i8"), 0
    with new_file(path) as scratch, new_records(scratch, compressed=False) as file:
        for row, records in rows:
            first[row - shard_rows.start] = count
            for record in records:
                file.write(record)
            count += len(records)
        file.write(first.tobytes())


class CachedSource:
    """The rows of a source, with cached latents and hidden states instead of pictures. Pickles as its arguments.

    Args:
        layout: of the shards.
        rows: the source, for texts and row statistics.
        edit: whether its rows are edits.

    Raises:
        InputError: when a row is read: its shard is missing or damaged, the row could not be cached, or it was cached with other texts.
    """

    def __init__(self, layout: ShardLayout, rows: Source, edit: bool):
        self._arguments = (layout, rows, edit)
        self._layout, self._rows, self._edit = self._arguments
        self._shard = lru_cache(maxsize=None)(self._open_shard)

    def __len__(self) -> int:
        return len(self._rows)

    def row_texts(self, index: int) -> Texts:
        return self._rows.row_texts(index)

    def size(self, index: int) -> tuple[int, int]:
        return self._rows.size(index)

    def prefetch(self, indices: Int[np.ndarray, " n"]) -> None:
        self._rows.prefetch(indices)  # the texts; hidden states and latents are large

    def rules(self) -> list[str]:
        return self._rows.rules()

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None:
        return self._rows.stats(tokenizer)

    def __getitem__(self, index: int) -> CachedExample:
        shard, offset = divmod(index, self._layout.shard_rows)
        records, first = self._shard(shard)
        number = int(first[offset])
        check(
            number != NO_RECORD,
            f"{records.path}: row {index + 1} of the source could not be used when the cache was written. Repair "
            "the row, and write another cache (dim cache --into).",
        )
        with _damaged(records.path):
            arrays, notes = unpack(records[number])
            if "error" in notes:
                raise InputError(notes["error"])
            digests, key, target = list(json_loads(notes["wordings"])), notes["key"], arrays["target"]

        def states(text: str) -> HiddenStates:
            if (digest := _digest(text)) not in digests:
                raise InputError(
                    f"{records.path}: row {index + 1} of the source ({key}) had other texts when it was cached. Restore the "
                    "source, or write another cache (dim cache --into)."
                )
            with _damaged(records.path):
                stored, _ = unpack(records[number + 1 + digests.index(digest)])
                return HiddenStates(stored["hidden"], stored.get("scale"))

        return CachedExample(key, self.row_texts(index), self._edit, target, arrays.get("source"), states)

    def __reduce__(self):
        return CachedSource, self._arguments

    def _open_shard(self, shard: int) -> tuple[Records, np.ndarray]:
        """A shard, and the number of the first record of each of its rows."""
        records = Records(self._layout.path(shard), missing=f"The cache is not finished: {AGAIN}", damaged=f"Remove this file; {AGAIN}")
        with _damaged(records.path):
            first = np.frombuffer(records[len(records) - 1], "<i8")
        check(
            len(first) == len(self._layout.shard_range(shard)),
            f"{records.path}: holds {len(first)} rows, not {len(self._layout.shard_range(shard))}. Remove this file; {AGAIN}",
        )
        return records, first


def _damaged(path: AnyPath) -> AbstractContextManager[None]:
    """Turns errors of records that `dim cache` did not write, such as of another program, into an InputError."""
    return input_errors(
        lambda error: f"{path}: damaged (its records are not those of a cache: {first_line(error)}). Remove this file; {AGAIN}",
        *(ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
