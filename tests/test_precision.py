"""Every product of float32 numbers says that it is exact, whatever the device makes of one that does not; and who may say otherwise."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.dim import Dim, DimConfig
from dim_jax.models.precision import compute_dtype
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processing.inputs import EncoderInputs
from dim_jax.training.losses import Features, painter_loss
from tests.painter_fixtures import painter

CONFIG = DimConfig(QwenConfig.tiny(), SanaConfig.tiny(edit=True), DCAEConfig.tiny())


def products(jaxpr: Any) -> Iterator[Any]:
    """Every product and convolution, also inside of loops and branches."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def inexact(function: Any, *arguments: Any) -> list[str]:
    # JAX's attention names what it does with bfloat16 queries, also for the float32 gradient of their scores.
    said = (jax.lax.Precision.HIGHEST,) * 2, jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    found = list(products(jax.make_jaxpr(function)(*arguments).jaxpr))
    assert len(found) >= 5
    wide = [e for e in found if any(x.aval.dtype == jnp.float32 for x in e.invars)]
    return [str(e.source_info.name_stack) or str(e) for e in wide if e.params["precision"] not in said]


@pytest.fixture(scope="module")
def inputs() -> EncoderInputs:
    shared = painter()
    picture = shared.processor(["Make it red."], [[]], lengths=[64], overflow="error")
    return jax.tree.map(jnp.asarray, picture)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_of_float32_numbers_is_exact(dtype):
    model = nnx.eval_shape(lambda: Dim(CONFIG, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    f, c, d = CONFIG.autoencoder.factor, CONFIG.sana.latent_channels, CONFIG.encoder.text.hidden_size
    pixels, latents = jnp.zeros((2, 2 * f, 2 * f, 3)), jnp.zeros((2, 2, 2, c))
    hidden, mask = jnp.zeros((2, 8, d)), jnp.ones((2, 8), bool)

    def step(model: Dim, hidden: Any, target: Any) -> Any:
        features, key = Features(hidden, mask, target, target), jax.random.key(0)
        return painter_loss(model.connector, model.sana, features, key, shift=3.0, draw="uniform", condition_dropout=0.1)[0]

    assert not inexact(lambda model, x: model.autoencoder.encode(x), model, pixels)
    assert not inexact(lambda model, x: model.autoencoder.decode(x), model, latents)
    assert not inexact(jax.grad(step, argnums=(1, 2)), model, hidden, latents)
    assert not inexact(lambda model, x: model.sana.encode_condition(model.connector(x), mask), model, hidden)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoder_products_are_exact(dtype, inputs):
    model = nnx.eval_shape(lambda: Dim(CONFIG, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    assert not inexact(lambda model: model.encoder.logits(model.encoder(inputs)), model)


def test_user_default_precision_wins():
    model = nnx.eval_shape(lambda: Dim(CONFIG, rngs=nnx.Rngs(0)))
    pixels = jnp.zeros((1, 2 * CONFIG.autoencoder.factor, 2 * CONFIG.autoencoder.factor, 3))
    with jax.default_matmul_precision("tensorfloat32"):
        assert inexact(lambda model, x: model.autoencoder.encode(x), model, pixels)


def test_tf32_is_float32_with_fast_products(monkeypatch):
    monkeypatch.setattr(jax.config, "update", partial(dict.__setitem__, changes := {}))
    assert compute_dtype("tf32") == np.float32
    assert changes == {"jax_default_matmul_precision": "tensorfloat32"}
    assert compute_dtype(None) == np.float32  # on the CPU
    assert compute_dtype("bfloat16") == jnp.bfloat16
