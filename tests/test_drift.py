"""The measurement of drift, on random weights: what is kept stays, what is encoded again does not."""

from itertools import islice

from benchmarks import drift
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import cover_crop
from tests.painter_fixtures import QUICK, largest_difference, painter, picture

PICTURES = [cover_crop(picture(80, 70, seed), (64, 64)) for seed in (1, 2)]


def largest(a: drift.Pictures, b: drift.Pictures) -> int:
    return max(largest_difference(one, other) for one, other in zip(a, b, strict=True))


def test_the_autoencoder_drifts_unless_its_latents_are_kept():
    kept = list(islice(drift.autoencoder(painter(), PICTURES, keep=True), 3))
    again = list(islice(drift.autoencoder(painter(), PICTURES, keep=False), 2))
    assert largest(kept[0], kept[2]) == 0
    assert largest(kept[0], again[0]) == 0
    assert largest(again[0], again[1]) > 1
    assert largest(again[1], [painter().reconstruct([one], QUICK)[0] for one in again[0]]) <= 1


def test_edit_drift_from_pictures_and_from_latents():
    pipeline = EditPipeline(painter())
    kept, again = (list(islice(drift.edits(pipeline, PICTURES, "keep", QUICK, keep=keep), 2)) for keep in (True, False))
    assert largest(kept[0], again[0]) <= 1
    assert largest(kept[1], again[1]) > 1
    # The second of two pictures has the noise of seed 1.
    (alone,) = pipeline(["keep"], [PICTURES[1]], seeds=[1], settings=QUICK)
    assert largest_difference(kept[0][1], alone.image) <= 1
