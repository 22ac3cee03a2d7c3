"""A prepared data set, the format that training reads and `dim prepare` writes: ArrayRecord files of TFDS, an example a record.

    DATA/edit/dataset_info.json, features.json          what TFDS reads
    DATA/edit/edit-train.array_record-00000-of-00004    examples; their pictures are the bytes of picture files
    DATA/edit/train.stats.npz                           of each row: size, tokens, rule (`RowStats`)
    DATA/caption/...                                    the same of the other kind

In a bucket (gs://BUCKET/...) its files are copied to this machine when they are first needed.
"""

import io
import json
import zipfile
import zlib
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from PIL import Image

from dim_jax.data.example import KINDS, Example, Kind, LazyImage, RawExample, Split, Texts
from dim_jax.data.records import Records
from dim_jax.data.row_stats import COLUMNS, Countable, RowStats
from dim_jax.data.synthetic import SYNTHETIC, Synthetic
from dim_jax.errors import InputError, first_line, prefix_errors, require_packages
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.processing.pictures import read_picture
from dim_jax.storage.folders import new_file
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.local_cache import cached_path, check_disk_space
from dim_jax.storage.paths import AnyPath, as_path, entries, resolve_within

INFO = "dataset_info.json"
TEXTS, PICTURES = ("key", "rule", "blueprint"), ("source", "target")  # fields of an example; and `texts`, a list
AGAIN = "`sha256sum --check SHA256SUMS` beside it names damaged files. Copy or prepare the data set again."
SMALL_PICTURE_BYTES = 2**14  # bytes; smaller picture files are decoded once and cached, since the same pictures are in many edits
MAX_ROWS = 2**31 - 1  # of the row numbers in a plan
CACHED_PICTURES = 16_384  # in each process: 200 MB if they have 64 x 64 pixels


@runtime_checkable
class Source(Countable, Protocol):
    """Examples by index (`CachedExample`s in a cache), and their metadata, which needs no picture decoded."""

    def __getitem__(self, index: int) -> Any: ...

    def prefetch(self, indices: Int[np.ndarray, " n"]) -> None: ...  # of examples that are read next

    def rules(self) -> list[str]: ...

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None: ...


class SplitStats(NamedTuple):
    """`SPLIT.stats.npz`: statistics of the rows, their rules by number, and the digest of the tokenizer that counted ("": none)."""

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
        raise InputError(f"{path}: is not a prepared data set. Prepare it (dim prepare {path} OUT), and give OUT.")
    if not (path / kind / INFO).exists():
        raise InputError(f"{source}: holds no rows of the kind {kind}. Give its weight in data.mix to another kind.")
    return Dataset(path / kind, split)


def is_dataset(path: AnyPath) -> bool:
    """Whether a folder is a prepared data set."""
    return any((path / kind / INFO).exists() for kind in KINDS)


class Dataset:
    """The examples of one kind and split. Pickles as its arguments; every process opens the files itself.

    Raises:
        InputError: a package is missing, `folder` has a data set with other features, or there is no space for its files on this
            machine; and when an example is read: it is damaged.
    """

    def __init__(self, folder: AnyPath, split: str):
        require_packages("tensorflow_datasets", "importlib_resources", "array_record", extra="data", feature="A data set")
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        self._unreadable = (ValueError, DecodeError)
        self._parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        self._folder, self._split = folder, split
        self._record, self._shard = lru_cache(maxsize=2)(self._read), lru_cache(maxsize=None)(self._open_shard)
        self._prefetched = dict[int, bytes]()  # row -> its record, until it is read
        info = _read_info(folder)
        _check_features(info.features, folder)
        self._fields = [name for name in ("texts", *TEXTS, *PICTURES) if name in info.features]
        self._files, self._ends = list[AnyPath](), np.zeros(1, np.int64)  # _ends: the rows of a file end before it, after a 0
        if split not in info.splits:  # none of its rows can be used
            return
        try:
            lengths = np.array(info.splits[split].shard_lengths, np.int64)
            self._files = [resolve_within(folder, name) for name in sorted(info.splits[split].filenames)]
        except (KeyError, ValueError) as error:
            raise InputError(f"{folder / INFO}: the files of {split} cannot be read from it ({error}). {AGAIN}") from error
        if len(lengths) != len(self._files) or (lengths < 0).any() or sum(lengths.tolist()) > MAX_ROWS:
            raise InputError(f"{folder / INFO}: has {len(self._files)} files of {split} with {lengths.tolist()} rows. {AGAIN}")
        self._ends = np.cumsum([0, *lengths])
        check_disk_space(self._files)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        return self.raw(index).decoded(_decode)

    def prefetch(self, indices: Int[np.ndarray, " n"]) -> None:
        """Read the records of rows that are used next together, which takes a tenth of the time of one by one."""
        numbers = self._shard_of(indices)
        for number in np.unique(numbers).tolist():
            rows = indices[numbers == number]
            with suppress(InputError):  # a damaged record is named when it is read by itself
                self._prefetched.update(zip(rows.tolist(), self._shard(number).at((rows - self._ends[number]).tolist()), strict=True))

    def raw(self, index: int) -> RawExample:
        """An example with its pictures as undecoded files."""
        row, where = self._record(index), self._location(index)
        pictures = {name: LazyImage(f"{where}, {name}", partial(row.__getitem__, name)) for name in PICTURES if name in row}
        try:
            key, rule, blueprint = (row[name].decode() if name in row else "" for name in TEXTS)
            texts = tuple(text.decode() for text in row["texts"])
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: a text is not UTF-8 ({error}). Leave the row out (data.bad_samples).") from error
        if not any(text.strip() for text in (*texts, blueprint)):
            raise InputError(f"{where}: has no text. Leave the row out (data.bad_samples).")
        return RawExample(key, texts, blueprint or None, pictures.get("source"), pictures["target"], rule)

    def row_texts(self, index: int) -> Texts:
        row = self.raw(index)
        return Texts(row.texts, row.blueprint)

    def size(self, index: int) -> tuple[int, int]:
        stored = self._split_stats.rows
        return int(stored.width[index]), int(stored.height[index])

    def rules(self) -> list[str]:
        """The rule of every row; "" if the data set has no rules."""
        stored = self._split_stats
        return np.array(stored.rules, object)[stored.rule].tolist()

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None:
        """The statistics of `dim prepare`; None: it counted with another tokenizer."""
        stored = self._split_stats
        return stored.rows if tokenizer is None or tokenizer.digest == stored.tokenizer else None

    @cached_property
    def _split_stats(self) -> SplitStats:
        stats = read_stats(stats_path(self._folder, self._split))
        if len(stats.rows) != len(self):
            raise InputError(
                f"{self._folder}: {self._split}.stats.npz has {len(stats.rows)} rows, the data set {len(self)}. Prepare it again."
            )
        return stats

    def _read(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._location(index)}: there are {len(self)}.")
        number = int(self._shard_of(index))
        with prefix_errors(self._location(index)):
            record = self._prefetched.pop(index, None) or self._shard(number)[index - int(self._ends[number])]
        try:
            values = self._parse(record).features.feature  # what TFDS makes of it takes ten times as long
            row = {name: [*values[name].bytes_list.value] for name in self._fields}
            if missing := [name for name in self._fields if name != "texts" and len(row[name]) != 1]:
                raise ValueError(f"{', '.join(missing)}: missing, or of another type")
        except self._unreadable as error:
            raise InputError(
                f"{self._location(index)}: its record in {self._files[number].name} is not an example with the fields of features.json "
                f"({first_line(error)}). {AGAIN}"
            ) from error
        return {name: row[name] if name == "texts" else row[name][0] for name in self._fields}

    def _shard_of(self, indices: Any) -> Any:
        return np.searchsorted(self._ends, indices, "right") - 1

    def _open_shard(self, number: int) -> Records:
        records = Records(self._files[number], missing=AGAIN, damaged=AGAIN)
        if len(records) != (expected := int(self._ends[number + 1] - self._ends[number])):
            raise InputError(f"{records.path}: has {len(records)} rows, but {INFO} says {expected}. {AGAIN}")
        return records

    def _location(self, index: int) -> str:
        return f"{self._folder}, {self._split}, row {index + 1}"

    def __reduce__(self):
        return Dataset, (self._folder, self._split)


def stats_path(folder: AnyPath, split: str) -> AnyPath:
    return folder / f"{split}.stats.npz"


def write_stats(path: AnyPath, stats: SplitStats) -> None:
    """Write the file that `read_stats` reads; raises as `new_file`."""
    columns = {name: getattr(stats.rows, name) for name in COLUMNS}
    with new_file(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **columns, rule=stats.rule, rules=np.array(json.dumps(stats.rules)), tokenizer=np.array(stats.tokenizer))


def read_stats(path: AnyPath) -> SplitStats:
    """The statistics of a split.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            rows, rules, rule = RowStats(*(file[name] for name in COLUMNS)), json_loads(str(file["rules"])), file["rule"]
            numbers = (*(getattr(rows, name) for name in COLUMNS), rule)
            if any(column.dtype.kind != "i" or column.shape != (rule.size,) or (column < 0).any() for column in numbers):
                raise ValueError("columns are whole numbers, one for each row, and not negative")
            if ((rows.width > 0) != (rows.height > 0)).any():
                raise ValueError("a picture has no height, or no width")
            if not isinstance(rules, list) or not all(isinstance(name, str) for name in rules) or rule.max(initial=-1) >= len(rules):
                raise ValueError("rules are texts, and each row has the number of one")
            return SplitStats(rows, tuple(rules), rule, str(file["tokenizer"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Copy the data set again, or prepare it again.") from error


def _read_info(folder: AnyPath) -> Any:
    """The DatasetInfo of TFDS. Of a bucket the JSON files are copied to this machine.

    Raises:
        InputError: it cannot be read.
    """
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    for path in entries(folder, "*.json"):
        cached_path(path)
    try:
        return tfds.builder_from_directory(cached_path(folder / INFO).parent).info
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RecursionError, ParseError) as error:
        raise InputError(f"{folder}: {INFO} or features.json cannot be read ({first_line(error)}). {AGAIN}") from error


def _check_features(features: Any, folder: AnyPath) -> None:
    """Refuse a data set whose examples have other fields.

    Raises:
        InputError: names the fields that are missing, or of another type.
    """
    from tensorflow_datasets.core.features import FeaturesDict, Image, Sequence, Text

    if not isinstance(features, FeaturesDict):
        raise InputError(f"{folder}: its examples have no fields. Give a data set that `dim prepare` made.")
    needed = ("key", "texts", "target", *(("source",) if folder.name != "caption" else ()))
    if missing := [name for name in needed if name not in features]:
        raise InputError(f"{folder}: has no {', '.join(missing)}. Give a data set that `dim prepare` made.")
    kinds = dict.fromkeys(TEXTS, Text) | dict.fromkeys(PICTURES, Image) | {"texts": Sequence}
    texts: Any = features["texts"]
    wrong = [name for name, kind in kinds.items() if name in features and type(features[name]) is not kind]
    if wrong or not isinstance(texts.feature, Text):
        raise InputError(f"{folder / 'features.json'}: {', '.join(wrong or ['texts'])}: of another type than `dim prepare` writes. {AGAIN}")


def _decode(image: LazyImage) -> Image.Image:
    data = image.read()
    if len(data) > SMALL_PICTURE_BYTES:
        return read_picture(io.BytesIO(data), image.name)
    try:
        return _small_picture(data)
    except InputError as error:
        raise InputError(f"{image.name}{error}") from error


@lru_cache(CACHED_PICTURES)
def _small_picture(data: bytes) -> Image.Image:
    return read_picture(io.BytesIO(data), "")
