"""Finds what an edit changed in a picture, and takes the rest from the picture before.

Two pictures are compared as the autoencoder decodes them, before and after, so that its own error counts for nothing. In pixels, with
`cell` pixels to a latent:

1. the difference is the largest of the three channels, smoothed (Gaussian, deviation cell / 8): single pixels do not count;
2. what differs by more than `LEVELS` is changed, and grown by cell / 2 on every side, for soft edges and shadows;
3. at the rim of what is changed, the picture after fades into the picture before (Gaussian, deviation cell / 6).

Pixels outside stay as they were, to the bit.
"""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageChops, ImageFilter

from dim_jax.data.pictures import max_filter

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
    # A blurred edge has the value 0.5 where the edge was. Rescaling [0.5, 1] to [0, 1] fades the rim inwards and touches nothing outside.
    blurred = Image.fromarray(changed.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(cell / 6))
    faded = np.asarray(blurred, np.float32) / 255
    return np.where(changed, np.clip(2 * faded - 1, 0, 1), 0).astype(np.float32)


def composite(source: Image.Image, edited: Image.Image, opacity: Float[np.ndarray, "h w"]) -> Image.Image:
    """`edited` over `source`, both RGB and of one size."""
    before, after = np.asarray(source, np.float32), np.asarray(edited, np.float32)
    mixed = before + opacity[..., None] * (after - before)
    return Image.fromarray(np.where(opacity[..., None] > 0, np.rint(mixed), before).astype(np.uint8))


def cells(opacity: Float[np.ndarray, "h w"], cell: int) -> Bool[np.ndarray, "h//{cell} w//{cell}"]:
    """Which latents hold a changed pixel."""
    height, width = opacity.shape
    return np.any(opacity.reshape(height // cell, cell, width // cell, cell) > 0, axis=(1, 3))
