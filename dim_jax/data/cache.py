"""What the frozen parts of a painter make of every row of a source, on disk: `dim cache` writes it, training reads it by row.

    cache.json                               what made it (dim_jax/training/fingerprint.py), and how hidden states are stored
    edit-DIM-Edit/part.json                  a part of the mixture: its source, number of rows, rows of a shard
    edit-DIM-Edit/00003-of-00400.array_record

A shard has for each of its rows a record with the latents, and after it one with the hidden states of each wording; the last record says
where each row begins. A record is laid out as a safetensors file.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import Float, Num

from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.dataset import Source
from dim_jax.data.example import Texts
from dim_jax.data.records import Records, new_records
from dim_jax.data.row_stats import RowStats
from dim_jax.errors import InputError
from dim_jax.storage.folders import new_file
from dim_jax.storage.paths import AnyPath, entries

Storage = Literal["float32", "bfloat16", "int8"]
STORAGES: tuple[Storage, ...] = get_args(Storage)
CACHE, PART = "cache.json", "part.json"
NOWHERE = -1  # a row that no record is of
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "I8": np.dtype(np.int8)}


class States(NamedTuple):
    """Hidden states of a turn as they are stored: `scale` is for int8 what 1 stands for, of each channel."""

    hidden: Num[np.ndarray, "t d"]
    scale: Float[np.ndarray, " d"] | None


def store(hidden: Num[np.ndarray, "t d"], how: Storage) -> States:
    """Hidden states in a dtype; in int8 each is at most half of its channel's `scale` away, which is 1/127 of its largest one."""
    if how != "int8":
        return States(hidden.astype(_DTYPES["F32" if how == "float32" else "BF16"]), None)
    exact = hidden.astype(np.float32)
    scale = np.maximum(np.abs(exact).max(0), np.float32(1e-30)) / 127
    return States(np.rint(exact / scale).astype(np.int8), scale)


def bytes_of(tokens: int, width: int, how: Storage) -> int:
    """The bytes of the hidden states of a turn."""
    return tokens * width * {"float32": 4, "bfloat16": 2, "int8": 1}[how] + (4 * width if how == "int8" else 0)


@dataclass(frozen=True)
class CachedExample:
    """A row of a cache.

    Attributes:
        key: names the pictures, as in an `Example`.
        told: its texts.
        edit: whether there is a source.
        target: latents of what to paint.
        source: latents of what to paint it from; None for a caption.
        states: the hidden states of the turn with one of the wordings.
    """

    key: str
    told: Texts
    edit: bool
    target: Float[np.ndarray, "h w c"]
    source: Float[np.ndarray, "h w c"] | None
    states: Callable[[str], States]


class Layout(NamedTuple):
    """How the rows of a part lie in shards."""

    folder: AnyPath
    rows: int
    shard_rows: int

    @property
    def shards(self) -> int:
        return math.ceil(self.rows / self.shard_rows)

    def path(self, shard: int) -> AnyPath:
        return self.folder / f"{shard:05}-of-{self.shards:05}.array_record"

    def of(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        there = {path.name for path in entries(self.folder)}
        return [shard for shard in range(self.shards) if self.path(shard).name not in there]


def part_folders(cache: AnyPath, parts: Sequence[str]) -> list[AnyPath]:
    """Where the rows of each part are, of parts named KIND:SOURCE; a source may move to another folder, but must keep its own name.

    Raises:
        InputError: two parts would lie in one place.
    """
    found = []
    for name in parts:
        kind, _, source = name.partition(":")
        folder = cache / f"{kind}-{Path(source).name}"
        if folder in found:
            raise InputError(f"{cache}: {name} and {parts[found.index(folder)]} would both be {folder.name}. Rename one of the sources.")
        found.append(folder)
    return found


def read_layout(folder: AnyPath, rows: int) -> Layout | None:
    """The layout of a part of so many rows; None: it is not there yet.

    Raises:
        InputError: part.json is damaged, or of another number of rows.
    """
    path = folder / PART
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text())
        layout = Layout(folder, known["rows"], known["shard_rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}). Remove the folder, and write it again (dim cache).") from error
    if layout.rows != rows:
        raise InputError(f"{folder}: cached of {layout.rows:,} rows, but the source has {rows:,}. Write another cache (dim cache --into).")
    return layout


def begin_layout(folder: AnyPath, source: str, rows: int, shard_rows: int) -> Layout:
    """A new part: what `read_layout` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / PART) as scratch:
        scratch.write_text(json.dumps({"source": source, "rows": rows, "shard_rows": shard_rows}) + "\n")
    return Layout(folder, rows, shard_rows)


def pack(arrays: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None) -> bytes:
    """A record."""
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(notes or {}))


def unpack(record: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and notes of a record that `pack` made, without a copy."""
    start = 8 + int.from_bytes(record[:8], "little")
    header = json.loads(record[8:start])
    notes = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        arrays[name] = np.frombuffer(record, dtype, math.prod(shape), start + entry["data_offsets"][0]).reshape(shape)
    return arrays, notes


def row_records(
    key: str, wordings: Mapping[str, States], target: Float[np.ndarray, "h w c"], source: Float[np.ndarray, "h w c"] | None
) -> list[bytes]:
    """The records of a row: its latents, and then the hidden states with each of its texts."""
    arrays = {"target": target} | ({} if source is None else {"source": source})
    notes = {"key": key, "wordings": json.dumps([_digest(text) for text in wordings])}
    states = ({name: array for name, array in stored._asdict().items() if array is not None} for stored in wordings.values())
    return [pack(arrays, notes), *map(pack, states)]


def bad_record(error: str) -> bytes:
    """The only record of a row that cannot be used."""
    return pack({}, {"error": error})


def write_shard(layout: Layout, shard: int, rows: Iterable[tuple[int, list[bytes]]]) -> None:
    """Write a whole shard, in place of whatever a killed call left of it; `rows` are numbers of rows with their records, in any order.

    Raises:
        InputError: it cannot be written, such as on a full disk.
    """
    path, of = layout.path(shard), layout.of(shard)
    first, count = np.full(len(of), NOWHERE, "<i8"), 0
    with new_file(path) as scratch, new_records(scratch, compressed=False) as file:
        for row, written in rows:
            first[row - of.start] = count
            for record in written:
                file.write(record)
            count += len(written)
        file.write(first.tobytes())


class CachedSource:
    """The rows of a source, with what was cached of them for its pictures. Pickles as its arguments.

    Args:
        layout: where they lie.
        rows: the source, for texts and whatever a plan asks.
        edit: whether its rows are edits.

    Raises:
        InputError: in reading a row: its shard is missing or damaged; it could not be used when it was cached; or its text was another one.
    """

    def __init__(self, layout: Layout, rows: Source, edit: bool):
        self._arguments = (layout, rows, edit)
        self._layout, self._rows, self._edit = self._arguments
        self._shard = lru_cache(maxsize=None)(self._opened)

    def __len__(self) -> int:
        return len(self._rows)

    def row_texts(self, index: int) -> Texts:
        return self._rows.row_texts(index)

    def size(self, index: int) -> tuple[int, int]:
        return self._rows.size(index)

    def rules(self) -> list[str]:
        return self._rows.rules()

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None:
        return self._rows.stats(tokenizer)

    def __getitem__(self, index: int) -> CachedExample:
        shard, place = divmod(index, self._layout.shard_rows)
        records, first = self._shard(shard)
        number = int(first[place])
        if number == NOWHERE:
            raise InputError(f"{records.path}: row {index + 1} of the source was left out as unusable when it was cached.")
        arrays, notes = unpack(records[number])
        if "error" in notes:
            raise InputError(notes["error"])
        wordings = json.loads(notes["wordings"])

        def states(text: str) -> States:
            if (digest := _digest(text)) not in wordings:
                raise InputError(
                    f"{records.path}: row {index + 1} of the source ({notes['key']}) had other texts when it was cached. Restore the "
                    "source, or write another cache (dim cache --into)."
                )
            found, _ = unpack(records[number + 1 + wordings.index(digest)])
            return States(found["hidden"], found.get("scale"))

        return CachedExample(notes["key"], self.row_texts(index), self._edit, arrays["target"], arrays.get("source"), states)

    def __reduce__(self):
        return CachedSource, self._arguments

    def _opened(self, shard: int) -> tuple[Records, np.ndarray]:
        """A shard, and of each of its rows the number of its first record."""
        again = "the same call of dim cache goes on."
        records = Records(self._layout.path(shard), made_by=f"The cache is not finished: {again}", mend=f"Remove this file; {again}")
        first = np.frombuffer(records[len(records) - 1], "<i8")
        if len(first) != len(self._layout.of(shard)):
            raise InputError(f"{records.path}: holds {len(first)} rows, not {len(self._layout.of(shard))}. Remove this file; {again}")
        return records, first


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
