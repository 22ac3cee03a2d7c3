"""Other families against diffusers and transformers: their encoders, and their pipelines from text and picture to latents, at tiny size."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SanaTransformer2DModel
from flax import nnx
from transformers import Gemma2Config, Gemma2Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from dim_jax.designer.local import LocalDesigner
from dim_jax.diffusion import sampler, solvers
from dim_jax.errors import InputError
from dim_jax.models import module
from dim_jax.models.gemma import Gemma, GemmaConfig
from dim_jax.models.qwen3 import Qwen3, Qwen3Config
from dim_jax.models.sana import Sana, grow
from dim_jax.models.sana_config import GUIDANCE_IN_DIFFUSERS, SanaConfig, sana_from_diffusers, sana_to_diffusers
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from dim_jax.processing.inputs import encoder_inputs
from dim_jax.processing.pictures import autoencoder_pixels
from dim_jax.sampling import Sampler
from dim_jax.verify.verify import verify
from dim_jax.weights import sana as sana_rows
from dim_jax.weights import table
from dim_jax.weights.convert import assemble, convert
from dim_jax.weights.families import sana, vibe
from dim_jax.weights.formats import NULL_TABLE
from dim_jax.weights.opening import open_weights
from tests import families_fixtures as tiny
from tests.painter_fixtures import dim, edit, generate, one_error, picture
from tests.published import files, quiet, qwen_folder

# In the scheduler of diffusers, with numpy's latest.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
SEED, PROMPT = 5, "A red Cat on a mat"


def load(make: Callable[[nnx.Rngs], Any], rows: tuple[table.Row, ...], state: Mapping[str, torch.Tensor]) -> Any:
    """Our module with published tensors, each of which must have its place, and comes back to the bit."""
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    mappings = table.tensor_mappings(rows, module.shapes(abstract))
    assert mappings.keys() == state.keys()
    ours = module.with_parameters(abstract, dict(table.from_hf(mappings, lambda name: state[name].numpy())))
    for name, tensor in table.to_hf(mappings, module.parameters(ours).__getitem__):
        assert np.asarray(tensor).tobytes() == state[name].numpy().tobytes(), name
    return ours


def test_gemma_equals_transformers():
    """Its states, of rows of several lengths, beyond the sliding window; the config there and back."""
    theirs = tiny.gemma()
    assert GemmaConfig.from_hf(theirs.config.to_dict()) == tiny.GEMMA
    ours = load(lambda rngs: Gemma(tiny.GEMMA, rngs=rngs), table.add_prefix(sana.TEXT_ENCODER, "", "model."), theirs.state_dict())
    ids = np.random.default_rng(0).integers(1, 300, (2, 20)).astype(np.int32)
    mask = np.arange(20) < np.array([[20], [13]])
    expected = theirs(torch.tensor(ids).long(), attention_mask=torch.tensor(mask * 1)).last_hidden_state.numpy()
    states = np.asarray(jax.jit(Gemma.__call__)(ours, encoder_inputs(ids, mask, mask, [], [], image_token_id=-1)))
    np.testing.assert_allclose(states[mask], expected[mask], **TOLERANCE)


def test_qwen3_equals_transformers():
    """Its states, of rows with two pictures, one and none, of several sizes; the config there and back."""
    theirs, image = tiny.qwen3(), tiny.QWEN3.image_token_id
    assert Qwen3Config.from_hf(theirs.config.to_dict()) == Qwen3Config.from_hf(tiny.QWEN3.to_hf()) == tiny.QWEN3
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    ours = load(lambda rngs: Qwen3(tiny.QWEN3, rngs=rngs), vibe.ENCODER, state)
    rows = [[1, 2, *[image] * 6, 3, 4, 5], [1, image, 3, *[image] * 6, 4, 5, 6, 7], [1, 2, 3]]
    grids = [(4, 6), (2, 2), (6, 4)]
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    mask = np.array([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    patches = [np.random.default_rng(i).normal(size=(h * w, 3 * 2 * 8 * 8)).astype(np.float32) for i, (h, w) in enumerate(grids)]
    expected = theirs.model(
        input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask * 1), pixel_values=torch.tensor(np.concatenate(patches)),
        image_grid_thw=torch.tensor([(1, *grid) for grid in grids]), mm_token_type_ids=torch.tensor((ids == image) * 1),
    ).last_hidden_state.numpy()  # fmt: skip
    inputs = encoder_inputs(ids, mask, mask, patches, grids, image_token_id=image, layout=tiny.QWEN3.vision.layout)
    np.testing.assert_allclose(np.asarray(jax.jit(Qwen3.__call__)(ours, inputs))[mask], expected[mask], **TOLERANCE)


def test_sana_sprint_equals_diffusers():
    """Its velocity, told the guidance scale; what it is told counts."""
    theirs = tiny.transformer(20, guidance_embeds=True)
    config = sana_from_diffusers(theirs.config, 7, GUIDANCE_IN_DIFFUSERS, null_table=False, guidance_embeds=True)
    ours = load(lambda rngs: Sana(config, rngs=rngs), sana_rows.GUIDANCE_DIFFUSERS_ROWS, theirs.state_dict())
    assert SanaConfig.from_json(config.to_json()) == config
    rng = np.random.default_rng(0)
    latents, condition = (rng.normal(size=size).astype(np.float32) for size in ((2, 3, 4, 8), (2, 7, 20)))
    mask, sigma, guidance = np.arange(7) < np.array([[7], [3]]), np.array([1.0, 0.78], np.float32), np.array([4.5, 1.5], np.float32)
    args = {
        "encoder_hidden_states": condition,
        "encoder_attention_mask": mask.astype(np.float32),
        "timestep": sigma,
        "guidance": 0.1 * guidance,
    }
    expected = theirs(tiny.nchw(latents), **{name: torch.tensor(x) for name, x in args.items()}).sample.numpy()
    inputs = [jnp.asarray(x) for x in (latents, sigma, condition, mask)]

    @jax.jit
    def run(x: jax.Array, sigma: jax.Array, condition: jax.Array, mask: jax.Array, guidance: jax.Array) -> jax.Array:
        return ours(x, sigma, ours.encode_condition(condition, mask), guidance=guidance)

    np.testing.assert_allclose(np.asarray(run(*inputs, jnp.asarray(guidance))).transpose(0, 3, 1, 2), expected, **TOLERANCE)
    assert np.abs(run(*inputs, jnp.asarray(guidance)) - run(*inputs, jnp.asarray(2 * guidance))).max() > 1e-2


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A saved pipeline of each family."""
    folder = tmp_path_factory.mktemp("families")
    pipelines = {"sana": tiny.sana_pipeline(), "sana_sprint": tiny.sprint_pipeline(), "vibe": tiny.VibePipeline()}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in pipelines}


def close(result: Any, expected: torch.Tensor) -> None:
    """Latents against the largest one, as for Draw-In-Mind (`sana_goldens.trajectory`)."""
    expected = expected.numpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(result.latents, expected, rtol=0, atol=1e-4 * (1 + np.abs(expected).max()))
    assert np.abs(expected).max() > 1


def paint_by(pipeline: Any, steps: int) -> torch.Tensor:
    """Latents of the prompt by diffusers, from our noise."""
    pipeline.set_progress_bar_config(disable=True)
    noise = tiny.nchw(sampler.noise(np.array([SEED]), (8, 8, 8)))
    size = {"height": 64, "width": 64, "use_resolution_binning": False, "output_type": "latent"}
    return pipeline(PROMPT, latents=noise, num_inference_steps=steps, guidance_scale=4.5, **size).images


def test_sana_paints_what_diffusers_does(folders):
    """From the prompt to the latents: instruction, tokens, Gemma, the empty prompt, guidance, steps."""
    painter = Sampler.from_pretrained(folders["sana"])
    assert (painter.settings.num_steps, painter.settings.guidance_scale, painter.settings.solver) == (20, 4.5, "dpm++2m")
    settings = replace(painter.settings, num_steps=5, resolution=64)
    close(GeneratePipeline(painter)([PROMPT], seeds=[SEED], settings=settings)[0], paint_by(tiny.sana_pipeline(), 5))


def test_sana_sprint_paints_what_diffusers_does(folders):
    """In two steps, with the noise between them from our seed; noise levels of other numbers of steps as well."""
    painter, seeds, steps = Sampler.from_pretrained(folders["sana_sprint"]), jnp.array([SEED]), iter(range(2))
    assert (painter.settings.num_steps, painter.settings.solver) == (2, "scm")
    draw = lambda shape, **_: tiny.nchw(sampler.fresh_noise(seeds, jnp.int32(next(steps)), (8, 8, 8)))  # noqa: E731
    pipeline = tiny.sprint_pipeline()
    with mock.patch("diffusers.schedulers.scheduling_scm.randn_tensor", draw):
        expected = paint_by(pipeline, 2)
    close(GeneratePipeline(painter)([PROMPT], seeds=[SEED], settings=replace(painter.settings, resolution=64))[0], expected)
    for count in (1, 2, 3, 4):
        pipeline.scheduler.set_timesteps(count, intermediate_timesteps=1.3 if count == 2 else None)
        t = pipeline.scheduler.timesteps.double()
        np.testing.assert_allclose(solvers.trigflow_sigmas(count), t.sin() / (t.sin() + t.cos()), rtol=0, atol=1e-6)


def test_vibe_edits_and_paints_as_its_parts_say(folders):
    """With a picture: queries after the turn, deepstack, the connector, three branches. Without one: another sentence, no source."""
    painter, reference = Sampler.from_pretrained(folders["vibe"]), tiny.VibePipeline()
    assert (painter.settings.num_steps, painter.settings.guidance_scale, painter.settings.image_guidance_scale) == (20, 4.5, 1.2)
    source, size = picture(64, 64), (64, 64)
    settings = replace(painter.settings, num_steps=3, resolution=64, size=size)
    noise = tiny.nchw(sampler.noise(np.array([SEED]), (8, 8, 8)))
    pixels = tiny.nchw(autoencoder_pixels(source, size)[None])
    close(
        EditPipeline(painter)([PROMPT], [source], seeds=[SEED], settings=settings)[0], reference(PROMPT, source, pixels, noise, 3, 4.5, 1.2)
    )
    close(GeneratePipeline(painter)([PROMPT], seeds=[SEED], settings=settings)[0], reference(PROMPT, None, None, noise, 3, 4.5, 0.0))


@pytest.mark.parametrize("name", ["sana_sprint", "vibe"])
def test_a_pipeline_comes_back_from_a_checkpoint_folder(folders, tmp_path, name):
    """Every file to the bit, but for headers; the folder in between opens as the same model."""
    weights, back = open_weights(folders[name]), tmp_path / "back"
    assert weights.config.is_whole
    convert(folders[name], tmp_path / "orbax", "orbax", console=quiet())
    assert open_weights(tmp_path / "orbax").config == weights.config
    convert(tmp_path / "orbax", back, "diffusers", console=quiet())
    assert files(back) == files(folders[name])
    for to in ("dim", "qwen"):
        with pytest.raises(InputError, match=f"cannot be written as {to}"):
            convert(folders[name], tmp_path / to, to, console=quiet())


def test_published_sizes_equal_the_libraries(folders):
    """SANA-1.5 4.8B, SANA-Sprint 1.6B, Gemma-2-2B and Qwen3-VL-2B: names and shapes of all tensors, on the meta device."""
    sprint = replace(SanaConfig.sana_1600m(condition_length=300), null_table=False, guidance_embeds=True)
    with torch.device("meta"):
        pairs = [
            (SanaTransformer2DModel.from_config(sana_to_diffusers(SanaConfig.sana_4800m())), sana_rows.DIFFUSERS_ROWS),
            (SanaTransformer2DModel.from_config(sana_to_diffusers(sprint, GUIDANCE_IN_DIFFUSERS)), sana_rows.GUIDANCE_DIFFUSERS_ROWS),
            (Gemma2Model(Gemma2Config(**GemmaConfig.gemma_2b().to_hf())), table.add_prefix(sana.TEXT_ENCODER, "", "model.")),
            (Qwen3VLForConditionalGeneration(Qwen3VLConfig(**Qwen3Config.qwen3_2b().to_hf())), vibe.ENCODER),
        ]
    makers = (
        lambda rngs: Sana(replace(SanaConfig.sana_4800m(), null_table=False), rngs=rngs),
        lambda rngs: Sana(sprint, rngs=rngs),
        lambda rngs: Gemma(GemmaConfig.gemma_2b(), rngs=rngs),
        lambda rngs: Qwen3(Qwen3Config.qwen3_2b(), rngs=rngs),
    )
    for (theirs, rows), make in zip(pairs, makers, strict=True):
        mappings = table.tensor_mappings(rows, module.shapes(nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))))
        expected = {name: tuple(x.shape) for name, x in theirs.named_parameters() if name != "lm_head.weight"}
        assert {name: mapping.shape for name, mapping in mappings.items()} == expected
    assert sum(x.numel() for x in pairs[0][0].parameters()) == 4_721_825_952


def test_what_is_of_no_family_is_refused_in_one_line(folders, tmp_path):
    def changed(file: str, **values: Any) -> str:
        folder = tmp_path / file.replace("/", "-")
        shutil.copytree(folders["sana"], folder)
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
        return str(folder)

    unknown = one_error(dim(*generate(checkpoint=changed("text_encoder/config.json", model_type="t5"))))
    assert (
        "text_encoder/config.json: model_type is 't5', but no family has such an encoder. Encoders are qwen2_5_vl (Draw-In-Mind), "
        in unknown
    )
    shifted = one_error(dim(*generate(checkpoint=changed("scheduler/scheduler_config.json", flow_shift=5.0))))
    assert "scheduler_config.json: flow_shift is 5.0, but only 3.0 is supported" in shifted
    older = one_error(dim(*generate(checkpoint=changed("transformer/config.json", qk_norm=None))))
    assert "only SANA 1.5 is supported" in older
    picture(64, 64).save(tmp_path / "in.png")
    paths = {"image": str(tmp_path / "in.png"), "output": str(tmp_path / "out.png")}
    assert "generates from text only" in one_error(dim(*edit(checkpoint=str(folders["sana"]), **paths)))
    with pytest.raises(InputError, match=r"A local designer needs an encoder of Draw-In-Mind, Qwen2\.5-VL; this one is qwen3_vl"):
        LocalDesigner.from_pretrained(folders["vibe"])
    with pytest.raises(InputError, match="dim verify needs an encoder of Draw-In-Mind"):
        verify(folders["vibe"], console=quiet())


def test_a_pipeline_is_a_parent_of_draw_in_mind(folders, tmp_path, goldens):
    """Its SANA is a start of training, whose null table is drawn whole; and its way to the edit form."""
    encoder, source = qwen_folder(tmp_path / "qwen", goldens), folders["sana"]
    tokenizer = tiny.HERE / "tiny_tokenizer"
    assemble(encoder, source, source, tmp_path / "start", condition_length=9, tokenizer=tokenizer, console=quiet())
    tensors, ours = (dict(open_weights(folder).stream()) for folder in (tmp_path / "start", source))
    assert tensors[NULL_TABLE].shape == (9, tiny.GEMMA.hidden_size)
    assert all(tensors[path].tobytes() == ours[path].tobytes() for path in tensors if path.startswith("sana.") and path != NULL_TABLE)
    config = open_weights(source).config.sana
    small = load(lambda rngs: Sana(config, rngs=rngs), sana_rows.DIFFUSERS_ROWS, tiny.transformer(24).state_dict())
    larger = grow(small, edit=True, condition_length=9, key=jax.random.key(0))
    assert module.shapes(larger) == module.shapes(nnx.eval_shape(lambda: Sana(larger.config, rngs=nnx.Rngs(0))))
    with pytest.raises(InputError, match="Draw-In-Mind needs an encoder"):
        assemble(folders["vibe"], source, source, tmp_path / "none", console=quiet())
