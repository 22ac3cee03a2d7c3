"""SANA in tiles: weights that add up, and pictures without seams."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_jax.models.sana_tiling import blend_tiles, tile_weights

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 14, 21, 3)), jnp.float32)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(length=st.integers(1, 300), tile=st.integers(4, 64))
def test_weights_of_all_tiles_add_up_to_one(length, tile):
    starts, weights = tile_weights(length, tile)
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        assert len(weight) == min(tile, length)
        assert (weight > 0).all()
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_tiles_of_a_local_function_are_the_whole():
    """Of several arrays, cut at one place."""
    run = lambda x, y: jnp.tanh(x) * y.sum(-1, keepdims=True)  # noqa: E731
    y = X[::-1] + 1
    np.testing.assert_allclose(blend_tiles(run, X, y, tile=8), run(X, y), rtol=1e-5, atol=1e-5)


def test_one_tile_is_the_function_itself():
    shapes = []
    run = lambda x: shapes.append(x.shape) or x  # noqa: E731
    assert blend_tiles(run, X, tile=21) is X
    assert shapes == [X.shape]


def test_each_tile_is_seen_alone_and_fades_into_the_next():
    """A function that says which tile it saw: its mean. Across tiles the result changes by less than the tiles differ."""
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 8, 32, 1))
    out = np.asarray(blend_tiles(lambda x: jnp.full_like(x, x.mean()), ramp, tile=16))[0, :, :, 0]
    starts, _ = tile_weights(32, 16)
    means = [start + 7.5 for start in starts]
    assert out[0, 0] == means[0]
    assert out[0, -1] == means[-1]
    steps = np.diff(out[0])
    assert (steps >= 0).all()
    assert steps.max() < np.diff(means).max() / 3
    np.testing.assert_array_equal(out, np.broadcast_to(out[:1], out.shape))


@pytest.fixture(scope="module")
def nano():
    from dim_jax.pipeline import EditPipeline
    from dim_jax.weights.bundled import bundled_checkpoint

    return EditPipeline.from_pretrained(bundled_checkpoint())


def test_a_large_edit_has_no_seams(nano):
    """Two by two tiles of the nano model's own size: where they meet, neighbouring pixels differ no more than elsewhere."""
    from dataclasses import replace

    from dim_jax.processing.pictures import open_picture
    from dim_jax.weights.bundled import bundled_checkpoint

    source = open_picture(bundled_checkpoint() / "samples/book.png").resize((112, 110))
    tiled = replace(nano.sampler.settings, tile=64, num_steps=8)
    (result,) = nano(["Make the book red."], [source], settings=tiled)
    assert result.image.size == source.size
    assert result.latents.shape[:2] == (14, 14)
    starts, _ = tile_weights(14, 8)
    assert starts == [0, 6]
    # What the edit changed, so that edges of the picture do not count; the tiles' rims are at pixels 48 and 64.
    change = np.asarray(result.image, float) - np.asarray(source)
    assert np.abs(change).mean() > 5
    for axis, top in ((0, 1), (1, 0)):
        steps = np.abs(np.diff(change, axis=axis)).mean((1 - axis, 2))
        seams = [8 * line - 1 - top for line in (6, 8)]
        assert steps[seams].max() < np.delete(steps, seams).max()
        assert steps[seams].mean() < np.percentile(np.delete(steps, seams), 90)
