"""A prepared data set, the one format that training reads (`dim prepare` writes it): ArrayRecord, an example a record, as TFDS has it.

    DATA/edit/dataset_info.json, features.json          what TFDS reads
    DATA/edit/edit-train.array_record-00000-of-00004    examples; their pictures are the bytes of picture files
    DATA/edit/train.stats.npz                           of each row: size, tokens, rule (`RowStats`)
    DATA/caption/...                                    the same of the other kind

It lies in a folder, or in a bucket (gs://BUCKET/...), whose files are copied to this machine when they are first needed.
"""

import io
import json
import zipfile
import zlib
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from PIL import Image

from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.example import KINDS, Example, Kind, LazyImage, RawExample, Split, Texts
from dim_jax.data.pictures import read_picture
from dim_jax.data.row_stats import COLUMNS, Countable, RowStats
from dim_jax.data.synthetic import SYNTHETIC, Synthetic
from dim_jax.errors import InputError, require
from dim_jax.storage.folders import new_file
from dim_jax.storage.local_cache import cached_path, check_disk_space
from dim_jax.storage.paths import AnyPath, as_path, entries

INFO = "dataset_info.json"
SMALL = 2**14  # bytes of a picture file; smaller ones are decoded once and kept, since few pictures are in many edits
KEPT = 16_384  # of those in each process: 200 MB of 64 x 64 pixels


@runtime_checkable
class Source(Countable, Protocol):
    """Examples by index (a cache has `CachedExample`s), and what can be known of them without decoding pictures."""

    def __getitem__(self, index: int) -> Any: ...

    def rules(self) -> list[str]: ...

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None: ...


class StoredStats(NamedTuple):
    """`SPLIT.stats.npz`: the numbers of a split's rows, their rules by number, and what counted the tokens (a digest; "": nothing did)."""

    rows: RowStats
    rules: tuple[str, ...]
    rule: Int[np.ndarray, " n"]
    tokenizer: str


def open_source(source: str, kind: Kind, *, split: Split, side: int) -> Source:
    """The examples of one kind in a prepared data set, or "synthetic" ones (pictures of `side` pixels).

    Raises:
        InputError: there is no such data set, or it has no rows of this kind.
    """
    if source == SYNTHETIC:
        return Synthetic(kind, side)
    path = as_path(source)
    if not path.exists():
        raise InputError(f'{path}: there is no such data set. Give a folder that `dim prepare` made, or "{SYNTHETIC}".')
    if not is_dataset(path):
        raise InputError(f"{path}: is not a prepared data set. Make one of it (dim prepare {path} OUT), and give that.")
    if not (path / kind / INFO).exists():
        raise InputError(f"{source}: holds no rows of the kind {kind}. Give its weight in data.mix to another kind.")
    return Dataset(path / kind, split)


def is_dataset(path: AnyPath) -> bool:
    """Whether a folder holds a prepared data set."""
    return any((path / kind / INFO).exists() for kind in KINDS)


class Dataset:
    """The examples of one kind and split. Pickles as its arguments, and opens its files in every process anew.

    Raises:
        InputError: a package is missing, `folder` holds a data set of other features, or its files have no space on this
            machine; and when an example is read, with its number: it is damaged.
    """

    def __init__(self, folder: AnyPath, split: str):
        require("tensorflow_datasets", "importlib_resources", "array_record", extra="data", what="A data set")
        import tensorflow_datasets as tfds

        self._folder, self._split = folder, split
        builder = tfds.builder_from_directory(_described(folder))
        self._record = lru_cache(maxsize=2)(self._read)
        features: Any = builder.info.features
        if missing := [name for name in ("key", "texts", "target") if name not in features]:
            raise InputError(f"{folder}: has no {', '.join(missing)}. Give a data set that `dim prepare` made.")
        self._files, self._ends, self._records = list[AnyPath](), np.zeros(1, np.int64), ()
        if split not in builder.info.splits:  # none of its rows can be used
            return
        info = builder.info.splits[split]
        self._files = [folder / name for name in sorted(info.filenames)]
        self._ends = np.cumsum(info.shard_lengths)
        check_disk_space(self._files)
        skip = {name: tfds.decode.SkipDecoding() for name in ("source", "target") if name in features}
        self._records: Any = builder.as_data_source(split, decoders=skip)  # pyright: ignore[reportCallIssue]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        return self.raw(index).decoded(_decoded)

    def raw(self, index: int) -> RawExample:
        """An example, its pictures still files."""
        row, where = self._record(index), self._where(index)
        pictures = {name: LazyImage(f"{where}, {name}", partial(row.__getitem__, name)) for name in ("source", "target") if name in row}
        try:
            key, rule, blueprint = (row[name].decode() if name in row else "" for name in ("key", "rule", "blueprint"))
            texts = tuple(text.decode() for text in row["texts"])
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: a text is not UTF-8 ({error}). Leave the row out (data.bad_samples).") from error
        return RawExample(key, texts, blueprint or None, pictures.get("source"), pictures["target"], rule)

    def row_texts(self, index: int) -> Texts:
        row = self.raw(index)
        return Texts(row.texts, row.blueprint)

    def size(self, index: int) -> tuple[int, int]:
        stored = self._stored.rows
        return int(stored.width[index]), int(stored.height[index])

    def rules(self) -> list[str]:
        """The rule of every row; "" for all, where the data set names none."""
        stored = self._stored
        return np.array(stored.rules, object)[stored.rule].tolist()

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None:
        """What `dim prepare` counted; None: it did not count with this tokenizer."""
        stored = self._stored
        return stored.rows if tokenizer is None or tokenizer.digest == stored.tokenizer else None

    @cached_property
    def _stored(self) -> StoredStats:
        found = read_stats(stats_path(self._folder, self._split))
        if len(found.rows) != len(self):
            raise InputError(f"{self._folder}: {self._split}.stats.npz is of {len(found.rows)} rows, not {len(self)}. Prepare it again.")
        return found

    def _read(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._where(index)}: there are {len(self)}.")
        cached_path(self._files[int(np.searchsorted(self._ends, index, "right"))])
        try:
            return self._records[index]
        except RuntimeError as error:
            raise InputError(
                f"{self._where(index)}: damaged ({str(error).splitlines()[0]}). Which file it is shows `sha256sum --check SHA256SUMS` "
                "there. Copy or prepare it again."
            ) from error

    def _where(self, index: int) -> str:
        return f"{self._folder}, {self._split}, row {index + 1}"

    def __reduce__(self):
        return Dataset, (self._folder, self._split)


def stats_path(folder: AnyPath, split: str) -> AnyPath:
    return folder / f"{split}.stats.npz"


def write_stats(path: AnyPath, stats: StoredStats) -> None:
    """Write what `read_stats` reads; raises as `new_file`."""
    columns = {name: getattr(stats.rows, name) for name in COLUMNS}
    with new_file(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **columns, rule=stats.rule, rules=np.array(json.dumps(stats.rules)), tokenizer=np.array(stats.tokenizer))


def read_stats(path: AnyPath) -> StoredStats:
    """
    Raises:
        InputError: there is no such file, or it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            rows = RowStats(*(file[name] for name in COLUMNS))
            return StoredStats(rows, tuple(json.loads(str(file["rules"]))), file["rule"], str(file["tokenizer"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Copy the data set again, or prepare it again.") from error


def _described(folder: AnyPath) -> Path:
    """The folder as TFDS can open it: of one in a bucket, copies of what is said of its rows; their files will lie beside."""
    for path in entries(folder, "*.json"):
        cached_path(path)
    return cached_path(folder / INFO).parent


def _decoded(image: LazyImage) -> Image.Image:
    data = image.read()
    if len(data) > SMALL:
        return read_picture(io.BytesIO(data), image.name)
    try:
        return _small_picture(data)
    except InputError as error:
        raise InputError(f"{image.name}{error}") from error


@lru_cache(KEPT)
def _small_picture(data: bytes) -> Image.Image:
    return read_picture(io.BytesIO(data), "")
