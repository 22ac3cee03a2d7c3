"""Distances between pictures, on RGB in [0, 1]."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.errors import require_packages
from dim_jax.processing.pictures import cover_crop

# Mean squared error of rounding to 8 bits, (1/255)^2 / 12: less makes no difference.
ROUNDING = 1 / (12 * 255**2)


class Triple(NamedTuple):
    """What is measured: the result, what it should be, and what was edited (None: nothing)."""

    result: Image.Image
    target: Image.Image
    source: Image.Image | None


def unit_pixels(picture: Image.Image, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """An RGB picture as float64 in [0, 1], scaled and cropped to `size` (height, width) where it has another."""
    return np.asarray(cover_crop(picture, size), np.float64) / 255


def resize_to_unit_pixels(picture: Image.Image, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
    """An RGB picture as float64 in [0, 1], resized to `size` (height, width) as Pillow does by default (bicubic), its proportions aside."""
    return np.asarray(picture.resize((size[1], size[0])), np.float64) / 255


def mse(a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"]) -> float:
    """Mean squared error over pixels and channels: mean((a - b)^2)."""
    return float(np.mean((a - b) ** 2))


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of an `mse` with peak 1: -10 log10(mse).

    Equal pictures would have an infinite one; errors below that of rounding to 8 bits count as that one, so 58.9 dB is the most.
    """
    return float(-10 * np.log10(max(error, ROUNDING)))


def ssim(a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"]) -> float:
    """Structural similarity of two pictures of at least 11 pixels a side, mean over channels, in [-1, 1]: scikit-image's with the Gaussian
    window of 11 pixels and the constants of Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004.

    Raises:
        InputError: the package scikit-image is missing.
    """
    require_packages("skimage", extra="evaluate", feature="SSIM")
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(a, b, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(np.asarray(similarity).item())


def match_size(triple: Triple) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 3"]]:
    """Result and target at the target's size, in [0, 1]."""
    size = (triple.target.height, triple.target.width)
    return unit_pixels(triple.result, size), unit_pixels(triple.target, size)


def _nearer(triple: Triple) -> float:
    result, target = match_size(triple)
    return float(triple.source is not None and mse(result, target) < mse(result, unit_pixels(triple.source, target.shape[:2])))


def _l1(triple: Triple) -> float:
    target = np.asarray(triple.target, np.float64) / 255
    return float(np.mean(np.abs(resize_to_unit_pixels(triple.result, target.shape[:2]) - target)))


def _l2(triple: Triple) -> float:
    target = np.asarray(triple.target, np.float64) / 255
    return mse(resize_to_unit_pixels(triple.result, target.shape[:2]), target)


# Measures of a result against its target, at the target's size. l1 and l2 are those of MagicBrush's authors: the mean absolute and squared
# difference, of the result resized whole; the others crop it to the target's proportions first, as the painter does with a source.
METRICS: dict[str, Callable[[Triple], float]] = {
    "l1": _l1,
    "l2": _l2,
    "psnr": lambda triple: psnr(mse(*match_size(triple))),
    "ssim": lambda triple: ssim(*match_size(triple)),
    "nearer": _nearer,
}
