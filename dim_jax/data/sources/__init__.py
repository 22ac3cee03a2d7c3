"""Where examples come from: one spelling for each source, whatever its layout on disk.

    synthetic                  random pictures and words
    data/emoji                 a folder of `dim build-data`: ArrayRecord (data/pairs.py)
    data/DIM-Edit              jsonl files, and pictures in folders or archives (dim.py here)
    data/UltraEdit             parquet files (ultra_edit.py)
    data/ShareGPT-4o-Image     JSON files, and pictures in folders or archives (sharegpt4o.py)
    data/tfds/dim_edit         what our TFDS builders wrote: ArrayRecord (prepared.py)

Each lies in a folder, or in a bucket (gs://BUCKET/...). It gives its examples by index, one at a time, and travels by pickle: it opens its
files in every process anew. The published sets have no test split, so every 500th of their rows is held out.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from dim_jax.data.pairs import Pairs, Split
from dim_jax.data.row_stats import Countable
from dim_jax.data.sources.dim import Dim
from dim_jax.data.sources.entry import ExampleDataset, Layout
from dim_jax.data.sources.prepared import is_prepared, open_prepared
from dim_jax.data.sources.sharegpt4o import FILES, ShareGPT4o
from dim_jax.data.sources.ultra_edit import UltraEdit
from dim_jax.data.synthetic import SYNTHETIC, Synthetic
from dim_jax.errors import InputError
from dim_jax.paths import AnyPath, as_path, entries, files_below

Kind = Literal["edit", "caption"]
KINDS: tuple[Kind, ...] = ("edit", "caption")
HELD_OUT = 500  # one row of so many


@runtime_checkable
class Source(Countable, Protocol):
    """Examples by index (a cache has `CachedExample`s). `told` and `size` say of a row what can be known without decoding its pictures,
    `rules` what rule it is of."""

    def __getitem__(self, index: int) -> Any: ...

    def rules(self) -> list[str]: ...


def open_source(source: str, kind: Kind, *, split: Split, side: int, index: str = "") -> Source:
    """The examples of one kind in a source: a folder or a jsonl file, also in a bucket, or "synthetic" (pictures of `side` pixels).

    `index` is the folder that `dim index` wrote to, where that is not the source's own.

    Raises:
        InputError: there is no such folder or nothing in it that is known, or it has no rows of this kind.
    """
    if source == SYNTHETIC:
        return Synthetic(kind, side)
    found = open_split(as_path(source), kind, split, index_folder(source, index))
    if not len(found):
        raise InputError(f"{source}: holds no rows of the kind {kind}. Give its weight in data.mix to another kind.")
    return found


def kinds_of(source: str, index: str = "") -> list[Kind]:
    """The kinds of which a source has rows; raises as `open_source`."""
    return [kind for kind in KINDS if len(open_split(as_path(source), kind, "train", index_folder(source, index)))]


def as_kind(name: str) -> Kind:
    """Refuse what is no kind.

    Raises:
        InputError: `name` is none of `KINDS`.
    """
    for kind in KINDS:
        if name == kind:
            return kind
    raise InputError(f'data.mix has the kind "{name}", but kinds are {" and ".join(KINDS)}.')


def index_folder(source: str, index: str = "") -> AnyPath:
    """Where `dim index` keeps what it knows of a source: in it or beside it, or under its name in the folder `index`."""
    path = as_path(source)
    return path / "index" if path.is_dir() and not index else (as_path(index) if index else path.parent) / f"{path.name}.index"


def open_split(path: AnyPath, kind: Kind, split: Split, index: AnyPath) -> Source:
    """The examples of one kind and split; maybe none."""
    if not path.exists():
        raise InputError(f'{path}: there is no such source. Give a folder of data, or "{SYNTHETIC}".')
    if path.is_dir():
        if entries(path, "*.array_record"):
            return Pairs(path, split, kind)
        if is_prepared(path, KINDS):
            return open_prepared(path, kind, split)
    layout = _layout(path, kind, index)
    rows, every = np.arange(len(layout)), min(HELD_OUT, len(layout))
    held_out = rows % max(every, 1) == every - 1
    return ExampleDataset(layout, rows[held_out if split == "test" or every == 1 else ~held_out])


def _layout(path: AnyPath, kind: Kind, index: AnyPath) -> Layout:
    if path.is_file() or entries(path, "*.jsonl"):
        return Dim(path, kind, index)
    if any((path / name).exists() for name in FILES.values()):
        return ShareGPT4o(path, kind, index)
    if files_below(path, "*.parquet"):
        return UltraEdit(path, kind)
    raise InputError(
        f"{path}: no data set that is known here. Known are folders of `dim build-data`, and those with jsonl files (DIM), parquet files "
        f"(UltraEdit), or {' or '.join(FILES.values())} (ShareGPT-4o-Image)."
    )
