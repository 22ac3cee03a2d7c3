"""Representation alignment: its formula, what the encoder sees, which hidden states are taken, and a run to its checkpoint."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dim_jax.config import read_config
from dim_jax.errors import InputError
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.models.sana import Sana
from dim_jax.processing.inputs import encoder_inputs
from dim_jax.processing.processor import patchify, resize_for_encoder
from dim_jax.training.config_guard import check_config
from dim_jax.training.repa import alignment, picture_features
from dim_jax.weights.opening import open_weights
from tests.painter_fixtures import picture
from tests.sana_fixtures import config, mask, normal, sana
from tests.test_train import SMALL, last_error, log, train

REPA = {"repa__weight": "0.5", "repa__block": "1", "trainable": "('connector', 'sana', 'repa')"}


def test_alignment_is_the_mean_cosine_of_features_at_their_place():
    """On one grid, on a finer one of hidden states, whose corners have the features of corners, and averaged on a coarser one."""
    hidden, features = np.asarray(normal(2, 4, 6, 5)), np.asarray(normal(2, 4, 6, 5, seed=1))
    norms = np.linalg.norm(hidden, axis=-1) * np.linalg.norm(features, axis=-1)
    np.testing.assert_allclose(alignment(*map(jnp.asarray, (hidden, features))), np.mean((hidden * features).sum(-1) / norms), rtol=1e-5)
    constant = jnp.broadcast_to(jnp.asarray(features[:, :1, :1]), features.shape)
    for grid in ((8, 12), (3, 5)):
        assert float(alignment(jnp.broadcast_to(3 * constant[:, :1, :1], (2, *grid, 5)), constant)) == pytest.approx(1, abs=1e-5)
    fine = np.zeros((1, 4, 4, 3), np.float32)
    fine[:, :2, 2:], fine[:, 2:, :2] = 1, -1  # the same in each quarter as in the cell of the features there
    coarse = fine[:, 1::2, 1::2]
    assert float(alignment(jnp.asarray(fine), jnp.asarray(coarse))) > 0.4 > -0.4 > float(alignment(jnp.asarray(-fine), jnp.asarray(coarse)))


@pytest.mark.parametrize(("size", "largest"), [((84, 56), 1e-5), ((64, 96), 0.1)])
def test_the_tower_sees_pictures_as_the_processor_gives_them(size, largest):
    """To rounding where the sizes are the same, and to the rounding of resized pixels to 8 bits where they are not."""
    encoder, pictures = jax.jit(lambda: Qwen(QwenConfig.tiny(), rngs=nnx.Rngs(0)))(), [picture(size[0], size[1], seed) for seed in (0, 1)]
    layout = encoder.config.vision.layout
    sizes = {"mode": "native", "resolution": 64, "factor": layout.patch_size * layout.merge_size}
    patches = [patchify(resize_for_encoder(one, **sizes), layout) for one in pictures]
    grid = patches[0][1]
    ids = np.full((2, len(patches[0][0]) // layout.group), encoder.config.image_token_id)
    real = np.ones(ids.shape, bool)
    inputs = encoder_inputs(
        ids, real, real, [pixels for pixels, _ in patches], [grid] * 2, image_token_id=encoder.config.image_token_id, layout=layout
    )
    expected = np.asarray(jax.jit(lambda model: model.visual(inputs))(encoder))
    pixels = jnp.asarray(np.stack([np.asarray(one) for one in pictures]))
    found = np.asarray(jax.jit(picture_features)(encoder, pixels))
    assert found.shape == (2, grid[0] // layout.merge_size, grid[1] // layout.merge_size, encoder.config.hidden_size)
    error = np.abs(found.reshape(expected.shape) - expected).max() / expected.std()
    assert error < largest


def test_hidden_states_are_those_after_a_block():
    """As the first blocks alone have them at their end; the velocity is that of a call."""
    model, latents, source, timestep = sana(config(depth=3)), normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), jnp.array([300.0, 700.0])
    tokens, real = normal(2, 5, 12, seed=2), mask([5, 3], 5)

    @partial(jax.jit, static_argnames="block")
    def run(model: Sana, block: int):
        return model.with_hidden(latents, timestep, model.embed_condition(tokens, real), source, block=block, remat="all")

    velocity, _ = run(model, 2)
    np.testing.assert_allclose(
        velocity, jax.jit(Sana.__call__)(model, latents, timestep, model.embed_condition(tokens, real), source), atol=1e-5
    )
    first = nnx.eval_shape(lambda: Sana(config(depth=2), rngs=nnx.Rngs(0)))
    first = with_parameters(first, {path: x[:2] if path.startswith("blocks.") else x for path, x in parameters(model).items()})
    hidden = [run(model, 2)[1], run(first, 2)[1], run(model, 1)[1]]
    np.testing.assert_allclose(hidden[0], hidden[1], atol=1e-5)
    assert np.abs(hidden[0] - hidden[2]).max() > 0.1


def test_a_run_aligns_and_exports_an_ordinary_painter(tmp_path):
    """With contrasts to other rows. The error itself is logged, and similarity grows."""
    changes = REPA | {"flow__contrastive": "0.05", "optim__learning_rate": "1e-2"}
    code, text = train("nano_edit", tmp_path / "run", 8, data__lengths="(192,)", data__mix__caption="0.0", **changes)
    assert code == 0, text
    lines = log(tmp_path / "run")
    assert lines[-1]["alignment"] > lines[0]["alignment"] + 0.1
    assert all(line["loss"] < line["flow_error"] - 0.5 * line["alignment"] for line in lines)
    assert open_weights(tmp_path / "run/model").config.parts == ("encoder", "connector", "sana", "autoencoder")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainable": "('connector', 'sana')"}, "Set trainable to ('connector', 'sana', 'repa')"),
        ({"repa.weight": "0.0"}, "name each of encoder, connector, sana, autoencoder once"),
        ({"repa.weight": "-1.0"}, "at least 0"),
        ({"data.cache": "cache"}, "a cache holds no target pictures"),
        ({"lora.rank": "4"}, "a LoRA trains adapters alone"),
        ({"objective": "autoencoder"}, "only a painter"),
        ({"flow.contrastive": "0.1", "data.batch_size": "1"}, "which compares rows"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, says):
    values = {key.replace("__", "."): value for key, value in REPA.items()}
    with pytest.raises(InputError, match=re.escape(says)):
        check_config(read_config(Path("nano_edit"), SMALL | values | changes))


def test_a_block_that_is_not_there_is_refused(tmp_path):
    assert "SANA has 2 blocks. Set it from 1 to 2." in last_error(train("nano_edit", tmp_path / "run", 1, **REPA | {"repa__block": "3"}))
