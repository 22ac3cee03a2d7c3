"""Pictures scaled and cropped for the autoencoder, and pixels made pictures again."""

from unittest import mock

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dim_jax.processing import pictures
from dim_jax.processing.pictures import autoencoder_pixels, cover_crop, resize, to_picture

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(8, 90)] * 4))
def test_cover_crop_fills_any_target(sizes):
    width, height, target_height, target_width = sizes
    flat = Image.new("RGB", (width, height), (10, 200, 30))
    image = cover_crop(flat, (target_height, target_width))
    assert image.size == (target_width, target_height)
    # A crop beyond the border would be black.
    assert image.getextrema() == ((10, 10), (200, 200), (30, 30))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(8, 90)] * 4), st.sampled_from([1, 6]), st.sampled_from([1, 6]), st.sampled_from([1, 300, 2**22]))
def test_cover_crop_is_a_resize_and_a_crop(sizes, longer, higher, strip):
    """As torchvision's Resize and CenterCrop, however few pixels are scaled at once."""
    width, height, target_height, target_width = sizes
    width, height = width * longer, height * higher
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    if target_height * width >= target_width * height:
        scaled = (target_height * width // height, target_height)
    else:
        scaled = (target_width, target_width * height // width)
    left, top = round((scaled[0] - target_width) / 2), round((scaled[1] - target_height) / 2)
    wanted = resize(image, scaled, Image.Resampling.BILINEAR).crop((left, top, left + target_width, top + target_height))
    with mock.patch.object(pictures, "STRIP", strip):
        assert cover_crop(image, (target_height, target_width)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("size", [(3200, 16), (16, 3200)])
def test_cover_crop_of_long_pictures_stays_small(size):
    largest = 0

    def new(*arguments):
        nonlocal largest
        image = original(*arguments)
        largest = max(largest, image.size[0] * image.size[1])
        return image

    original = Image.Image._new
    with mock.patch.object(Image.Image, "_new", new):
        assert cover_crop(Image.new("RGB", size, RED), (1024, 1024)).getcolors() == [(2**20, RED)]
    assert largest <= pictures.STRIP


def test_cover_crop_keeps_the_centre():
    wide = Image.new("RGB", (90, 30), WHITE)
    wide.paste(RED, (30, 0, 60, 30))
    assert cover_crop(wide, (30, 30)).getcolors() == [(900, RED)]
    assert cover_crop(wide.transpose(Image.Transpose.ROTATE_90), (30, 30)).getcolors() == [(900, RED)]
    assert np.asarray(cover_crop(wide, (30, 90))).tobytes() == np.asarray(wide).tobytes()


def test_autoencoder_pixels_there_and_back():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = autoencoder_pixels(Image.fromarray(values), (16, 16))
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (-1, 1)
    np.testing.assert_array_equal(np.asarray(to_picture(pixels)), values)


def test_to_picture_clips_rounds_and_refuses():
    pixels = np.array([-3, -1, 0, 1, 7, 2 / 255 - 1, 1 / 255 - 1, 0.98 / 255 - 1], np.float32).reshape(1, 8, 1).repeat(3, 2)
    assert np.asarray(to_picture(pixels))[0, :, 0].tolist() == [0, 0, 128, 255, 255, 1, 1, 0]
    pixels[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 24 pixel values are not finite"):
        to_picture(pixels)


SCALED = [
    ((64, 200), (112, 112), True), ((143, 97), (140, 84), True), ((172, 133), (110, 65), False), ((40, 65), (83, 87), False),
    ((9, 50), (9, 20), True),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "height_first"), SCALED)
def test_resize_pass_order(old, new, height_first):
    """What the newest Pillow does, as the goldens have it, with any."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (old[1], old[0], 3), dtype=np.uint8))
    for resample in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR):
        between = (old[0], new[1]) if height_first else (new[0], old[1])
        expected = noise.resize(between, resample).resize(new, resample)
        np.testing.assert_array_equal(resize(noise, new, resample), expected)
        if int(PIL.__version__.split(".")[0]) >= 13:
            np.testing.assert_array_equal(noise.resize(new, resample), expected)
