"""The layouts that `dim prepare` reads, one file each. To add a data set, add a file here.

Each file has a `LAYOUT`, which recognises a folder, names its splits and opens its rows (see `Layout`).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from dim_jax.data.example import Kind, RawExample
from dim_jax.errors import InputError, check
from dim_jax.plugins import load_plugins
from dim_jax.storage.paths import AnyPath

HELD_OUT = 500  # one row of this many is held out if a data set has no test split of its own


class Rows(Protocol):
    """Rows of one kind, by number; `InputError`s name file and line."""

    def __len__(self) -> int: ...

    def raw(self, index: int) -> RawExample: ...


class Layout(NamedTuple):
    """A layout.

    Attributes:
        recognises: whether a folder (or a file) has this layout; it may only look at names.
        open: opens the rows of one kind, perhaps none, from the folder, the kind, and a folder for the index of its archives.
            A layout with splits of its own takes the split too.
        splits: its own splits; none: every 500th row is held out.
        expects: the files of such a folder, for people.
        kinds: of the rows that it may have.
    """

    recognises: Callable[[AnyPath], bool]
    open: Callable[..., Rows]
    expects: str
    splits: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ("edit", "caption")


class SplitRows(NamedTuple):
    """Some rows of a layout, in order."""

    rows: Rows
    numbers: Int[np.ndarray, " n"]

    def raw(self, index: int) -> RawExample:
        return self.rows.raw(int(self.numbers[index]))


@cache
def layouts() -> dict[str, Layout]:
    """Every layout by its name, which is its file's."""
    return load_plugins(__name__, "LAYOUT")


def layout_of(path: AnyPath) -> str:
    """The name of a folder's layout. Raises InputError if there is no such folder, it has no known layout, or several layouts match."""
    check(path.exists(), f"{path}: there is no such folder or file. Give the data set as it was downloaded.")
    matches = [name for name, layout in layouts().items() if layout.recognises(path)]
    if not matches:
        expected = "; ".join(f"{name} has {layout.expects}" for name, layout in layouts().items())
        raise InputError(f"{path}: has no known layout. {expected}.")
    if len(matches) > 1:
        raise InputError(f"{path}: may be {' or '.join(matches)}. Give the layout (--layout), or put the sets into folders of their own.")
    return matches[0]


def open_splits(path: AnyPath, name: str, kind: Kind, index_folder: AnyPath) -> dict[str, SplitRows]:
    """The rows of one kind by split; splits without rows are left out."""
    layout = layouts()[name]
    if kind not in layout.kinds:
        return {}
    if layout.splits:
        opened: dict[str, Any] = {split: layout.open(path, kind, index_folder, split) for split in layout.splits}
        return {split: SplitRows(rows, np.arange(len(rows))) for split, rows in opened.items() if len(rows)}
    rows = layout.open(path, kind, index_folder)
    numbers, every = np.arange(len(rows)), min(HELD_OUT, len(rows))
    held_out = numbers % max(every, 1) == every - 1
    if every == 1:  # the only row is in both
        return {"train": SplitRows(rows, numbers), "test": SplitRows(rows, numbers)}
    return {"train": SplitRows(rows, numbers[~held_out]), "test": SplitRows(rows, numbers[held_out])} if len(rows) else {}
