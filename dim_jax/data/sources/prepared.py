"""A folder of TFDS that the builders wrote (`data/builders`): ArrayRecord, an example a record, read one by one.

DATA_DIR/dim_edit                the data set: its kinds, of each the highest version
DATA_DIR/dim_edit/edit/1.0.0     one version of one kind
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dim_jax.data.pairs import Split
from dim_jax.data.raw_example import LazyImage, RawExample
from dim_jax.data.sources.entry import ExampleDataset
from dim_jax.errors import InputError, require
from dim_jax.folders import Kind
from dim_jax.local_cache import cached_path, check_disk_space
from dim_jax.paths import AnyPath, entries, resolved

INFO = "dataset_info.json"
VERSION = re.compile(r"\d+\.\d+\.\d+")
NEEDED = ("key", "texts", "target")


PREPARED = Kind("data set of TFDS", lambda folder: (folder / INFO).exists())


def is_prepared(path: AnyPath, kinds: Iterable[str]) -> bool:
    """Whether a folder is one of TFDS: of a data set with one of these kinds, or of one version of it."""
    return (path / INFO).exists() or any((one / INFO).exists() for kind in kinds for one in _versions(path / kind))


def open_prepared(path: AnyPath, kind: Literal["edit", "caption"], split: Split) -> "Prepared":
    """The examples of one kind and split; maybe none.

    Raises:
        InputError: `tensorflow_datasets` is missing, or it is a data set of other features than the builders'.
    """
    versions = [path] if (path / INFO).exists() else _versions(path / kind)
    found = [one for one in map(resolved, versions) if one.parent.name == kind]
    layout = Records(max(found, key=lambda one: [int(part) for part in one.name.split(".")], default=None), split)
    return Prepared(layout, np.arange(len(layout)))


def _versions(folder: AnyPath) -> list[AnyPath]:
    return [one for one in entries(folder) if VERSION.fullmatch(one.name)]


def described(folder: AnyPath) -> Path:
    """The folder of a version as TFDS can open it: of one in a bucket, a copy of what is said of its rows; their files will lie beside."""
    for path in entries(folder, "*.json"):
        cached_path(path)
    return cached_path(folder / INFO).parent


class Records:
    """The rows of a split of one version, by number; without a folder there are none. Pickles as its arguments, and opens its files in
    every process anew. In a bucket, a file is fetched when the first of its rows is asked for.

    Raises:
        InputError: as `open_prepared`, or there is no space for the files; and when a row is read, with its number: it is damaged.
    """

    def __init__(self, folder: AnyPath | None, split: Split):
        require("tensorflow_datasets", "importlib_resources", "array_record", extra="tfds", what="A data set of TFDS")
        import tensorflow_datasets as tfds

        self._folder, self._split, self.ruled = folder, split, False
        self._rows: Sequence[Any] = ()
        self._files, self._starts = list[AnyPath](), np.zeros(1, np.int64)
        self._row = lru_cache(maxsize=2)(self._read)  # a row's texts and its size are asked for one after the other
        if folder is None:
            return
        builder = tfds.builder_from_directory(described(folder))
        features: Any = builder.info.features
        if missing := [name for name in NEEDED if name not in features]:
            raise InputError(f"{folder}: has no {', '.join(missing)}. Give a data set of `dim build-data tfds`.")
        self.ruled = "rule" in features
        skip = {name: tfds.decode.SkipDecoding() for name in ("source", "target") if name in features}
        if split in builder.info.splits:
            info = builder.info.splits[split]
            self._files = [folder / name for name in sorted(info.filenames)]
            self._starts = np.cumsum([0, *info.shard_lengths])
            check_disk_space(self._files)
            self._rows = builder.as_data_source(split, decoders=skip)  # pyright: ignore[reportCallIssue]

    def __len__(self) -> int:
        return len(self._rows)

    def entry(self, index: int) -> RawExample:
        row, where = self._row(index), f"{self._folder}, {self._split}, row {index + 1}"
        pictures = {name: LazyImage(f"{where}, {name}", partial(row.__getitem__, name)) for name in ("source", "target") if name in row}
        try:
            texts = tuple(text.decode() for text in row["texts"])
            blueprint = row["blueprint"].decode() if "blueprint" in row else None
            key, rule = row["key"].decode(), row["rule"].decode() if self.ruled else ""
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: a text is no UTF-8 ({error}). Leave the row out (data.bad_samples).") from error
        return RawExample(key, texts, blueprint, pictures.get("source"), pictures["target"], rule)

    def _read(self, index: int) -> dict[str, Any]:
        cached_path(self._files[int(np.searchsorted(self._starts, index, "right")) - 1])
        try:
            return self._rows[index]
        except RuntimeError as error:
            raise InputError(
                f"{self._folder}, {self._split}, row {index + 1}: damaged ({str(error).splitlines()[0]}). Which file it is shows "
                f"`sha256sum --check SHA256SUMS` there. Copy or build it again."
            ) from error

    def __reduce__(self):
        return Records, (self._folder, self._split)


class Prepared(ExampleDataset):
    """The examples of a split; a source."""

    def rules(self) -> list[str]:
        ruled = isinstance(self.layout, Records) and self.layout.ruled
        return [self.entry(row).rule for row in range(len(self))] if ruled else super().rules()
