"""The composition: condition, painting with and without guidance and source, and how large the whole is."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dim_jax.errors import InputError
from dim_jax.models import module
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.dim import Dim, DimConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processing.inputs import encoder_inputs
from tests.parity import dim_goldens
from tests.sana_fixtures import normal

SIZE = (2, 3)


@pytest.fixture(scope="module")
def dim() -> Dim:
    """The checkpoint of the goldens, with a condition that counts (published norms start at 0.01)."""
    model = dim_goldens.load(dim_goldens.Path(__file__).parent / "goldens")
    parameters = module.parameters(model)
    parameters["sana.attention_y_norm.scale"] = 100 * parameters["sana.attention_y_norm.scale"]
    return module.with_parameters(model, {path: jnp.asarray(x) for path, x in parameters.items()})


@partial(jax.jit, static_argnames=("guided", "num_steps", "solver"))
def paint(
    dim, condition, mask, seeds, source=None, negative=None, guidance_scale=7.5, guided=True, num_steps=3, solver="dpm++2m",
    image_guidance_scale=None,
):  # fmt: skip
    """One picture's latents a seed, guided by the null condition or a negative prompt."""
    encoded = dim.sana.encode_condition(condition, mask)
    null = dim.sana.null_condition(mask) if negative is None else dim.sana.encode_condition(negative, mask)
    guide = {"unconditional": null, "guidance_scale": guidance_scale} if guided else {}
    guide |= {"image_guidance_scale": image_guidance_scale}
    return dim.paint(encoded, seeds, SIZE, source, num_steps=num_steps, solver=solver, **guide)


@pytest.fixture(scope="module")
def batch(dim):
    """Three conditions of different length, seeds and sources."""
    c = dim.config.sana
    mask = jnp.arange(8) < jnp.array([8, 3, 5])[:, None]
    return normal(3, 8, c.caption_channels), mask, jnp.array([4, 9, 4]), normal(3, *SIZE, c.latent_channels, seed=1)


def test_a_painting_does_not_depend_on_its_batch(dim, batch):
    condition, mask, seeds, source = batch
    together = paint(dim, condition, mask, seeds, source)
    alone = paint(dim, condition[1:2], mask[1:2], seeds[1:2], source[1:2])
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-3, atol=1e-3)
    assert together.shape == (3, *SIZE, 8)


def test_output_depends_on_every_input(dim, batch):
    """Seed, condition, source, guidance, negative prompt, solver: another one is another picture."""
    condition, mask, seeds, source = batch
    first = paint(dim, condition, mask, seeds, source)
    others = {
        "seed": paint(dim, condition, mask, seeds + 1, source),
        "condition": paint(dim, condition[::-1], mask, seeds, source),
        "source": paint(dim, condition, mask, seeds, source[::-1]),
        "guidance": paint(dim, condition, mask, seeds, source, guidance_scale=2.0),
        "negative": paint(dim, condition, mask, seeds, source, condition[::-1]),
        "solver": paint(dim, condition, mask, seeds, source, solver="euler"),
        "image guidance": paint(dim, condition, mask, seeds, source, image_guidance_scale=1.5),
    }
    assert [name for name, other in others.items() if jnp.abs(other - first).max() < 1e-3] == []


def test_guidance_scale_one_equals_conditional_branch(dim, batch):
    """Mathematically; the null branch is then multiplied by zero."""
    condition, mask, seeds, source = batch
    one = paint(dim, condition, mask, seeds, source, guidance_scale=1.0)
    np.testing.assert_allclose(one, paint(dim, condition, mask, seeds, source, guided=False), rtol=1e-3, atol=1e-3)


def test_a_negative_prompt_of_the_condition_itself_cancels_guidance(dim, batch):
    condition, mask, seeds, source = batch
    same = paint(dim, condition, mask, seeds, source, condition)
    np.testing.assert_allclose(same, paint(dim, condition, mask, seeds, source, guided=False), rtol=1e-3, atol=2e-3)


def test_image_guidance_goes_on_from_no_source_through_the_source(dim, batch):
    """One step is linear in the guidance: three paintings, each of one branch alone, give every other."""
    condition, mask, seeds, source = batch
    once = partial(paint, dim, condition, mask, seeds, num_steps=1)
    blank = paint(dim, condition, mask, seeds, jnp.zeros_like(source), guidance_scale=0.0, num_steps=1)
    known, all_ = once(source, guidance_scale=0.0), once(source, guided=False)
    expected = blank + 1.7 * (known - blank) + 4.0 * (all_ - known)
    found = once(source, guidance_scale=4.0, image_guidance_scale=1.7)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3 * float(jnp.abs(expected).max()))
    assert jnp.abs(found - once(source, guidance_scale=4.0)).max() > 1e-2


def test_image_guidance_at_one_is_that_by_the_text(dim, batch):
    condition, mask, seeds, source = batch
    one, none = (paint(dim, condition, mask, seeds, source, image_guidance_scale=scale) for scale in (1.0, None))
    np.testing.assert_allclose(one, none, rtol=1e-3, atol=1e-3)


def test_without_a_source_there_is_no_image_guidance(dim, batch):
    condition, mask, seeds, _ = batch
    np.testing.assert_array_equal(paint(dim, condition, mask, seeds, image_guidance_scale=3.0), paint(dim, condition, mask, seeds))


def test_without_a_source_it_paints_from_text(dim, batch):
    condition, mask, seeds, source = batch
    np.testing.assert_array_equal(paint(dim, condition, mask, seeds), paint(dim, condition, mask, seeds, jnp.zeros_like(source)))


def test_condition_is_the_user_turn_padded_with_zeros(dim):
    """Text only. Tokens in front of the turn act through attention alone; a longer bucket only adds zeros."""
    ids = np.array([[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]])
    turn = np.array([[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]], bool)
    config = dim.config.encoder
    inputs = encoder_inputs(ids, np.ones_like(turn), turn, [], [], image_token_id=config.image_token_id, layout=config.vision.layout)
    condition = jax.jit(Dim.condition, static_argnums=2)
    (short, short_mask), (long, long_mask) = condition(dim, inputs, 4), condition(dim, inputs, 7)
    assert short.shape == (2, 4, dim.config.sana.caption_channels)
    np.testing.assert_array_equal(short_mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(jnp.where(short_mask[..., None], 0, short), 0)
    np.testing.assert_allclose(long[:, :4], short, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(long_mask[:, :4], short_mask)
    assert not long[:, 4:].any()


def test_full_size():
    """DESIGN's table: each part of the published model, and 5.70 B in all."""
    config = DimConfig.dim_4_6b(edit=True)
    assert config.sana == SanaConfig.sana_1600m(edit=True)
    shapes = module.shapes(nnx.eval_shape(lambda: Dim(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))
    sizes = {"null table": np.prod(shapes.pop("sana.y_embedder.y_embedding"))}
    for path, shape in shapes.items():
        part = path.split(".")[0]
        sizes[part] = sizes.get(part, 0) + int(np.prod(shape))
    assert sizes == {
        "encoder": 3_754_622_976,
        "connector": 10_031_616,
        "sana": 1_604_713_632,
        "null table": 18_874_368,
        "autoencoder": 312_250_275,
    }


def test_components_with_mismatched_latents_are_refused():
    whole = DimConfig.dim_4_6b()
    with pytest.raises(InputError, match=r"SANA has 32 latent channels, the autoencoder 8\."):
        replace(whole, autoencoder=DCAEConfig.tiny())
