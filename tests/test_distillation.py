"""Distillation: what the losses are, what a student becomes, from the command line to a painter and through the published formats."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from dim_jax.diffusion import flow, sampler
from dim_jax.errors import InputError
from dim_jax.models.connector import Connector
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.sana import Sana, grow
from dim_jax.pipeline import EditPipeline
from dim_jax.sampling import Sampler
from dim_jax.serve.jobs import Fields, ModelInfo, read_settings
from dim_jax.serve.limits import Limits
from dim_jax.training.distillation import guidance_loss, steps_loss
from dim_jax.training.losses import Features
from dim_jax.training.student import painter_params, painter_sizes
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.opening import open_weights
from tests.lora_fixtures import prepared_pairs
from tests.painter_fixtures import dim, largest_difference, picture, tiny_checkpoint
from tests.sana_fixtures import config, mask, normal, sana
from tests.test_train import arguments, last_error

TIMES = {"shift": 1.0, "draw": "uniform"}
STEPS = {"num_steps": 3, "flow_shift": 3.0, "times": 2}


@pytest.fixture(scope="module")
def teacher() -> Sana:
    return sana(config())


def student(teacher: Sana, **sizes) -> Sana:
    return grow(teacher, edit=True, condition_length=6, key=jax.random.key(1), **sizes)


def features() -> Features:
    return Features(normal(2, 5, 12), mask([5, 3], 5), normal(2, 3, 4, 4, seed=2), normal(2, 3, 4, 4, seed=3))


@jax.jit
def connector() -> Connector:
    return Connector(12, 12, rngs=nnx.Rngs(0))


def test_a_student_that_is_its_teacher_has_nothing_to_learn_without_guidance(teacher):
    """And with guidance what it lacks is (w - 1) (c - u), also if it is told w."""

    @partial(jax.jit, static_argnums=(1, 2))
    def loss(model: Sana, least: float, most: float):
        return guidance_loss(connector(), model, teacher, features(), jax.random.key(0), guidance_scales=(least, most), **TIMES)[0]

    none, guided = (float(loss(teacher, scale, scale)) for scale in (1.0, 2.0))
    assert none < 1e-10 < 1e-3 < guided
    assert guided < float(loss(student(teacher, guidance_embeds=True), 2.0, 4.0)) < 9 * guided


def test_a_student_of_few_steps_learns_where_its_teacher_leads(teacher):
    """It begins as Euler's steps of the teacher without guidance, and ends nearer to many guided steps than as many steps of these are."""
    learner = student(teacher, velocities=4)
    start = {f"sana.{path}": param for path, param in parameters(learner).items()}
    sizes = ModelConfig(sana=learner.config)

    def painter(params) -> Sana:
        one = {path.removeprefix("sana."): param for path, param in painter_params(sizes, params).items()}
        return with_parameters(nnx.eval_shape(lambda: Sana(painter_sizes(sizes).sana, rngs=nnx.Rngs(0))), one)

    @partial(jax.jit, static_argnames=("steps", "scale"))
    def paint(model: Sana, steps: int, scale: float | None):
        given = features()
        condition = model.encode_condition(jnp.where(given.mask[..., None], connector()(given.hidden), 0), given.mask)
        source = given.source
        if scale is not None:
            condition, source = model.null_condition(given.mask).interleave(condition), source.repeat(2, 0)
        return sampler.sample(
            lambda x, sigma: model(x, jnp.full(len(x), flow.model_timestep(sigma)), condition, source), normal(2, 3, 4, 4, seed=7),
            num_steps=steps, guidance_scale=scale, flow_shift=STEPS["flow_shift"], solver="euler",
        )  # fmt: skip

    np.testing.assert_allclose(paint(painter(start), 3, None), paint(teacher, 3, None), atol=1e-4)

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    @jax.jit
    def update(params, state, key):
        def loss(params):
            model = with_parameters(learner, {path.removeprefix("sana."): param for path, param in params.items()})
            return steps_loss(connector(), model, teacher, features(), key, guidance_scales=(2.0, 2.0), **STEPS)[0]

        value, gradient = jax.value_and_grad(loss)(params)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    params, state, values = start, optimizer.init(start), []
    for key in jax.random.split(jax.random.key(3), 80):
        params, state, value = update(params, state, key)
        values.append(float(value))
    assert np.mean(values[-10:]) < 0.5 * np.mean(values[:5])
    many, few = paint(teacher, 60, 2.0), paint(teacher, 3, 2.0)
    error = [float(jnp.sqrt(jnp.mean((x - many) ** 2))) for x in (paint(painter(params), 3, None), few, paint(painter(start), 3, None))]
    assert error[0] < error[1] < error[2]


# From the command line


PARTS = ("encoder", "connector", "sana", "autoencoder", "teacher")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkpoint, pairs, and two runs of two steps: a student that is told the guidance scale, and one of few steps at one scale."""
    folder = tmp_path_factory.mktemp("distillation")
    tiny_checkpoint(folder / "base")
    prepared_pairs(folder)
    code, text = train(folder, "guided", 2)
    assert code == 0, text
    code, text = train(folder, "steps", 2, config="distill_steps", train__show_every="2")
    assert code == 0, text
    return folder


def train(place: Path, name: str, steps: int, *more: str, config: str = "distill_guidance", **changed: str) -> tuple[int, str]:
    values = {
        "data__source": str(place / "data"), "data__workers": "0", "model__dtype": "float32", "model__condition_length": "24",
        "optim__learning_rate": "1e-2", "sample__num_steps": "3", **{f"init__{part}": str(place / "base") for part in PARTS},
    }  # fmt: skip
    return dim(*arguments(config, place / name, steps, *more, **values | changed))


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("guided", {"distilled": "guidance", "num_steps": 3, "guidance_scale": 7.5}, True),
        ("steps", {"distilled": "steps", "num_steps": 3, "guidance_scale": 1.0, "solver": "euler"}, False),
    ],
)
def test_what_is_exported_is_a_painter(place, name, settings, told):
    """With its settings, of the sizes of a published one; its student has learned."""
    assert settings.items() <= json.loads((place / name / "model/settings.json").read_text()).items()
    weights, base = open_weights(place / name / "model"), open_weights(place / "base")
    assert weights.config.parts == base.config.parts
    assert weights.config.sana == replace(base.config.sana, guidance_embeds=told)
    tensors = dict(weights.stream())
    assert {path.split(".")[0] for path, tensor in base.stream() if not np.array_equal(tensor, tensors[path])} == {"sana"}


@pytest.mark.parametrize("form", ["dim", "diffusers"])
def test_a_student_comes_back_from_published_formats(place, form, tmp_path):
    """One that is told the guidance scale; another is an ordinary SANA."""
    model = place / "guided/model"
    for source, target, to in ((model, "there", form), (tmp_path / "there", "back", "orbax")):
        code, text = dim("convert", str(source), str(tmp_path / target), "--to", to)
        assert code == 0, text
    weights, back = open_weights(model), open_weights(tmp_path / "back")
    assert back.config == weights.config
    tensors = dict(weights.stream())
    assert all(np.array_equal(tensor, tensors[path]) for path, tensor in back.stream())
    assert (tmp_path / "back/settings.json").read_text() == (model / "settings.json").read_text()
    if form == "diffusers":
        sizes = json.loads((tmp_path / "there/transformer/config.json").read_text())
        assert (sizes["guidance_embeds"], sizes["out_channels"]) == (True, weights.config.sana.latent_channels)


def test_a_student_paints_as_it_was_distilled(place):
    """In one branch, with its own settings; the scale counts where the network is told it; what does not fit is one line."""
    guided, steps = (EditPipeline.from_pretrained(place / name / "model") for name in ("guided", "steps"))

    def paint(pipeline: EditPipeline, **changes) -> Image.Image:
        return pipeline(["red"], [picture(32, 32)], settings=replace(pipeline.sampler.settings, **changes))[0].image

    with mock.patch.object(Sampler, "null_condition", side_effect=AssertionError):
        pictures = [paint(guided), paint(guided, guidance_scale=2.0), paint(steps)]
    assert largest_difference(*pictures[:2]) > 0
    for pipeline, changes, says in (
        (guided, {"image_guidance_scale": 1.5}, "one branch"),
        (guided, {"negative_prompt": "dull"}, "one branch"),
        (steps, {"guidance_scale": 2.0}, "one branch"),
        (steps, {"num_steps": 8}, "paints with num_steps 3, not num_steps 8: it was distilled to paint so alone"),
        (steps, {"solver": "dpm++2m"}, "solver 'euler', not solver 'dpm\\+\\+2m'"),
    ):
        with pytest.raises(InputError, match=says):
            paint(pipeline, **changes)
    model, limits = ModelInfo.from_sampler(steps.sampler), Limits()
    with pytest.raises(InputError, match="not num_steps 8"):
        read_settings(model, limits, Fields(prompt="red", steps=8))
    assert read_settings(model, limits, Fields(prompt="red", steps=3)) == steps.sampler.settings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora__rank": "4"}, "no LoRA"),
        ({"trainable": "('connector', 'sana')", "frozen": "('encoder', 'autoencoder', 'teacher')"}, "SANA alone learns"),
        ({"frozen": "('encoder', 'connector', 'autoencoder')"}, "name each of encoder, connector, sana, autoencoder, teacher once"),
        ({"init__teacher": ""}, "config.init.teacher is empty"),
        ({"flow__condition_dropout": "0.1"}, "Set it to 0"),
        ({"distill__guidance_scales": "(2.0, 1.0)"}, "the least and the largest"),
        ({"distill__guidance_scales": "(2.0, 2.0)"}, "Set it to 1"),
        ({"distill__method": "policy"}, "must be one of none, guidance, steps"),
        ({"distill__times": "0"}, "must be at least 1"),
        ({"init__sana": "guided/model", "distill__guidance_scales": "(2.0, 2.0)", "sample__guidance_scale": "1.0"}, "takes the guidance"),
    ],
)
def test_configs_that_do_not_fit_are_refused(place, monkeypatch, changes, says):
    monkeypatch.chdir(place)
    assert says in last_error(train(place, "refused", 1, **changes))
