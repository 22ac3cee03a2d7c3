"""Masks as a user names them: what is white, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_jax.edit_result import read_metadata
from dim_jax.errors import InputError
from dim_jax.processing.masks import open_mask
from tests.painter_fixtures import QUICKLY, dim, edit, one_error, picture

SIZE = (40, 30)


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """Every test has a folder of its own with a picture in it."""
    monkeypatch.chdir(tmp_path)
    picture(40, 40, 1).save("in.png")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("4,5,10,20", (4, 5, 14, 25)),
        ("0, 0, 40, 30", (0, 0, 40, 30)),
        ("10%,50%,50%,50%", (4, 15, 24, 30)),
        ("39,0,2.5%,100%", (39, 0, 40, 30)),
    ],
)
def test_a_rectangle_is_in_pixels_or_percent(text, box):
    assert open_mask(text, SIZE).getbbox() == box
    assert np.count_nonzero(open_mask(text, SIZE)) == (box[2] - box[0]) * (box[3] - box[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", "^--mask 1,2,3: a rectangle is X,Y,W,H"),
        ("1,2,3,4,5", "a rectangle is X,Y,W,H"),
        ("-1,2,3,4", "a rectangle is X,Y,W,H"),
        ("1.5,2,3,4", "a rectangle is X,Y,W,H"),
        ("31,2,10,4", "picture is 40 x 30 pixels, but the rectangle ends at 41, 6. Keep it within"),
        ("0%,60%,10%,50%", "ends at 4, 33"),
        ("4,4,0,9", "holds none of them"),
        ("none.png", "^none.png: there is no such file"),
        ("small.png", "^small.png: The mask is 8 x 9 pixels, but the picture 40 x 30"),
        ("black.png", "^black.png: The mask is black everywhere"),
        ("torn.png", "^torn.png: the picture is damaged"),
    ],
)
def test_masks_that_cannot_be_used(text, message):
    Image.new("L", (8, 9), 255).save("small.png")
    Image.new("RGB", SIZE).save("black.png")
    picture(*SIZE).save("torn.png")
    Path("torn.png").write_bytes(Path("torn.png").read_bytes()[:-40])
    with pytest.raises(InputError, match=message):
        open_mask(text, SIZE)


def test_what_is_white_or_transparent_may_change():
    mask = Image.new("RGBA", SIZE, "black")
    mask.paste("white", (0, 0, 10, 10))
    mask.paste((0, 0, 0, 0), (20, 0, 30, 10))
    mask.paste((128, 128, 128, 255), (30, 0, 40, 10))
    mask.save("mask.png")
    levels = np.asarray(open_mask("mask.png", SIZE))
    assert [int(levels[5, x]) for x in (5, 15, 25, 35)] == [255, 0, 255, 128]


def test_edit_with_a_mask(loaded):
    """By rectangle and by picture the same, in every round."""
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 10, 30, 30))
    mask.save("mask.png")
    assert dim(*edit("--mask", "10,25%,20,50%", "--feather", "3", *QUICKLY)) == (0, "wrote out.png\n")
    assert dim(*edit("--mask", "mask.png", "--feather", "3", "--then", "cut", "--rounds", *QUICKLY, output="two.png"))[0] == 0
    before, outside = np.asarray(picture(40, 40, 1)), np.asarray(mask) == 0
    with Image.open("out.png") as result, Image.open("two.1.png") as first, Image.open("two.png") as second:
        assert result.tobytes() == first.tobytes()
        assert result.tobytes() != second.tobytes()
        for one in (result, second):
            np.testing.assert_array_equal(np.asarray(one)[outside], before[outside])
        assert (np.asarray(result) != before).any(-1)[~outside].mean() > 0.8
    assert read_metadata("out.png")["changed"] == pytest.approx(0.25, abs=0.01)


def test_options_that_do_not_go_together(monkeypatch):
    assert "Add --mask" in dim(*edit("--feather", "3"))[1]
    assert "Leave --size out" in dim(*edit("--mask", "0,0,9,9", "--size", "64x64"))[1]
    assert one_error(dim(*edit("--mask", "0,0,50,9"))).startswith("error: --mask 0,0,50,9: the picture is 40 x 40 pixels, but")
