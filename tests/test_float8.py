"""Products in float8: how near they are, what they do with large numbers, and the pictures that they paint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array

from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.float8 import FLOAT8, LARGE_LAYERS, Float8Linear, float8_product, with_float8
from dim_jax.models.module import parameters
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.pipeline import EditPipeline
from dim_jax.settings import Settings
from dim_jax.training.objectives import abstract_model
from dim_jax.weights.model_config import ModelConfig
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


def relative_error(found: Array, expected: Array) -> float:
    return float(jnp.linalg.norm(found.astype(jnp.float32) - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_training_products_and_their_gradients_are_near_at_all_sizes(size):
    key = jax.random.key(0)
    x, kernel, direction = (jax.random.normal(key, shape) * size for shape in ((2, 48, 96), (96, 64), (2, 48, 64)))
    found, back = jax.vjp(float8_product, x, kernel)
    expected, exact_back = jax.vjp(jnp.matmul, x, kernel)
    assert 0.005 < relative_error(found, expected) < 0.05
    for near, gradient in zip(back(direction), exact_back(direction), strict=True):
        assert near.dtype == gradient.dtype
        assert 0.005 < relative_error(near, gradient) < 0.08  # two bits of mantissa in the gradient


def test_training_products_of_zeros_are_zeros():
    found, back = jax.vjp(float8_product, jnp.zeros((3, 96)), jnp.ones((96, 64)))
    assert not found.any()
    assert not any(gradient.any() for gradient in back(jnp.zeros((3, 64))))


def test_only_large_layers_of_sana_train_in_float8():
    model = abstract_model(ModelConfig(QwenConfig.tiny(), SanaConfig.tiny(), DCAEConfig.tiny()), ("connector", "sana"), jnp.bfloat16)
    converted = {
        path
        for path, layer in nnx.iter_modules(with_float8(model))
        if getattr(layer, "dot_general", jax.lax.dot_general) is not jax.lax.dot_general
    }
    assert {".".join(map(str, path)) for path in converted} == {f"sana.blocks.{name}" for name in LARGE_LAYERS}
    assert parameters(with_float8(model)).keys() == parameters(model).keys()
