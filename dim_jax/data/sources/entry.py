"""The examples that the rows of a published set make, whatever its layout."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from dim_jax.data.pairs import Example
from dim_jax.data.raw_example import RawExample
from dim_jax.data.row_stats import Texts


@runtime_checkable
class Layout(Protocol):
    """A set as it lies on disk: rows of one kind, by number."""

    def __len__(self) -> int: ...

    def entry(self, index: int) -> RawExample: ...


@dataclass(frozen=True)
class ExampleDataset:
    """The examples of some rows of a set; a source (`sources.Source`)."""

    layout: Layout
    rows: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.entry(index)
        source = None if row.source is None else row.source.picture()
        rule = "caption" if source is None else "edit"
        return Example(source, row.target.picture(), row.rule or rule, row.texts, row.blueprint, row.key)

    def row_texts(self, index: int) -> Texts:
        row = self.entry(index)
        return Texts(row.texts, row.blueprint)

    def size(self, index: int) -> tuple[int, int]:
        row = self.entry(index)
        return (row.source or row.target).size()

    def rules(self) -> list[str]:
        """The sets name no rules: all rows are alike."""
        return [""] * len(self)

    def entry(self, index: int) -> RawExample:
        return self.layout.entry(int(self.rows[index]))
