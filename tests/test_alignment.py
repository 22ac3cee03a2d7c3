"""An edit does not move its picture: odd sizes through the bundled model's autoencoder and the geometry of an edit."""

from pathlib import Path

import pytest

from benchmarks.alignment import identity
from dim_jax.processing.pictures import cover_crop, open_picture
from dim_jax.sampling import Sampler
from dim_jax.weights.bundled import bundled_checkpoint

PHOTOGRAPH = open_picture(Path(__file__).parents[1] / "examples/coffee.jpg")


@pytest.fixture(scope="module")
def nano() -> Sampler:
    return Sampler.from_pretrained(bundled_checkpoint())


@pytest.mark.parametrize("size", [(61, 67), (133, 129), (300, 311), (64, 59), (97, 203), (256, 121)])
def test_what_comes_back_has_not_moved(nano, size):
    """By less than half a pixel of the source, while a shift of one painted pixel is seen."""
    shift, known = identity(nano, cover_crop(PHOTOGRAPH, size[::-1]), nano.settings.resolution)
    assert shift < 0.5
    assert known > 0.6
