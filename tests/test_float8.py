"""Products in float8: how near they are, what they do with large numbers, and the pictures that they paint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dim_jax.models.float8 import FLOAT8, Float8Linear
from dim_jax.pipeline import EditPipeline
from dim_jax.settings import Settings
from tests.painter_fixtures import largest_difference, painter, picture


def linear(scale: float = 1.0, *, use_bias: bool = True) -> nnx.Linear:
    layer = nnx.Linear(96, 64, use_bias=use_bias, rngs=nnx.Rngs(0))
    layer.kernel[...] = layer.kernel[...] * scale
    if layer.bias is not None:
        layer.bias[...] = jnp.linspace(-1, 1, 64)
    return layer


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_error_of_a_product_is_that_of_the_format(scale):
    layer, x = linear(scale, use_bias=False), jax.random.normal(jax.random.key(1), (2, 5, 96))
    expected, found = layer(x), Float8Linear(layer)(x)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    error = float(jnp.sqrt(jnp.mean((found - expected) ** 2) / jnp.mean(expected**2)))
    assert 0.005 < error < 0.05  # each factor has three bits of mantissa: about 2.5 %


def test_bias_is_added_as_it_is():
    layer = linear()
    assert jnp.array_equal(Float8Linear(layer)(jnp.zeros((3, 96))), jnp.broadcast_to(layer.bias[...], (3, 64)))


def test_numbers_beyond_the_format_become_its_largest():
    layer = linear()
    found = Float8Linear(layer)(jnp.full((1, 96), 1e9))
    assert bool(jnp.isfinite(found).all())
    empty = linear(0.0)
    assert jnp.array_equal(Float8Linear(empty)(jnp.ones((1, 96)))[0], empty.bias[...])


def test_kernel_is_held_in_float8():
    held = Float8Linear(linear())
    assert held.kernel[...].dtype == FLOAT8
    assert float(jnp.log2(held.input_scale[...])) % 1 == 0  # a power of two rounds nothing


def test_pictures_are_near_and_no_row_depends_on_the_others():
    pipeline, sources = EditPipeline(painter()), [picture(40, 40, seed) for seed in (1, 2, 3)]
    settings = Settings(num_steps=3, resolution=64, guidance_scale=3.0)
    float8 = Settings(num_steps=3, resolution=64, guidance_scale=3.0, float8=True)
    exact, both = (pipeline(["red", "cut"], sources[:2], seeds=[1, 2], settings=chosen) for chosen in (settings, float8))
    # Beside another row, in a batch as large: one of another size may sum in another order, which float8 makes visible.
    beside_another = pipeline(["dog", "cut"], [sources[2], sources[1]], seeds=[3, 2], settings=float8)
    assert largest_difference(beside_another[0].image, both[0].image) > 4
    assert largest_difference(beside_another[1].image, both[1].image) == 0
    assert both[0].settings["float8"] is True
    for near, picture_of_bfloat16 in zip(both, exact, strict=True):
        off = np.asarray(near.image, float) - np.asarray(picture_of_bfloat16.image, float)
        assert 0 < (off**2).mean() < 25  # in squared grey levels: 34 dB
