"""Distances between pictures: known values, the worst and the best, pictures of other sizes."""

import numpy as np
import pytest
from PIL import Image

from dim_jax.evals.metrics import mse, psnr, unit_pixels


def flat(grey: int, width: int = 8, height: int = 6) -> Image.Image:
    return Image.new("RGB", (width, height), (grey,) * 3)


def test_known_distances():
    black, white = unit_pixels(flat(0), (6, 8)), unit_pixels(flat(255), (6, 8))
    assert mse(black, white) == 1
    assert psnr(1.0) == 0
    assert psnr(0.01) == pytest.approx(20)
    one_level = mse(unit_pixels(flat(100), (6, 8)), unit_pixels(flat(101), (6, 8)))
    assert psnr(one_level) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    # One channel of three off by half: a third of a quarter.
    half = black.copy()
    half[..., 1] = 0.5
    assert mse(black, half) == pytest.approx(0.25 / 3)


def test_equal_pictures_are_finite_and_above_all_others():
    assert np.isfinite(psnr(0.0))
    assert psnr(0.0) == pytest.approx(58.92, abs=0.01)
    one_sample_off = unit_pixels(flat(100, 64, 64), (64, 64)).copy()
    one_sample_off[0, 0, 0] += 1 / 255
    assert psnr(mse(one_sample_off, unit_pixels(flat(100, 64, 64), (64, 64)))) <= psnr(0.0)


def test_pictures_of_another_size_are_scaled():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    np.testing.assert_array_equal(unit_pixels(picture, (6, 8)), np.asarray(picture) / 255)
    assert unit_pixels(flat(51, 128, 128), (64, 64)).shape == (64, 64, 3)
    np.testing.assert_allclose(unit_pixels(flat(51, 128, 128), (64, 64)), 0.2)
