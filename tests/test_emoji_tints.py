"""`dim build-data tints`: colours by name, colours that are kept, nothing of the test, one error for what is not a data set of emoji."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dim_jax.datasets.emoji import tables, tints
from dim_jax.datasets.emoji.tints import COLOUR_WORDS, tint
from dim_jax.datasets.layouts.pairs import Pair, Pairs, Picture, encode_webp, read_pictures, write_pairs
from dim_jax.datasets.measures import PALETTE, foreground_mask
from tests.painter_fixtures import build_data, dim, one_error

pytest.importorskip("array_record")

SHADES = {word: PALETTE[word][0] for word in ("red", "green", "blue", "orange", "purple", "brown")}
HELD_OUT = ("1f7e3", "1f4a1")  # the purple circle, and a thing
FORMS = {"circle": ImageDraw.ImageDraw.ellipse, "square": ImageDraw.ImageDraw.rectangle, "heart": ImageDraw.ImageDraw.regular_polygon}


def drawn(form: str, colour: tuple[int, int, int]) -> np.ndarray:
    """A form with a dark spot and a white one."""
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    if form == "heart":
        draw.regular_polygon((32, 32, 26), 3, fill=colour)
    else:
        FORMS[form](draw, (8, 8, 56, 56), fill=colour)
    draw.rectangle((26, 30, 30, 34), fill=tuple(level // 2 for level in colour))
    draw.rectangle((34, 30, 38, 34), fill="white")
    return np.asarray(image)


def picture(code: str, name: str, pixels: np.ndarray) -> Picture:
    return Picture("noto", code, name, "test" if code in HELD_OUT else "train", (f"{name}.",), encode_webp(pixels))


@pytest.fixture
def emoji(tmp_path, monkeypatch) -> Path:
    """Circles, squares and hearts in six colours, and twelve things; smaller counts."""
    monkeypatch.setattr(tints, "THINGS", {"train": 8, "test": 2})
    monkeypatch.setattr(tints, "RECOLOURED_PAIRS", {"shape": 12, "clock": 5})
    pictures, places = [], {}
    for form in FORMS:
        for code, word in tables.COLOURS[form].items():
            if word in SHADES:
                places[form, word] = len(pictures)
                pictures.append(picture(code, f"{word} {form}", drawn(form, SHADES[word])))
    pictures += [picture(f"1f4a{i:x}", f"thing {i}", drawn("circle", (200, 60 + 9 * i, 30))) for i in range(12)]
    pictures += [
        picture("1f1e6-1f1e7", "flag: Land", drawn("square", (9, 9, 90))),
        picture("1f34f", "green apple", drawn("heart", (1, 99, 1))),
    ]
    pairs = [
        Pair(places["circle", word], places["square", word], "shape", ("Turn the circle into a square.", f"Make it a {word} square."), "")
        for word in SHADES
        if word != "purple"
    ]
    (tmp_path / "emoji").mkdir()
    write_pairs(tmp_path / "emoji", pictures, pairs)
    return tmp_path / "emoji"


def build(emoji: Path, name: str = "tints") -> Path:
    build_data("tints", emoji.parent / name, "--from", str(emoji))
    return emoji.parent / name


def middle(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return np.median(pixels[foreground_mask(pixels)], axis=0)


def test_a_tinted_drawing_keeps_its_white_and_its_darks():
    before = drawn("circle", (200, 60, 30))
    after = tint(before, np.array([30.0, 110, 225]))
    assert (after[before.min(-1) == 255] == 255).all()
    assert after[12, 32].tolist() == [30, 110, 225]
    assert (after[32, 28] < after[12, 32]).all()


def test_a_colours_name_changes_any_thing(emoji):
    folder = build(emoji)
    for split, things in (("train", 8), ("test", 1)):
        found = [one for one in Pairs(folder, split, "edit") if one.rule == "tint"]
        assert len({one.key.split("/")[1].partition("-")[0] for one in found}) == things
        assert len(found) >= things * 20
        for one in found:
            assert one.source is not None
            new = next(word for word in SHADES if f" {word}." in one.texts[0])
            assert np.abs(middle(one.target) - SHADES[new]).max() <= 1
            assert np.abs(middle(one.source) - middle(one.target)).max() > 20
            assert np.array_equal(foreground_mask(np.asarray(one.source)), foreground_mask(np.asarray(one.target)))
            assert one.blueprint is not None
            assert one.blueprint.startswith(f"1. **Edit Instruction**: {one.texts[0]}\n\n2. ")


def test_no_test_picture_is_repeated(emoji):
    """Neither a thing that is held out, nor a drawn colour of circles, squares and hearts, such as the purple circle."""
    pictures = read_pictures(build(emoji))
    assert {one.code.partition("-")[0] for one in pictures if one.split == "test"} == {"1f4a1"}
    assert not any("flag" in one.name or "apple" in one.name for one in pictures)
    names = {code for form in FORMS for code in tables.COLOURS[form]}
    forms = [one for one in pictures if one.code.partition("-")[0] in names]
    assert forms
    for one in forms:
        with Image.open(io.BytesIO(one.webp)) as image:
            assert min(np.abs(middle(image.convert("RGB")) - shade).max() for shade in SHADES.values()) > 30, one.code


def test_recoloured_pairs_share_one_colour(emoji):
    found = [one for one in Pairs(build(emoji), "train", "edit") if one.rule == "shape"]
    assert len(found) == 12
    for one in found:
        assert one.source is not None
        np.testing.assert_allclose(middle(one.source), middle(one.target), atol=1)
        assert one.texts == ("Turn the circle into a square.",)
        assert not COLOUR_WORDS & set(" ".join(one.texts).split())
    assert len({tuple(middle(one.target)) for one in found}) == 12


def test_the_same_bytes_twice_and_a_card(emoji):
    one, other = build(emoji), build(emoji, "again")
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    assert "| shape | 12 | 0 |" in (one / "README.md").read_text()


def test_what_is_no_data_set_of_emoji(tmp_path):
    assert "none/pictures.jsonl: no such file" in one_error(dim("build-data", "tints", str(tmp_path / "out"), "--from", "none"))
    (tmp_path / "other").mkdir()
    write_pairs(tmp_path / "other", [picture("1f4a1", "thing", drawn("circle", (9, 9, 90)))], [])
    message = one_error(dim("build-data", "tints", str(tmp_path / "out"), "--from", str(tmp_path / "other")))
    assert "None of the pictures is a heart, circle, square or book" in message
    assert not (tmp_path / "out").exists()
