"""The chunks that `dim cache` computes: rows of one shard and one bucket, as arrays of one shape for each bucket."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from dim_jax.data.cache import ShardLayout
from dim_jax.data.example import Example, Texts
from dim_jax.data.pipeline import BadSample, MixtureComponent
from dim_jax.data.plan import Component
from dim_jax.data.readers import PaintReader, Sample, buckets
from dim_jax.errors import InputError
from dim_jax.processing.inputs import EncoderInputs


class Chunk(NamedTuple):
    """Rows of one shard and one bucket, at most as many as are computed at once."""

    component_index: int
    shard: int
    bucket: int
    rows: Int[np.ndarray, " n"]


class ChunkRow(NamedTuple):
    """A row that can be used: its number, the key of its example, its prompts."""

    number: int
    key: str
    prompts: tuple[str, ...]


class LoadedChunk(NamedTuple):
    """The inputs of the frozen parts for a chunk.

    Attributes:
        rows: the usable rows, in order.
        target: their target pictures, padded to the size of every chunk with repeats.
        source: their source pictures, padded alike; None for captions.
        turns: the prompts of the first row, then of the second and so on, padded alike.
        bad: the rows that cannot be used.
    """

    rows: tuple[ChunkRow, ...]
    target: UInt8[np.ndarray, "b h w 3"] | None
    source: UInt8[np.ndarray, "b h w 3"] | None
    turns: tuple[EncoderInputs, ...]
    bad: tuple[BadSample, ...]


def shard_chunks(component_index: int, component: Component, layout: ShardLayout, shard: int, size: int) -> list[Chunk]:
    """The chunks of a shard: the rows of each bucket, `size` at a time."""
    shard_rows = layout.shard_range(shard)
    in_shard = (component.rows >= shard_rows.start) & (component.rows < shard_rows.stop)
    chunks = []
    for bucket in np.unique(component.buckets[in_shard]).tolist():
        rows = component.rows[in_shard & (component.buckets == bucket)]
        chunks += [Chunk(component_index, shard, bucket, rows[start : start + size]) for start in range(0, len(rows), size)]
    return chunks


@dataclass(frozen=True)
class ChunkLoader:
    """Loads a chunk by its number; workers get a copy.

    Attributes:
        size: rows and turns that are computed at once.
        skip_bad_rows: list bad rows instead of raising an error.
    """

    mixture: Sequence[MixtureComponent]
    chunks: Sequence[Chunk]
    reader: PaintReader
    size: int
    skip_bad_rows: bool = False

    def __call__(self, number: int) -> LoadedChunk:
        chunk = self.chunks[number]
        member, bucket = self.mixture[chunk.component_index], buckets(self.reader)[chunk.bucket]
        rows, samples, bad = list[ChunkRow](), list[Sample](), list[BadSample]()
        for row in chunk.rows.tolist():
            try:
                example: Example = member.source[row]
            except InputError as error:
                if not self.skip_bad_rows:
                    raise
                bad.append(BadSample(member.name, row + 1, str(error)))
                continue
            prompts = self.reader.prompts(Texts(example.texts, example.blueprint), edit=example.source is not None)
            rows.append(ChunkRow(row, example.key, prompts))
            samples += [self.reader.sample(example, text) for text in prompts]
        if not rows:
            return LoadedChunk((), None, None, (), tuple(bad))
        firsts = np.cumsum([0, *(len(row.prompts) for row in rows[:-1])]).tolist()
        target, source = self.reader.pixels(self._padded([samples[first] for first in firsts]), bucket)
        groups = (self._padded(samples[start : start + self.size]) for start in range(0, len(samples), self.size))
        return LoadedChunk(tuple(rows), target, source, tuple(self.reader.turns(group, bucket) for group in groups), tuple(bad))

    def _padded(self, samples: list[Sample]) -> list[Sample]:
        return samples + samples[-1:] * (self.size - len(samples))
