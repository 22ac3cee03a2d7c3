"""What is minimised."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dim_jax.data.batches import PaintBatch
from dim_jax.models import module
from dim_jax.processing.inputs import encoder_inputs
from dim_jax.training.losses import encode_batch, painter_loss
from tests.parity import dim_goldens


def test_a_longer_condition_changes_nothing():
    """Neither the loss nor a gradient; some of the rows have lost their condition."""
    dim = dim_goldens.load(Path(__file__).parent / "goldens")
    params = {path: jnp.asarray(x) for path, x in module.parameters(dim).items()}
    learning = {path: x for path, x in params.items() if path.startswith(("connector.", "sana."))}
    config, rng = dim.config.encoder, np.random.default_rng(0)
    real = np.arange(10) < np.array([[10], [7], [8], [9]])
    ids, user_turn = np.where(real, rng.integers(3, 10, real.shape), 0), real & (np.arange(10) >= 3)
    inputs = encoder_inputs(ids, real, user_turn, [], [], image_token_id=config.image_token_id, layout=config.vision.layout)
    target, source = rng.integers(0, 256, (2, 4, 16, 24, 3), np.uint8)

    @jax.jit
    @jax.value_and_grad
    def loss(learning, batch):
        model = module.with_parameters(dim, params | learning)
        features = encode_batch(model.encoder, model.autoencoder, batch)
        assert features.hidden.shape[1] == batch.condition_length
        options = {"shift": 1.0, "draw": "uniform", "condition_dropout": 0.5}
        return painter_loss(model.connector, model.sana, features, jax.random.key(0), **options)[0]

    (value, short), (expected, long) = (loss(learning, PaintBatch(inputs, target, source, length)) for length in (7, 24))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for path, gradient in short.items():
        np.testing.assert_allclose(gradient, long[path], rtol=1e-5, atol=1e-6, err_msg=path)  # the largest are 3; sums have another order


def test_source_dropout_equals_no_source():
    """On the channels; the encoder reads the same turn. Each row by itself."""
    dim = dim_goldens.load(Path(__file__).parent / "goldens")
    parameters = {path: jnp.asarray(x) for path, x in module.parameters(dim).items()}
    dim = module.with_parameters(dim, parameters)
    config, rng = dim.config.encoder, np.random.default_rng(0)
    target, source = rng.integers(0, 256, (2, 2, 1, 16, 24, 3), np.uint8)

    @partial(jax.jit, static_argnames="share")
    def loss(inputs, target, source, share):
        features = encode_batch(dim.encoder, dim.autoencoder, PaintBatch(inputs, target, source, 8))
        options = {"shift": 1.0, "draw": "uniform", "condition_dropout": 0.0, "source_dropout": share}
        return painter_loss(dim.connector, dim.sana, features, jax.random.key(0), **options)[0]

    for row, ids in enumerate(([3, 4, 5, 6], [9, 8, 7, 6])):
        real = np.ones((1, 4), bool)
        inputs = encoder_inputs(np.array([ids]), real, real, [], [], image_token_id=config.image_token_id, layout=config.vision.layout)
        kept, dropped = (float(loss(inputs, target[row], source[row], share)) for share in (0.0, 1.0))
        np.testing.assert_allclose(dropped, loss(inputs, target[row], None, 0.0), rtol=1e-6)
        assert abs(kept / dropped - 1) > 1e-3
