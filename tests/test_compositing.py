"""What an edit left alone: found in spite of noise, and taken over to the bit."""

import numpy as np
import pytest
from PIL import Image

from dim_jax.compositing import LEVELS, Frame, changed_latents, composite, mask_opacity, opacity
from tests.painter_fixtures import picture

CELL = 8


def edited(before: Image.Image, box: tuple[int, int, int, int], colour=(255, 0, 0)) -> Image.Image:
    after = before.copy()
    after.paste(colour, box)
    return after


def noisy(image: Image.Image, levels: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image, int) + noise, 0, 255).astype(np.uint8))


def test_unchanged_pixels_are_the_sources_to_the_bit():
    """The source differs from what the autoencoder makes of it; where nothing was edited it comes through all the same."""
    before, source = Image.new("RGB", (96, 64), (90, 90, 90)), picture(96, 64, 3)
    after = edited(before, (40, 16, 56, 40))
    share = opacity(before, after, CELL)
    result = np.asarray(composite(source, after, share))
    outside = np.ones((64, 96), bool)
    outside[16 - CELL : 40 + CELL, 40 - CELL : 56 + CELL] = False
    np.testing.assert_array_equal(result[outside], np.asarray(source)[outside])
    assert (share[outside] == 0).all()
    # What was edited is there, whole; a rim around it fades.
    assert (share[18:38, 42:54] == 1).all()
    np.testing.assert_array_equal(result[18:38, 42:54], np.asarray(after)[18:38, 42:54])
    assert ((share > 0) & (share < 1)).any()


def test_noise_below_threshold_is_not_composited():
    before = picture(64, 64, 1)
    assert not opacity(before, noisy(before, LEVELS - 1), CELL).any()
    single = before.copy()
    single.putpixel((30, 30), tuple(255 - level for level in single.getpixel((30, 30))))
    assert not opacity(before, single, 4 * CELL).any()


def test_an_edit_of_one_channel_counts():
    before = Image.new("RGB", (64, 64), (90, 90, 90))
    assert (opacity(before, edited(before, (0, 0, 64, 64), (90, 90, 90 + 2 * LEVELS)), CELL) == 1).all()


@pytest.mark.parametrize("cell", [8, 32])
def test_unchanged_and_fully_changed_pictures(cell):
    before, after = Image.new("RGB", (64, 64), "black"), Image.new("RGB", (64, 64), "white")
    assert not opacity(before, before, cell).any()
    assert (opacity(before, after, cell) == 1).all()
    assert composite(before, after, opacity(before, after, cell)).tobytes() == after.tobytes()


def test_cells_hold_every_changed_pixel():
    share = np.zeros((32, 48), np.float32)
    share[7, 8] = 0.01
    share[31, 47] = 1
    expected = np.zeros((4, 6), bool)
    expected[0, 1] = expected[3, 5] = True
    np.testing.assert_array_equal(changed_latents(share, 8), expected)


def test_a_mask_shows_the_edit_where_it_is_white():
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[10:30, 20:50] = 0
    alpha[0, 0] = 51
    mask = Image.fromarray(255 - alpha)
    share = mask_opacity(mask)
    assert share[0, 0] == np.float32(0.8)
    assert set(np.unique(share[1:])) == {0, 1}
    feathered = mask_opacity(mask, 8.0)
    assert (feathered[alpha == 255] == 0).all()
    assert (feathered <= share).all()
    assert 0 < feathered[20, 21] < feathered[20, 24] < feathered[20, 29]
    assert feathered[20, 35] > 0.95
    source, edit = picture(60, 40, 1), picture(60, 40, 2)
    for weight in (share, feathered):
        result = np.asarray(composite(source, edit, weight))
        np.testing.assert_array_equal(result[alpha == 255], np.asarray(source)[alpha == 255])


@pytest.mark.parametrize("painted", [(64, 64), (32, 128), (96, 48)])
@pytest.mark.parametrize("width", [30, 101, 640])
def test_a_picture_comes_back_from_its_frame_unmoved(painted, width):
    """A dot comes back to where it was, by a tenth of a pixel of the coarser side: nothing is cropped, nothing shifts."""
    height = 77
    source = Image.new("RGB", (width, height), "white")
    box = (width // 4, height // 2, width // 4 + max(4, width // 6), height // 2 + 20)
    source.paste("black", box)
    frame = Frame.fit(source.size, painted)
    canvas = frame.canvas(source)
    assert canvas.size == painted[::-1]
    assert (frame.box[2] - frame.box[0], frame.box[3] - frame.box[1])[height * painted[1] > width * painted[0]] == canvas.size[
        height * painted[1] > width * painted[0]
    ]
    back = 255 - np.asarray(frame.crop(canvas).convert("L"), float)
    assert back.shape == (height, width)
    x, y = (np.average(np.arange(side), weights=back.sum(axis)) for side, axis in ((width, 0), (height, 1)))
    assert abs(x - ((box[0] + box[2]) / 2 - 0.5)) <= 0.1 * max(1, frame.scale)
    assert abs(y - ((box[1] + box[3]) / 2 - 0.5)) <= 0.1 * max(1, frame.scale)


def test_a_picture_that_nearly_fits_is_not_scaled():
    source = picture(60, 57, 1)
    frame = Frame.fit(source.size, (64, 64), CELL)
    assert frame.scale == 1
    assert frame.crop(frame.canvas(source)).tobytes() == source.tobytes()
    share = np.zeros((57, 60), np.float32)
    share[0, 59] = 0.5
    spread = frame.spread(share)
    assert (spread[:4, 61:] == 0.5).all(), "the edges around it are those of the picture"
    assert np.count_nonzero(spread) == 4 * 3
