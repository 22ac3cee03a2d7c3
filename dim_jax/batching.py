"""What is painted, and what of it is painted together."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from dim_jax.compositing import Frame, changed_latents, composite, mask_opacity
from dim_jax.errors import InputError
from dim_jax.processing.buckets import aspect_buckets, nearest_bucket
from dim_jax.processing.masks import check_mask
from dim_jax.processing.pictures import cover_crop
from dim_jax.settings import Settings

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """What is edited.

    Attributes:
        picture: what the encoder reads, and what an edit is laid over.
        latents: what SANA sees beside the noise, where they are known, as those of a painting that is edited further are; else the
            picture is encoded.
    """

    picture: Image.Image
    latents: Float[np.ndarray, "h w c"] | None = None


@dataclass(frozen=True)
class Request:
    """One picture to paint: without `source`, from the text alone.

    Attributes:
        size: what is painted: height and width in pixels.
        frame: where the source's picture lies in that size; None: the picture is scaled until it covers the size, and cropped.
        opacity: the weight of the edit at each pixel of the source's picture, in [0, 1]; None: 1.
    """

    prompt: str
    seed: int
    size: tuple[int, int]
    source: Source | None = None
    frame: Frame | None = None
    opacity: Float[np.ndarray, "h w"] | None = None

    @property
    def kind(self) -> Hashable:
        """Requests of one kind can be painted together: they have one size, sources of one sort or none, and masks or none."""
        return self.size, self.source is None, self.source is not None and self.source.latents is None, self.opacity is None

    @property
    def canvas(self) -> Image.Image:
        """What the autoencoder reads of the source."""
        assert self.source is not None
        return cover_crop(self.source.picture, self.size) if self.frame is None else self.frame.canvas(self.source.picture)

    def inside(self, cell: int) -> Bool[np.ndarray, "rows columns"]:
        """The latents, of `cell` pixels a side, that may change."""
        if self.frame is None or self.opacity is None:
            return np.ones((self.size[0] // cell, self.size[1] // cell), bool)
        return changed_latents(self.frame.spread(self.opacity), cell)

    def result(self, painted: Image.Image) -> Image.Image:
        """What was painted at the source's size, and under its mask; without a frame as it is."""
        if self.frame is None or self.source is None:
            return painted
        picture = self.frame.crop(painted)
        return picture if self.opacity is None else composite(self.source.picture, picture, self.opacity)


def differ_in_seeds(requests: Sequence[Request]) -> bool:
    """Whether several requests have one prompt and one source, as the candidates of `best_of` do, so that one can be encoded for all."""
    sources = (request.source and (id(request.source.picture), id(request.source.latents)) for request in requests)
    encoded = {(request.prompt, request.frame, source) for request, source in zip(requests, sources, strict=True)}
    return len(requests) > 1 and len(encoded) == 1


def edit_request(
    prompt: str, source: Source, seed: int, settings: Settings, cell: int, mask: Image.Image | None = None, feather: float = 0.0
) -> Request:
    """An edit whose result has the source's size, or the settings', to which the source is scaled and cropped first.

    The source keeps its aspect ratio, with its edges repeated around it (`Frame`), in a size that is painted: that of its latents, or of
    the settings; its own, rounded up to whole latents, where it is painted in tiles; else that of `aspect_buckets` whose aspect ratio is
    nearest.

    Args:
        cell: pixels of a side to one latent.
        mask: grey, of the size of the source's picture: where it is black (0), the picture stays as it is.
        feather: pixels within which the edit fades at the rim of the mask.

    Raises:
        InputError: as `check_mask`, or the resolution fits no latents.
    """
    if mask is not None:
        check_mask(mask, source.picture.size)
    if settings.size is not None:
        source = replace(source, picture=cover_crop(source.picture, settings.size))
        mask = None if mask is None else cover_crop(mask.convert("L"), settings.size)
    width, height = source.picture.size
    if settings.size is not None:
        size = settings.size
    elif source.latents is not None:
        size = source.latents.shape[0] * cell, source.latents.shape[1] * cell
    elif settings.tile is not None:
        size = _multiple(height, cell), _multiple(width, cell)
    else:
        size = nearest_bucket(width, height, aspect_buckets(settings.resolution, cell))
    opacity = None if mask is None else mask_opacity(mask, feather)
    return Request(prompt, seed, size, source, Frame.fit((width, height), size, cell), opacity)


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
    """The same items, each once the next one has begun, or could not: an error or Ctrl-C takes none that is whole."""
    before: list[Item] = []
    try:
        for item in items:
            yield from before
            before = [item]
    except (InputError, KeyboardInterrupt):
        yield from before
        raise
    yield from before


def _multiple(number: int, divisor: int) -> int:
    """The next multiple of `divisor`."""
    return -(-number // divisor) * divisor
