"""Finds what an edit changed in a picture, and takes the rest from the picture before.

Two pictures are compared as the autoencoder decodes them, before and after, so that its own error counts for nothing. In pixels, with
`cell` pixels to a latent:

1. the difference is the largest of the three channels, smoothed (Gaussian, deviation cell / 8): single pixels do not count;
2. what differs by more than `LEVELS` is changed, and grown by cell / 2 on every side, for soft edges and shadows;
3. at the rim of what is changed, the picture after fades into the picture before (Gaussian, deviation cell / 6).

Pixels outside stay as they were, to the bit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageChops, ImageFilter

from dim_jax.processing.pictures import max_filter, resize

LEVELS = 12  # of 255; where an edit of the nano model leaves a picture alone, it is off by 0 to 8


def opacity(before: Image.Image, after: Image.Image, cell: int) -> Float[np.ndarray, "h w"]:
    """The weight of the picture after at each pixel, in [0, 1]; 0 is unchanged.

    Args:
        before, after: RGB, of one size.
        cell: pixels of a side to one latent.
    """
    channels = ImageChops.difference(before, after).split()
    difference = ImageChops.lighter(ImageChops.lighter(*channels[:2]), channels[2])
    smooth = np.asarray(difference.filter(ImageFilter.GaussianBlur(cell / 8)))
    changed = max_filter(smooth, cell // 2) > LEVELS
    return _feather(changed, cell / 6)


def mask_opacity(mask: Image.Image, feather: float = 0.0) -> Float[np.ndarray, "h w"]:
    """The weight of an edit at each pixel under a mask: 1 where it is white, 0 where it is black.

    Args:
        mask: grey, or made grey.
        feather: pixels within which the edit's rim fades inwards; outside of the mask the weight stays 0.
    """
    weights = np.asarray(mask.convert("L"), np.float32) / 255
    return np.minimum(weights, _feather(weights > 0, feather / 2)) if feather else weights


def _feather(changed: Bool[np.ndarray, "h w"], deviation: float) -> Float[np.ndarray, "h w"]:
    """1 where `changed`, less at its rim, 0 outside."""
    # A blurred edge has the value 0.5 where the edge was. Rescaling [0.5, 1] to [0, 1] fades the rim inwards and touches nothing outside.
    blurred = Image.fromarray(changed.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(deviation))
    faded = np.asarray(blurred, np.float32) / 255
    return np.where(changed, np.clip(2 * faded - 1, 0, 1), 0).astype(np.float32)


class Frame(NamedTuple):
    """Where a picture lies in what is painted: scaled as a whole, with its edges repeated around it where its aspect ratio is another.

    The way there and the way back map the same two rectangles to each other, so nothing is cropped and nothing shifts.

    Attributes:
        picture: width and height of the picture.
        painted: height and width of what is painted.
        box: of the picture in what is painted: left, top, right, bottom.
    """

    picture: tuple[int, int]
    painted: tuple[int, int]
    box: tuple[int, int, int, int]

    @classmethod
    def fit(cls, picture: tuple[int, int], painted: tuple[int, int], cell: int = 1) -> "Frame":
        """The largest one in the middle of `painted` (height, width). A picture that is smaller by less than `cell` pixels a side is not
        scaled. Scaled sides are rounded to whole pixels."""
        (width, height), (rows, columns) = picture, painted
        if not (rows - cell < height <= rows and columns - cell < width <= columns):
            scale = min(columns / width, rows / height)
            width, height = min(columns, max(1, round(width * scale))), min(rows, max(1, round(height * scale)))
        left, top = (columns - width) // 2, (rows - height) // 2
        return cls(picture, painted, (left, top, left + width, top + height))

    def canvas(self, picture: Image.Image) -> Image.Image:
        """The picture in what is painted; bilinear and antialiased, as the autoencoder reads pictures."""
        return Image.fromarray(self._pad(resize(picture, self._inner, Image.Resampling.BILINEAR)))

    def crop(self, painted: Image.Image) -> Image.Image:
        """The part of what was painted that is the picture, at the picture's size; bicubic."""
        return resize(painted.crop(self.box), self.picture, Image.Resampling.BICUBIC)

    def spread(self, opacity: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "rows columns"]:
        """Weights of the picture's pixels as weights of those that are painted: above 0 where a pixel counts that has such a weight."""
        return self._pad(resize(Image.fromarray(opacity), self._inner, Image.Resampling.BILINEAR))

    @property
    def scale(self) -> float:
        """Pixels of the picture to one that is painted."""
        return max(self.picture) / max(self._inner)

    @property
    def _inner(self) -> tuple[int, int]:
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def _pad(self, inner: Image.Image) -> np.ndarray:
        (left, top, right, bottom), (rows, columns) = self.box, self.painted
        pixels = np.asarray(inner)
        return np.pad(pixels, [(top, rows - bottom), (left, columns - right), *[(0, 0)] * (pixels.ndim - 2)], "edge")


def composite(source: Image.Image, edited: Image.Image, opacity: Float[np.ndarray, "h w"]) -> Image.Image:
    """`edited` over `source`, both RGB and of one size."""
    before, after = np.asarray(source, np.float32), np.asarray(edited, np.float32)
    mixed = before + opacity[..., None] * (after - before)
    return Image.fromarray(np.where(opacity[..., None] > 0, np.rint(mixed), before).astype(np.uint8))


def changed_latents(opacity: Float[np.ndarray, "h w"], cell: int) -> Bool[np.ndarray, "h//{cell} w//{cell}"]:
    """Which latents hold a changed pixel."""
    height, width = opacity.shape
    return np.any(opacity.reshape(height // cell, cell, width // cell, cell) > 0, axis=(1, 3))
