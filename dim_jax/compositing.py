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
from jaxtyping import Bool, Float, UInt8
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


def mask_opacity(alpha: UInt8[np.ndarray, "h w"], feather: float = 0.0) -> Float[np.ndarray, "h w"]:
    """The weight of an edit at each pixel under a mask as OpenAI has it: 1 where the mask is transparent (0), 0 where it is opaque (255).

    Args:
        alpha: of the mask.
        feather: pixels within which the edit's rim fades inwards.
    """
    weights = 1 - alpha.astype(np.float32) / 255
    return np.minimum(weights, _feather(weights > 0, feather / 2)) if feather else weights


def _feather(changed: Bool[np.ndarray, "h w"], deviation: float) -> Float[np.ndarray, "h w"]:
    """1 where `changed`, less at its rim, 0 outside."""
    # A blurred edge has the value 0.5 where the edge was. Rescaling [0.5, 1] to [0, 1] fades the rim inwards and touches nothing outside.
    blurred = Image.fromarray(changed.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(deviation))
    faded = np.asarray(blurred, np.float32) / 255
    return np.where(changed, np.clip(2 * faded - 1, 0, 1), 0).astype(np.float32)


class Frame(NamedTuple):
    """A picture among its repeated edges, which give it the aspect ratio of a size that is painted: so nothing of it is cropped.

    Attributes:
        padded: the picture and what is around it.
        box: of the picture within: left, top, right, bottom.
    """

    padded: Image.Image
    box: tuple[int, int, int, int]

    @classmethod
    def pad_to_aspect(cls, picture: Image.Image, size: tuple[int, int]) -> "Frame":
        """For a `size` (height, width)."""
        (width, height), (rows, columns) = picture.size, size
        full = max(width, -(-height * columns // rows)), max(height, -(-width * rows // columns))
        left, top = (full[0] - width) // 2, (full[1] - height) // 2
        edges = ((top, full[1] - height - top), (left, full[0] - width - left), (0, 0))
        return cls(Image.fromarray(np.pad(np.asarray(picture), edges, "edge")), (left, top, left + width, top + height))

    def crop(self, canvas: Image.Image) -> Image.Image:
        """Of what was painted of `padded` at whatever size, the part that is the picture, at its size."""
        return resize(canvas, self.padded.size, Image.Resampling.BICUBIC).crop(self.box)


def composite(source: Image.Image, edited: Image.Image, opacity: Float[np.ndarray, "h w"]) -> Image.Image:
    """`edited` over `source`, both RGB and of one size."""
    before, after = np.asarray(source, np.float32), np.asarray(edited, np.float32)
    mixed = before + opacity[..., None] * (after - before)
    return Image.fromarray(np.where(opacity[..., None] > 0, np.rint(mixed), before).astype(np.uint8))


def changed_latents(opacity: Float[np.ndarray, "h w"], cell: int) -> Bool[np.ndarray, "h//{cell} w//{cell}"]:
    """Which latents hold a changed pixel."""
    height, width = opacity.shape
    return np.any(opacity.reshape(height // cell, cell, width // cell, cell) > 0, axis=(1, 3))
