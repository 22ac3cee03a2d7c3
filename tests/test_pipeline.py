"""The pipelines on the tiny random model: batches, seeds, guidance, sizes, what they refuse."""

import copy
import json
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dim_jax import sampling as module
from dim_jax.batching import Request, Source
from dim_jax.compositing import Frame
from dim_jax.errors import InputError
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.module import parameters
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.weights import loading
from dim_jax.weights.convert import convert
from dim_jax.weights.published import Weights
from tests.painter_fixtures import HERE, QUICK, largest_difference, painter, picture, tiny_checkpoint

PROMPTS = ("red", "a hat on it", "cut")
SOURCES = (picture(40, 40, 1), picture(90, 20, 2), picture(50, 48, 3))
SEEDS = (1, 2, 3)
CELL = 8  # pixels of a side to one latent


def settings(**changes) -> Settings:
    return Settings(**{"num_steps": 3, "resolution": 64, "batch_size": 2, **changes})


def edit(prompts=PROMPTS[:1], sources=SOURCES[:1], seeds=SEEDS[:1], **changes):
    return EditPipeline(painter())(prompts, sources, seeds=seeds, settings=settings(**changes))


def one(**changes):
    return edit(**changes)[0].image


def painted_size(painting) -> tuple[int, int]:
    return painting.latents.shape[0] * CELL, painting.latents.shape[1] * CELL


def compilations() -> int:
    p = painter()
    return sum(part._cache_size() for part in (p._condition, p._null_row, p._encode, p._paint, p._decode))


def test_the_quick_settings_are_these():
    assert settings() == QUICK


@pytest.fixture(scope="module")
def mixed():
    """Three pictures of two aspect ratios: a batch of two and, between them, one alone."""
    return edit(PROMPTS, SOURCES, SEEDS)


def test_a_batch_keeps_order_sizes_and_sources(mixed):
    assert [painting.prompt for painting in mixed] == list(PROMPTS)
    assert [painting.seed for painting in mixed] == list(SEEDS)
    assert [painting.image.size for painting in mixed] == [source.size for source in SOURCES]
    assert [painted_size(painting) for painting in mixed] == [(64, 64), (32, 128), (64, 64)]
    assert [painting.source.size for painting in mixed] == [source.size for source in SOURCES]
    assert all(np.asarray(painting.image).std() > 10 for painting in mixed), "flat pictures would make all comparisons here void"


@pytest.mark.parametrize("i", range(3))
def test_a_picture_does_not_depend_on_its_batch(mixed, i):
    alone = edit(PROMPTS[i : i + 1], SOURCES[i : i + 1], SEEDS[i : i + 1])[0].image
    assert largest_difference(alone, mixed[i].image) <= 1


def test_latents_of_a_source_take_the_place_of_its_pixels(mixed):
    """The encoder reads the picture, SANA the latents; a batch may mix both kinds and keeps its order."""
    sizes = [painted_size(painting) for painting in mixed]
    framed = [Frame.fit(source.size, size, CELL).canvas(source) for source, size in zip(SOURCES, sizes, strict=True)]
    encoded = [np.asarray(painter().encode([canvas], size))[0] for canvas, size in zip(framed, sizes, strict=True)]
    sources = [Source(SOURCES[0], encoded[0]), SOURCES[1], Source(SOURCES[2], encoded[2])]
    for ours, theirs in zip(edit(PROMPTS, sources, SEEDS), mixed, strict=True):
        assert largest_difference(ours.image, theirs.image) <= 1
    (blank,) = edit(sources=[Source(SOURCES[0], np.zeros_like(encoded[0]))])
    (other,) = edit(sources=[Source(picture(40, 40, 3), encoded[0])])
    assert largest_difference(blank.image, mixed[0].image) > 1
    assert largest_difference(other.image, mixed[0].image) > 1
    # It is painted at the size of its latents, whatever its picture's shape.
    (wide,) = edit(sources=[Source(SOURCES[0], encoded[1])])
    assert (painted_size(wide), wide.image.size) == ((32, 128), SOURCES[0].size)


def test_result_holds_its_latents(mixed):
    for painting in mixed:
        assert painting.latents is not None
        frame = Frame.fit(painting.source.size, painted_size(painting), CELL)
        assert largest_difference(frame.crop(painter().decode(painting.latents[None])[0]), painting.image) <= 1


def test_prompt_source_and_seed_all_count(mixed):
    first = one()
    assert largest_difference(first, one(prompts=["blue"])) > 1
    assert largest_difference(first, one(sources=[picture(40, 40, 3)])) > 1
    assert largest_difference(first, one(seeds=[7])) > 1
    twins = edit(["red"] * 2, [SOURCES[0]] * 2, [4, 4])
    assert largest_difference(twins[0].image, twins[1].image) <= 1


def test_the_settings_paint_the_picture_again():
    first = edit(guidance_scale=3.0)[0]
    again = EditPipeline(painter())([first.prompt], [first.source], seeds=[first.seed], settings=Settings(**first.settings))[0]
    assert largest_difference(first.image, again.image) == 0
    assert again.settings == first.settings
    assert (first.checkpoint, first.dtype) == (painter().name, "float32")


def test_repeated_calls_do_not_recompile():
    one()
    one(negative_prompt="dull")
    before = compilations()
    one(prompts=["green"], sources=[picture(200, 190, 9)], seeds=[12], guidance_scale=2.0)
    one(negative_prompt="a cat")
    assert compilations() == before


def test_guidance_1_is_one_branch(monkeypatch):
    two_branches = one(guidance_scale=1 + 1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "null_condition", lambda self, length: pytest.fail("the unconditional branch was computed"))
        single = one(guidance_scale=1.0)
        assert largest_difference(single, one(guidance_scale=1.0, negative_prompt="dull")) == 0
    assert largest_difference(single, two_branches) <= 1
    assert largest_difference(single, one()) > 1


def test_image_guidance_counts_in_batches_and_is_off_at_1(mixed):
    """Off, nothing is computed that was not: the steps compiled before serve. On, a picture does not depend on its batch."""
    before = compilations()
    plain = edit(PROMPTS, SOURCES, SEEDS, image_guidance_scale=1.0)
    assert compilations() == before
    for same, other in zip(plain, mixed, strict=True):
        np.testing.assert_array_equal(same.latents, other.latents)
    nearer = edit(PROMPTS[::2], SOURCES[::2], SEEDS[::2], image_guidance_scale=1.5)
    assert all(largest_difference(one.image, other.image) > 1 for one, other in zip(nearer, mixed[::2], strict=True))
    assert largest_difference(one(image_guidance_scale=1.5), nearer[0].image) <= 1
    again = EditPipeline(painter())(PROMPTS[:1], SOURCES[:1], seeds=SEEDS[:1], settings=Settings(**nearer[0].settings))[0]
    assert largest_difference(again.image, nearer[0].image) <= 1


def test_image_guidance_alone_needs_the_null_condition_too():
    """Without guidance by the text: from the unconditional painting over the source to the conditional one."""
    text_free = one(guidance_scale=1.0, image_guidance_scale=1.5)
    assert largest_difference(text_free, one(guidance_scale=1.0)) > 1


def test_image_guidance_needs_a_source():
    generate = GeneratePipeline(painter())
    (plain,), (same,) = (generate(["a hat"], settings=settings(image_guidance_scale=scale)) for scale in (1.0, 3.0))
    np.testing.assert_array_equal(plain.latents, same.latents)


def test_negative_prompt():
    null, single = one(), one(guidance_scale=1.0)
    assert largest_difference(null, one(negative_prompt="dull")) > 1
    # Moving away from the prompt itself leads nowhere: the picture without guidance.
    assert largest_difference(single, one(negative_prompt=PROMPTS[0])) <= 1


def test_solvers_differ():
    assert largest_difference(one(), one(solver="euler")) > 1


def test_size_can_be_given():
    assert one(size=(32, 128)).size == (128, 32)


def test_one_tile_paints_as_none_does():
    """To the bit; and so does the picture's own size, where it is that of the resolution."""
    source = [picture(64, 64, 4)]
    assert largest_difference(one(sources=source), one(sources=source, tile=64)) == 0


def test_progress_counts_pictures_and_compiles_nothing(monkeypatch):
    class Bar(module.Progress):
        last: "Bar"

        def __init__(self, *columns, **kwargs):
            super().__init__(*columns, **{**kwargs, "disable": True})
            self.disabled, self.counts, Bar.last = kwargs["disable"], [], self

        def advance(self, task, advance=1):
            self.counts.append(advance)
            super().advance(task, advance)

    monkeypatch.setattr(module, "Progress", Bar)
    run = EditPipeline(painter())
    arguments = (["red"] * 3, [SOURCES[0]] * 3)
    quiet = run(*arguments, settings=QUICK)
    assert Bar.last.disabled
    before = compilations()
    watched = run(*arguments, settings=QUICK, progress=True)
    assert compilations() == before
    (task,) = Bar.last.tasks
    assert not Bar.last.disabled
    assert Bar.last.counts == [2, 1]
    assert task.completed == task.total == 3
    assert all(largest_difference(a.image, b.image) == 0 for a, b in zip(quiet, watched, strict=True))


def text_to_image(folder):
    """The tiny model without its source channels."""
    tiny_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "decoder.model.x_embedder.proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:, :8])
    save_file(tensors, folder / "model.safetensors")
    (folder / "sana_edit.json").unlink()
    (folder / "sana_t2i.json").write_bytes((HERE / "goldens/sana_t2i.json").read_bytes())
    return folder


def test_from_text(tmp_path):
    """An edit model without a source is the text-to-image model in it."""
    (edit_model,) = GeneratePipeline(painter())(["a hat"], settings=QUICK)
    pipeline = GeneratePipeline.from_pretrained(text_to_image(tmp_path / "t2i"))
    (model,) = pipeline(["a hat"], settings=QUICK)
    assert (model.image.size, model.source, model.seed) == ((64, 64), None, 0)
    assert largest_difference(model.image, edit_model.image) <= 1
    with pytest.raises(InputError, match=r"t2i generates from text only .* `dim generate`"):
        EditPipeline(pipeline.sampler)


def test_a_text_to_image_checkpoint_does_not_edit(tmp_path, monkeypatch):
    """It is refused before its weights are read."""
    text_to_image(tmp_path / "t2i")
    monkeypatch.setattr(Weights, "stream", lambda self, **options: pytest.fail("weights were read"))
    with pytest.raises(InputError, match=r"t2i generates from text only .* `dim generate`"):
        EditPipeline.from_pretrained(tmp_path / "t2i")


def test_parts_with_other_latents_are_refused(tmp_path, monkeypatch):
    weights = loading.open_weights(tiny_checkpoint(tmp_path / "tiny"))
    config = replace(weights.config, autoencoder=DCAEConfig.f32c32())
    monkeypatch.setattr(loading, "open_weights", lambda path: replace(weights, config=config))
    with pytest.raises(InputError, match=r"tiny: SANA has 8 latent channels, the autoencoder 32\."):
        EditPipeline.from_pretrained(tmp_path / "tiny")


def test_the_converted_checkpoint_paints_the_same(tmp_path):
    convert(tiny_checkpoint(tmp_path / "dim"), tmp_path / "orbax", "orbax")
    converted = EditPipeline.from_pretrained(tmp_path / "orbax").sampler
    ours, theirs = parameters(painter().dim), parameters(converted.dim)
    assert ours.keys() == theirs.keys()
    for path, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[path], err_msg=path)
    # The compiled steps of the other painter serve this one too, if nothing but numbers could differ.
    borrowed, before = copy.copy(painter()), compilations()
    borrowed.dim, borrowed.processor, borrowed._null = converted.dim, converted.processor, {}
    first = one()
    (painting,) = EditPipeline(borrowed)(PROMPTS[:1], SOURCES[:1], seeds=SEEDS[:1], settings=QUICK)
    assert largest_difference(first, painting.image) == 0
    assert compilations() - before <= 5, "the first test to run compiles each part once"


def test_a_long_prompt_is_refused_or_cut():
    prompt = "a long way to the sea, then on to the isle"
    with pytest.raises(InputError, match=r"^The prompt 'a long way to the sea.*\.\.\.' is too long: .*--keep-last"):
        one(prompts=[prompt])
    with pytest.raises(InputError, match="'a long way to the sea"):
        one(negative_prompt=prompt)
    assert one(prompts=[prompt], overflow="keep_last").size == SOURCES[0].size


def test_what_was_painted_before_a_prompt_that_is_refused_is_kept():
    requests = [Request(prompt, 1, (64, 64)) for prompt in ("red", "sea " * 60)]
    painted = painter().paint(requests, settings(batch_size=1))
    index, decoded = next(painted)
    assert index == 0
    assert decoded.picture.size == (64, 64)
    with pytest.raises(InputError, match="too long"):
        next(painted)


def test_50000_words_are_refused_at_once():
    begin = time.process_time()
    with pytest.raises(InputError, match=r"is too long: its turn has \d+,\d+ tokens"):
        one(prompts=["sea " * 50_000])
    with pytest.raises(InputError, match=r"longest turn has \d+,\d+ tokens, the longest bucket 131,072"):
        one(prompts=["sea " * 50_000], overflow="keep_last")
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [" \n"]}, r"^Prompt 1 is empty \(' \\n'\)"),
        ({"seeds": [2**31]}, "^Seed 2147483648: .* from 0 to 2147483647"),
        ({"seeds": [1, 2]}, "^Give one of each, at least one; these are 1 prompts, 1 pictures, 2 seeds"),
        ({"sources": []}, "1 prompts, 0 pictures"),
        ({"prompts": [], "sources": [], "seeds": []}, "at least one; these are 0 prompts"),
        ({"size": (64, 50)}, "^Size 64 x 50: height and width must be multiples of 8"),
        ({"size": (0, 64)}, "^Size 0 x 64: "),
        ({"tile": 24}, "^Tiles of 24 pixels: a side must be a multiple of 8, and at least 32"),
        ({"tile": 60}, "^Tiles of 60 pixels"),
        ({"sources": [Source(SOURCES[0], np.zeros((8, 8, 8), np.float32))], "size": (64, 32)}, r"^Source 1: .*\(8, 8, 8\), .*\(8, 4, 8\)"),
        ({"sources": [Source(SOURCES[0], np.zeros((8, 8, 3), np.float32))]}, r"^Source 1: .*\(8, 8, 3\), .*\(8, 8, 8\)"),
        ({"resolution": 100}, "^Resolution 100 is not a multiple of 8. Take 96"),
    ],
)
def test_invalid_calls_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        edit(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0}, {"batch_size": 0}, {"flow_shift": 0.0}, {"flow_shift": float("nan")}, {"flow_shift": float("inf")},
        {"guidance_scale": -1.0}, {"guidance_scale": float("nan")}, {"image_guidance_scale": -0.1},
        {"image_guidance_scale": float("inf")}, {"negative_prompt": " "}, {"guidance_start": 0.6, "guidance_stop": 0.5},
        {"guidance_stop": 1.1}, {"cache_interval": 0},
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(changes):
    with pytest.raises(InputError):
        settings(**changes)


def test_an_encoder_of_another_tokenizer(tmp_path):
    folder = tiny_checkpoint(tmp_path / "other")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] += [{**data["added_tokens"][0], "id": i, "content": f"<|{i}|>"} for i in range(292, 301)]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"other: its tokenizer has <\|image_pad\|> = 290 and ids up to 300, the encoder has 290 and 300"):
        Sampler.from_pretrained(folder)
    config = json.loads((folder / "qwen.config.json").read_text())
    (folder / "qwen.config.json").write_text(json.dumps(config | {"image_token_id": 280}))
    with pytest.raises(InputError, match=r"tiny_tokenizer: its tokenizer .* = 290 .* the encoder has 280"):
        Sampler.from_pretrained(folder, tokenizer=HERE / "tiny_tokenizer")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nx"),
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes."),
    ],
)
def test_too_little_memory(monkeypatch, error):
    def paint(*args, **kwargs):
        raise error

    monkeypatch.setattr(painter(), "_paint", paint)
    message = r": painting 64 x 64 pixels in batches of 1 takes more memory than this device has \(.*\)\. .*--resolution .*--dtype bfloat16"
    with pytest.raises(InputError, match=message) as caught:
        edit()
    assert "\n" not in str(caught.value)


def test_other_failures_of_the_device_are_not_taken_for_it(monkeypatch):
    def paint(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(painter(), "_paint", paint)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        edit()


def test_a_picture_that_is_not_finite(monkeypatch):
    monkeypatch.setattr(painter(), "_decode", lambda *arguments: jnp.full((1, 64, 64, 3), jnp.nan))
    with pytest.raises(InputError, match="12288 of 12288 pixel values are not finite"):
        edit()
