"""The work of `dim cache` in chunks: rows of one shard and one bucket, loaded as arrays whose shapes are the same for every such chunk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from dim_jax.data.cache import Layout
from dim_jax.data.example import Example, Texts
from dim_jax.data.inputs import EncoderInputs
from dim_jax.data.pipeline import BadSample, MixtureComponent
from dim_jax.data.plan import Component
from dim_jax.data.readers import PaintReader, Sample, buckets
from dim_jax.errors import InputError


class Chunk(NamedTuple):
    """At most as many rows as are computed at once."""

    part: int
    shard: int
    bucket: int
    rows: Int[np.ndarray, " n"]


class Row(NamedTuple):
    """A row that can be used: its number, the name of its example, its wordings."""

    number: int
    key: str
    wordings: tuple[str, ...]


class LoadedChunk(NamedTuple):
    """What the frozen parts are to read of a chunk.

    Attributes:
        rows: of the first of `pixels`, in order.
        target: pictures of `rows`, filled up to the size of every chunk with repeats. So are those of `source`.
        turns: all wordings of the first row, then of the second and so on; the last ones are filled up too.
        bad: rows of the chunk that cannot be used.
    """

    rows: tuple[Row, ...]
    target: UInt8[np.ndarray, "b h w 3"] | None
    source: UInt8[np.ndarray, "b h w 3"] | None
    turns: tuple[EncoderInputs, ...]
    bad: tuple[BadSample, ...]


def shard_chunks(part: int, component: Component, layout: Layout, shard: int, size: int) -> list[Chunk]:
    """The chunks of a shard: the rows of each bucket, `size` at a time."""
    of = layout.of(shard)
    here = (component.rows >= of.start) & (component.rows < of.stop)
    found = []
    for bucket in np.unique(component.buckets[here]).tolist():
        rows = component.rows[here & (component.buckets == bucket)]
        found += [Chunk(part, shard, bucket, rows[start : start + size]) for start in range(0, len(rows), size)]
    return found


@dataclass(frozen=True)
class ChunkLoader:
    """The chunk of a number; workers get a copy.

    Attributes:
        size: rows and turns that are computed at once.
        substitute: list a row that cannot be used, rather than raise.
    """

    parts: Sequence[MixtureComponent]
    chunks: Sequence[Chunk]
    reader: PaintReader
    size: int
    substitute: bool = False

    def __call__(self, number: int) -> LoadedChunk:
        chunk = self.chunks[number]
        part, bucket = self.parts[chunk.part], buckets(self.reader)[chunk.bucket]
        rows, samples, bad = list[Row](), list[Sample](), list[BadSample]()
        for row in chunk.rows.tolist():
            try:
                example: Example = part.source[row]
            except InputError as error:
                if not self.substitute:
                    raise
                bad.append(BadSample(part.name, row + 1, str(error)))
                continue
            wordings = self.reader.wordings(Texts(example.texts, example.blueprint), edit=example.source is not None)
            rows.append(Row(row, example.key, wordings))
            samples += [Sample(example.key, text, example.source, "", example.target) for text in wordings]
        if not rows:
            return LoadedChunk((), None, None, (), tuple(bad))
        firsts = np.cumsum([0, *(len(row.wordings) for row in rows[:-1])]).tolist()
        target, source = self.reader.pixels(self._filled([samples[first] for first in firsts]), bucket)
        turns = (self._filled(samples[start : start + self.size]) for start in range(0, len(samples), self.size))
        return LoadedChunk(tuple(rows), target, source, tuple(self.reader.turns(some, bucket) for some in turns), tuple(bad))

    def _filled(self, samples: list[Sample]) -> list[Sample]:
        return samples + samples[-1:] * (self.size - len(samples))
