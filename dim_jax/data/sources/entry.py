"""A row of a published set, whatever its layout, and the examples that such rows make."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from PIL import Image

from dim_jax.data.facts import Told
from dim_jax.data.pairs import Example
from dim_jax.data.pictures import picture_size, read_picture


class Stored(NamedTuple):
    """A picture that has not been read: `name` stands in errors, `read` gives the bytes of its file."""

    name: str
    read: Callable[[], bytes]

    def picture(self) -> Image.Image:
        return read_picture(io.BytesIO(self.read()), self.name)

    def size(self) -> tuple[int, int]:
        return picture_size(io.BytesIO(self.read()), self.name)


class Entry(NamedTuple):
    """What a row says, its pictures unread; without `source` the texts are captions."""

    key: str
    texts: tuple[str, ...]
    blueprint: str | None
    source: Stored | None
    target: Stored


@runtime_checkable
class Layout(Protocol):
    """A set as it lies on disk: rows of one kind, by number."""

    def __len__(self) -> int: ...

    def entry(self, index: int) -> Entry: ...


@dataclass(frozen=True)
class Published:
    """The examples of some rows of a set; a source (`sources.Source`)."""

    layout: Layout
    rows: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self._entry(index)
        source = None if row.source is None else row.source.picture()
        rule = "caption" if source is None else "edit"
        return Example(source, row.target.picture(), rule, row.texts, row.blueprint, row.key)

    def told(self, index: int) -> Told:
        row = self._entry(index)
        return Told(row.texts, row.blueprint)

    def size(self, index: int) -> tuple[int, int]:
        row = self._entry(index)
        return (row.source or row.target).size()

    def rules(self) -> list[str]:
        """The sets name no rules: all rows are alike."""
        return [""] * len(self)

    def _entry(self, index: int) -> Entry:
        return self.layout.entry(int(self.rows[index]))
