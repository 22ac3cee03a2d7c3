"""FLOPs by formula against XLA's own count, which is right where no loop runs twice: networks of one layer at their full widths."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dim_jax.config import read_config
from dim_jax.data.batches import CachedBatch, PaintBatch
from dim_jax.models import flops
from dim_jax.models.connector import Connector
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.models.qwen_vision import window_attention
from dim_jax.models.sana import SAVED_NAMES, Sana
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processing.inputs import encoder_inputs
from dim_jax.training.distillation import steps_loss
from dim_jax.training.losses import Features
from dim_jax.training.reward import paint_groups, reward_loss
from dim_jax.training.step_flops import step_flops
from dim_jax.weights.model_config import ModelConfig
from tests.test_train import CONFIGS

ROWS, TOKENS, GRID, PATCHES = 2, 128, (8, 16), 128
QWEN, SANA, DC_AE = QwenConfig.qwen_3b(), SanaConfig.sana_1600m(edit=True, condition_length=TOKENS), DCAEConfig.f32c32()


def counted(run, *args) -> float:
    """What XLA counts in the program of `run`; nothing is compiled or computed."""
    cost = jax.jit(run).lower(*args).cost_analysis()
    assert cost is not None
    return cost["flops"]


def abstract(make):
    return nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))


def array(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def turns(rows: int, tokens: int, grid: tuple[int, int], *, pictures: bool = True):
    """Rows of so many tokens, each with a picture of so many patches a side."""
    layout, size, count = QWEN.vision.layout, math.prod(grid), rows if pictures else 0
    ids = np.ones((rows, tokens), np.int32)
    ids[:, : count and size // layout.group] = 5
    whole, patches = np.ones_like(ids, bool), [np.zeros((size, 1176), np.float32)] * count
    return encoder_inputs(ids, whole, whole, patches, [grid] * count, image_token_id=5, layout=layout)


@pytest.mark.parametrize("pictures", [False, True])
def test_encoder(pictures):
    text = replace(QWEN.text, num_hidden_layers=1, vocab_size=QWEN.text.hidden_size)
    vision = replace(QWEN.vision, depth=1, fullatt_block_indexes=(0,))
    ids = {"image_token_id": 5, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    config, inputs = replace(QWEN, text=text, vision=vision, **ids), turns(ROWS, TOKENS, GRID, pictures=pictures)
    model = abstract(lambda rngs: Qwen(config, rngs=rngs))
    found = counted(lambda model, inputs: model(inputs), model, inputs)
    assert flops.encoder(config, inputs).forward == pytest.approx(found, rel=0.02)
    more = counted(lambda model, inputs: model.logits(model(inputs)), model, inputs) - found
    assert flops.logits(config.text, ROWS, TOKENS).forward == pytest.approx(more, rel=0.01)


def test_windows():
    heads = array(ROWS, PATCHES, 16, 80)
    found = counted(window_attention, heads, heads, heads, turns(ROWS, TOKENS, GRID))
    each, none = (
        flops.vision(replace(QWEN.vision, depth=1, fullatt_block_indexes=whole), ROWS, PATCHES, windows=(2, 64)) for whole in ((), (0,))
    )
    assert each.weights == none.weights
    assert none.mixing == 2 * each.mixing  # a window is half of the picture
    assert each.mixing == pytest.approx(found, rel=0.05)


def test_connector():
    found = counted(lambda model, x: model(x), abstract(lambda rngs: Connector(2048, 2304, rngs=rngs)), array(ROWS, TOKENS, 2048))
    assert flops.connector(2048, 2304, ROWS, TOKENS).forward == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("coder", ["encode", "decode"])
def test_autoencoder(coder):
    encoder, decoder = (tuple(replace(stage, depth=1) for stage in stages) for stages in (DC_AE.encoder, DC_AE.decoder))
    config = replace(DC_AE, encoder=encoder, decoder=(replace(decoder[0], depth=2), *decoder[1:]))
    model = abstract(lambda rngs: DCAE(config, rngs=rngs))
    shape, formula = ((1, 1024, 512, 3), flops.dc_ae_encoder) if coder == "encode" else ((1, 32, 16, 32), flops.dc_ae_decoder)
    found = counted(lambda model, x: getattr(model, coder)(x), model, array(*shape))
    assert formula(config, 1, 1024, 512).forward == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("remat", SAVED_NAMES)
@pytest.mark.parametrize(("learns", "passes"), [(True, False), (True, True), (False, True)])
def test_sana_with_gradients(learns, passes, remat):
    """For the network's own parameters, for what stands before it, or for both."""
    config = replace(SANA, depth=1)
    sana = abstract(lambda rngs: Sana(config, rngs=rngs))

    def loss(params, condition, latents, time, mask, source):
        model = with_parameters(sana, params)
        return model(latents, time, model.embed_condition(condition, mask), source, remat=remat).sum()

    latents, mask = array(ROWS, 16, 16, 32), jax.ShapeDtypeStruct((ROWS, TOKENS), bool)
    wanted = [place for place, asked in enumerate((learns, passes)) if asked]
    found = counted(jax.grad(loss, wanted), parameters(sana), array(ROWS, TOKENS, 2304), latents, array(ROWS), mask, latents)
    again = flops.sana_recomputed(config, ROWS, 256, TOKENS, remat)
    # Where nothing learns in it, the last product of a block need not be computed again.
    formula = flops.sana(config, ROWS, 256, TOKENS).step(trainable=learns, backprop=passes) + again
    assert formula == pytest.approx(found, rel=0.02 if learns or remat == "none" else 0.07)


def test_a_distillation_to_one_step():
    """The student learns, its teacher answers in two branches at two times; each further step costs as much again, but the projection of
    the condition's tokens."""
    teacher = replace(SANA, depth=1, in_channels=64)
    model_config = ModelConfig(QWEN, replace(teacher, velocities=5), DC_AE, teacher)
    models = {part: abstract(make) for part, make in model_config.modules().items() if part in ("connector", "sana", "teacher")}
    config = read_config(CONFIGS / "distill_steps.py", {"model.remat": "none", "sample.num_steps": "1"})
    options = {"guidance_scales": (2.0, 2.0), "num_steps": 1, "flow_shift": 3.0, "times": config.distill.times}

    def loss(params, others, hidden, mask, latents):
        sana, connector, frozen = (with_parameters(models[part], x) for part, x in (("sana", params), *others.items()))
        return steps_loss(connector, sana, frozen, Features(hidden, mask, latents, latents), jax.random.key(0), **options)[0]

    others = {part: parameters(models[part]) for part in ("connector", "teacher")}
    hidden, mask, latents = array(ROWS, TOKENS, 2048), jax.ShapeDtypeStruct((ROWS, TOKENS), bool), array(ROWS, 16, 16, 32)
    batch = CachedBatch(hidden, None, mask, latents, latents)
    assert step_flops(config, model_config, batch).model == pytest.approx(
        counted(jax.grad(loss), parameters(models["sana"]), others, hidden, mask, latents), rel=0.02
    )
    one, config.sample.num_steps = step_flops(config, model_config, batch).parts, 4
    four = step_flops(config, model_config, batch).parts
    assert all(3.7 * one[part] < four[part] < 4 * one[part] for part in ("sana", "teacher"))
    assert four["connector"] == one["connector"]


def test_a_step_with_rewards():
    """Of one picture, painted in one step and learned from at one time: SANA answers twice without gradients, and then learns."""
    model_config = ModelConfig(QWEN, replace(SANA, depth=1, in_channels=64), DC_AE)
    models = {part: abstract(make) for part, make in model_config.modules().items() if part in ("connector", "sana")}
    one = {"reward.pictures": "1", "reward.times": "1", "sample.num_steps": "1", "model.remat": "none"}
    config = read_config(CONFIGS / "nano_reward.py", one)
    options = {"pictures": 1, "times": 1, "num_steps": 1, "flow_shift": 1.0, "shift": 1.0, "draw": "uniform"}

    def paint(params, hidden, mask, latents):
        connector, sana = (with_parameters(models[part], x) for part, x in params.items())
        return paint_groups(
            connector, sana, lambda latents: latents[..., :3], None, Features(hidden, mask, latents, latents), jax.random.key(0), **options
        )[0]

    def loss(sana, connector, batch):
        connector, sana = (with_parameters(models[part], x) for part, x in (("connector", connector), ("sana", sana)))
        return reward_loss(connector, sana, batch, beta=1.0, clip=5.0, anchor=0.0)[0]

    params = {part: parameters(model) for part, model in models.items()}
    features = array(ROWS, TOKENS, 2048), jax.ShapeDtypeStruct((ROWS, TOKENS), bool), array(ROWS, 16, 16, 32)
    painted = replace(jax.eval_shape(paint, params, *features), rewards=array(ROWS, 1))
    found = counted(paint, params, *features) + counted(jax.grad(loss), params["sana"], params["connector"], painted)
    batch = PaintBatch(turns(ROWS, TOKENS, GRID), *[np.zeros((ROWS, 512, 512, 3), np.uint8)] * 2, TOKENS)
    parts = step_flops(config, model_config, batch).parts
    assert parts["sana"] + 2 * parts["connector"] == pytest.approx(found, rel=0.02)
    decoded = flops.dc_ae_encoder(DC_AE, 2 * ROWS, 512, 512) + flops.dc_ae_decoder(DC_AE, ROWS, 512, 512)
    assert parts["autoencoder"] == decoded.forward


def test_what_a_sample_of_the_full_size_costs():
    """At 1024 px and 1600 tokens the frozen encoder takes about 17 TFLOP, what learns about 11."""
    b, pixels, inputs = 2, 1024, turns(2, 1600, (74, 74))
    picture = np.zeros((b, pixels, pixels, 3), np.uint8)
    config = read_config(CONFIGS / "edit_stage2.py", {})
    model_config = ModelConfig(QWEN, SANA.grow(edit=True, condition_length=8192), DC_AE)
    edit = step_flops(config, model_config, PaintBatch(inputs, picture, picture, 1600))
    parts = {part: size / b / 1e12 for part, size in edit.parts.items()}
    assert parts["encoder"] == pytest.approx(17.3, abs=0.1)
    assert parts["connector"] + parts["sana"] == pytest.approx(11.3, abs=0.1)
    assert parts["autoencoder"] == pytest.approx(10.3, abs=0.1)
    assert edit.hardware - edit.model == edit.recomputed == pytest.approx(3.72e12 * b, rel=0.01)
    caption = step_flops(config, model_config, PaintBatch(inputs, picture, None, 1600))
    assert 2 * caption.parts["autoencoder"] == edit.parts["autoencoder"]
    config.trainable, config.frozen = ("connector", "sana", "encoder"), ("autoencoder",)
    assert step_flops(config, model_config, PaintBatch(inputs, picture, picture, 1600)).parts["encoder"] == 3 * edit.parts["encoder"]
