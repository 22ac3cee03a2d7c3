"""What augmentation may change: both pictures of an example alike, and only of the rules that it is told."""

import colorsys
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dim_jax.data.readers import Augment, hue_rotate
from dim_jax.data.synthetic import Synthetic
from dim_jax.processing.pictures import as_rgb

SIDE = 16
EDIT, CAPTION = (Synthetic(kind, SIDE)[0] for kind in ("edit", "caption"))
RULE = (EDIT.rule,)


def changed(augment: Augment, example=EDIT, *, count: int = 40) -> list:
    return [augment(example, np.random.default_rng(seed)) for seed in range(count)]


def pixels(example) -> np.ndarray:
    return np.stack([np.asarray(one) for one in (example.source, example.target)])


def test_the_pictures_of_an_example_move_together():
    ways = set()
    for other in changed(Augment(shift=1)):
        padded = np.pad(pixels(EDIT), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        fits = {
            (right, down)
            for right in (-1, 0, 1)
            for down in (-1, 0, 1)
            if np.array_equal(pixels(other), padded[:, 1 - down : 1 - down + SIDE, 1 - right : 1 - right + SIDE])
        }
        assert len(fits) == 1
        ways |= fits
    assert len(ways) == 9


def test_every_second_example_of_a_rule_is_mirrored():
    mirrored = pixels(EDIT)[:, :, ::-1]
    found = [pixels(other) for other in changed(Augment(mirrored=RULE))]
    turns = [np.array_equal(one, mirrored) for one in found]
    assert 10 < sum(turns) < 30
    assert all(turn or np.array_equal(one, pixels(EDIT)) for one, turn in zip(found, turns, strict=True))


def test_every_second_example_of_a_rule_is_recoloured():
    found = [pixels(other) for other in changed(Augment(recoloured=RULE))]
    same = [np.array_equal(one, pixels(EDIT)) for one in found]
    assert 10 < sum(same) < 30
    assert len({one.tobytes() for one in found}) == 1 + len(same) - sum(same), "each turned by an angle of its own"


def test_other_rules_and_captions_keep_sides_and_colours():
    for example, rules in ((EDIT, ("another",)), (CAPTION, ("another",))):
        assert all(other == example for other in changed(Augment(mirrored=rules, recoloured=rules), example, count=8))
    for other in changed(Augment(mirrored=RULE, recoloured=RULE), CAPTION, count=8):
        assert other.source is None, "a caption has one picture, changed or not"


def test_augmentation_is_deterministic_per_random_number():
    augment = Augment(shift=3, mirrored=RULE, recoloured=RULE)
    for one, other in zip(changed(augment), changed(augment), strict=True):
        assert np.array_equal(pixels(one), pixels(other))


@pytest.mark.parametrize("turns", [1, 2])
def test_hue_rotation_of_120_degrees_maps_red_to_green_to_blue(turns):
    wheel = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    image = Image.new("RGB", (3, 1))
    image.putdata(wheel)
    expected = [wheel[(place + turns) % 3] for place in range(3)]
    assert np.abs(np.asarray(hue_rotate(image, turns * 2 * np.pi / 3))[0].astype(int) - expected).max() <= 1


def test_hue_rotation_keeps_greys():
    greys = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2))
    assert np.abs(np.asarray(hue_rotate(greys, 1.0)).astype(int) - np.asarray(greys)).max() <= 1
    soft = Image.new("RGB", (1, 1), (150, 120, 110))
    hues = [colorsys.rgb_to_hsv(*hue_rotate(soft, angle).getpixel((0, 0)))[0] for angle in (0.0, 1.5)]
    assert abs(hues[1] - hues[0] - 1.5 / (2 * np.pi)) < 0.03


def test_augmentation_applies_exif_and_white_background():
    """Lying on their side by Exif, and transparent: they are changed as they are seen, on white."""
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    lying = Image.open(io.BytesIO(file.getvalue()))
    found = changed(Augment(mirrored=RULE), replace(EDIT, source=None, target=lying))
    seen = {np.asarray(as_rgb(one.target)).tobytes() for one in found}
    upright = np.full((4, 2, 3), 255, np.uint8)
    upright[0, 1] = 10, 20, 30
    assert seen == {upright.tobytes(), upright[:, ::-1].tobytes()}
