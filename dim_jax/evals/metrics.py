"""Distances between pictures, on RGB in [0, 1]."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.data.pictures import cover_crop

# Mean squared error of rounding to 8 bits, (1/255)^2 / 12: less cannot be told apart.
ROUNDING = 1 / (12 * 255**2)


def unit_pixels(picture: Image.Image, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """An RGB picture as float64 in [0, 1], scaled and cropped to `size` (height, width) where it has another."""
    return np.asarray(cover_crop(picture, size), np.float64) / 255


def mse(a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"]) -> float:
    """Mean squared error over pixels and channels: mean((a - b)^2)."""
    return float(np.mean((a - b) ** 2))


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of an `mse` with peak 1: -10 log10(mse).

    Equal pictures would have an infinite one; errors below that of rounding to 8 bits count as that one, so 58.9 dB is the most.
    """
    return float(-10 * np.log10(max(error, ROUNDING)))
