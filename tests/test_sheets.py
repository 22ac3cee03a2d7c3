"""Pictures and texts on one picture: where each stands, and that every text can be read whole."""

import numpy as np
from PIL import Image

from dim_jax.sheets import GAP, NAME, grid, named_rows, with_caption
from tests.painter_fixtures import picture


def test_grid_aligns_rows_of_unequal_pictures():
    small, tall = picture(4, 4, 1), picture(6, 10, 2)
    pixels = np.asarray(grid([[small, tall], [small]]))
    assert pixels.shape == (10 + GAP + 4, 4 + GAP + 6, 3)
    np.testing.assert_array_equal(pixels[:4, :4], np.asarray(small))
    np.testing.assert_array_equal(pixels[:10, 4 + GAP :], np.asarray(tall))
    np.testing.assert_array_equal(pixels[10 + GAP :, :4], np.asarray(small))
    assert (pixels[4:10, :4] == 255).all()


def test_labelled_writes_the_text_below_and_keeps_it_narrow():
    one, other = picture(40, 40, 1), picture(40, 40, 2)
    canvas = with_caption([one, other], "a long instruction that takes several lines here", zoom=2)
    pixels = np.asarray(canvas)
    assert canvas.width == 160 + GAP
    np.testing.assert_array_equal(pixels[:80, :80], np.asarray(one.resize((80, 80), Image.Resampling.NEAREST)))
    np.testing.assert_array_equal(pixels[:80, 80 + GAP :], np.asarray(other.resize((80, 80), Image.Resampling.NEAREST)))
    ink = (pixels[80 + GAP :] < 128).all(-1)
    rows = np.flatnonzero(ink.any(1))
    assert np.diff(rows).max() > 1, "one line only"
    assert rows[-1] < len(ink) - 1, "the last line is cut"
    assert with_caption([one], "red").height < canvas.height


def test_rows_have_their_names_in_front():
    one, other = picture(40, 40, 1), picture(40, 40, 2)
    pixels = np.asarray(named_rows({"colour": [((one, other), "red"), ((other, one), "blue")], "a long name": [((one,), "cut")]}))
    for number, shown in enumerate((one, other, other, one)):
        left = NAME + GAP + number * (40 + GAP)
        np.testing.assert_array_equal(pixels[:40, left : left + 40], np.asarray(shown))
    second = pixels.shape[0] - np.asarray(with_caption([one], "cut")).shape[0]
    np.testing.assert_array_equal(pixels[second : second + 40, NAME + GAP : NAME + GAP + 40], np.asarray(one))
    for top in (0, second):
        assert (pixels[top : top + 40, :NAME] < 128).any(), "the name is missing"
