"""What is painted, and what of it is painted together."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """What is edited.

    Attributes:
        picture: what the encoder reads.
        latents: what SANA sees beside the noise, where they are known, as those of a painting that is edited further are; else the
            picture is encoded.
    """

    picture: Image.Image
    latents: Float[np.ndarray, "h w c"] | None = None


@dataclass(frozen=True)
class Request:
    """One picture to paint: without `source`, from the text alone."""

    prompt: str
    seed: int
    size: tuple[int, int]
    source: Source | None = None

    @property
    def kind(self) -> Hashable:
        """Requests of one kind can be painted together: they have one size, and sources of one sort or none."""
        return self.size, self.source is None, self.source is not None and self.source.latents is None


class Batch(NamedTuple):
    """Which requests are painted together, and how many rows the batch has: it is filled up, for another number compiles anew."""

    indices: list[int]
    rows: int

    def fill(self, items: Sequence) -> list:
        """The batch's items, the last one again in the rows that are left."""
        filled = [items[i] for i in self.indices]
        return filled + filled[-1:] * (self.rows - len(filled))


def batches(kinds: Sequence[Hashable], batch_size: int, devices: int = 1) -> list[Batch]:
    """Batches of up to `batch_size` items of one kind, all of a kind with the same number of rows.

    Over several `devices` they have as many rows each: the batch size and a smaller number of items are rounded up to a multiple. But one
    item stays one row, for filling it up would make nothing faster.
    """
    batch_size = _multiple(batch_size, devices)
    groups: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(i)
    result = []
    for group in groups.values():
        rows = 1 if len(group) == 1 else _multiple(min(batch_size, len(group)), devices)
        result += [Batch(group[i : i + rows], rows) for i in range(0, len(group), rows)]
    return result


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each once the next one has begun, or could not."""
    before: list[Item] = []
    try:
        for item in items:
            yield from before
            before = [item]
    except InputError:
        yield from before
        raise
    yield from before


def _multiple(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
