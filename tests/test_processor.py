"""The processor against the goldens and against transformers' own, and what it refuses."""

import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from dim_jax.errors import InputError
from dim_jax.processing.inputs import VisionLayout, normalize
from dim_jax.processing.processor import MAX_PIXELS, MIN_PIXELS, Processor, patchify, resize_for_encoder, smart_resize
from tests.parity import processor_goldens
from tests.parity.goldens import Goldens

HERE = Path(__file__).parent


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def tiny() -> Processor:
    return Processor.from_pretrained(HERE / "tiny_tokenizer", resolution=112, condition_length=64)


def test_no_pixel_of_the_goldens_is_rounded_differently(goldens):
    """One 8-bit step would be 0.0146 in patches and 0.0078 in the autoencoder's pixels."""
    groups = [group for group in processor_goldens.preprocess(Goldens(goldens)) if group.name.endswith(("pixel_values", "pixels"))]
    assert len(groups) == 9
    for name, ours, golden, *_ in groups:
        np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-6, err_msg=name)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([28, 32]))
def test_smart_resize_rules(height, width, factor):
    assume(max(height, width) <= 200 * min(height, width))
    rows, columns = smart_resize(height, width, factor)
    assert rows % factor == columns % factor == 0
    assert MIN_PIXELS <= rows * columns <= MAX_PIXELS
    assert smart_resize(rows, columns, factor) == (rows, columns)
    assert smart_resize(width, height, factor) == (columns, rows)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(15, 6000), st.integers(15, 6000), st.sampled_from([(MIN_PIXELS, MAX_PIXELS), (50_000, 200_000)]))
def test_smart_resize_is_that_of_transformers(height, width, bounds):
    """From 15 pixels on: below, the published code's own version (ours) first rounds a side up to one factor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    assume(max(height, width) <= 200 * min(height, width))
    assert smart_resize(height, width, 28, *bounds) == theirs(height, width, 28, *bounds)


def test_smart_resize_refuses_thin_pictures():
    assert smart_resize(28, 5600) == (28, 5600)
    with pytest.raises(InputError, match=r"5000 x 1 pixels.*at most 200 times"):
        smart_resize(1, 5000)


@pytest.mark.parametrize(("width", "height"), [(56, 56), (143, 97), (64, 200), (301, 28), (33, 77), (640, 480)])
def test_native_patches_equal_transformers(width, height):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = picture(width, height)
    resized = resize_for_encoder(image, "native", 1024)
    # Versions of Pillow resize the two axes in another order: theirs gets a picture of the size that it would choose itself.
    theirs = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)(resized, return_tensors="np")
    patches, grid = patchify(resized)
    rows, columns = smart_resize(height, width)
    np.testing.assert_array_equal(theirs["image_grid_thw"], [(1, rows // 14, columns // 14)])
    np.testing.assert_array_equal(theirs["image_grid_thw"], [(1, *grid)])
    np.testing.assert_array_equal(normalize(patches), theirs["pixel_values"])


def test_patches_of_another_layout_equal_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    sizes = {"patch_size": 8, "merge_size": 4, "temporal_patch_size": 1}
    theirs = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, **sizes)(picture(96, 160), return_tensors="np")
    patches, grid = patchify(picture(96, 160), VisionLayout(**sizes))
    assert grid == (20, 12)
    np.testing.assert_array_equal(normalize(patches), theirs["pixel_values"])


def test_a_picture_takes_a_byte_a_sample_until_the_device(tiny):
    """In float32 it would be 26 MB."""
    inputs = replace(tiny, resolution=1024, condition_length=2000)(["red"], [[picture(300, 200)]])
    assert inputs.patches.dtype == np.uint8
    assert inputs.patches.nbytes == 74 * 74 * 3 * 2 * 14 * 14


def test_the_device_normalises_as_the_host_does():
    samples = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3)
    np.testing.assert_allclose(jax.jit(normalize)(samples), normalize(samples), rtol=0, atol=4 * np.finfo(np.float32).eps)


def test_square_mode_forces_the_square():
    image = picture(300, 40)
    square = resize_for_encoder(image, "square", 1024)
    assert square.size == (1036, 1036)  # smart_resize(1024, 1024)
    assert resize_for_encoder(image, "native", 1024).size == (308, 28)


def test_any_picture_mode_is_accepted():
    transparent = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    patches, _ = patchify(resize_for_encoder(transparent, "square", 112))
    white, _ = patchify(Image.new("RGB", (112, 112), (255, 255, 255)))
    np.testing.assert_array_equal(patches, white)


def test_a_batch(tiny):
    inputs = tiny(["red", "A cat on a mat", "two"], [[picture(60, 90)], [], [picture(50, 50, 1), picture(200, 90, 2)]])
    longest = len(tiny.tokenizer.turn("two", [16, 16]).ids)
    assert inputs.input_ids.shape == inputs.mask.shape == inputs.user_turn.shape == (3, longest)
    assert inputs.position_ids.shape == (3, 3, longest)
    assert inputs.patches.shape == (3, 64, 1176)
    assert (inputs.input_ids == tiny.tokenizer.image_id).sum(1).tolist() == [16, 0, 32]
    assert (inputs.input_ids[~inputs.mask] == tiny.tokenizer.pad_id).all()
    for row, (prompt, tokens) in enumerate([("red", [16]), ("A cat on a mat", []), ("two", [16, 16])]):
        turn = tiny.tokenizer.turn(prompt, tokens)
        np.testing.assert_array_equal(inputs.input_ids[row][inputs.mask[row]], turn.ids)
        np.testing.assert_array_equal(np.flatnonzero(inputs.user_turn[row]), np.arange(*turn.user_turn))
    third, _ = patchify(tiny.resize(picture(200, 90, 2)))
    np.testing.assert_array_equal(inputs.patches[2], third)


def test_text_only_batch(tiny):
    inputs = tiny(["A cat"], [[]])
    assert inputs.mask.all()
    assert inputs.patches.shape[0] == 0


def test_length_buckets(tiny):
    turn = len(tiny.tokenizer.turn("A cat").ids)
    assert tiny(["A cat"], [[]], lengths=[128, 32 + turn, 1]).input_ids.shape == (1, 32 + turn)
    assert tiny(["A cat"], [[]], lengths=[turn]).input_ids.shape == (1, turn)
    with pytest.raises(InputError, match=rf"has {turn} tokens, the longest bucket {turn - 1}"):
        tiny(["A cat"], [[]], lengths=[turn - 1, 2])


def test_patch_length_pads_pictures(tiny):
    assert tiny(["x"], [[picture(60, 60)]], patch_length=80).patches.shape == (1, 80, 1176)


def test_generation_prompt(tiny):
    inputs = tiny(["Who?"], [[]], generation_prompt=True)
    assert tiny.tokenizer.decode(inputs.input_ids[0].tolist()).endswith("assistant\n")


def test_long_prompts_are_refused_unless_asked_for(tiny):
    with pytest.raises(InputError, match=r"' is too long: its turn has 118 tokens \(16 of them pictures\), the condition holds 64"):
        tiny(["x", "y" * 100], [[], [picture(60, 60)]])
    inputs = tiny(["y" * 100], [[picture(60, 60)]], overflow="keep_last")
    assert inputs.user_turn.sum() == 118


def test_fifty_thousand_words_are_refused_quickly():
    processor = Processor.from_pretrained(HERE / "tiny_tokenizer")
    start = time.process_time()
    with pytest.raises(InputError, match="the condition holds 8,192"):
        processor(["word " * 50_000], [[picture(60, 60)]])
    assert time.process_time() - start < 10


def test_bad_batches(tiny):
    with pytest.raises(InputError, match="1 prompts and 2 lists"):
        tiny(["x"], [[], []])
    with pytest.raises(InputError, match="0 prompts"):
        tiny([], [])
    with pytest.raises(InputError, match='mode is "round"'):
        Processor(tiny.tokenizer, mode="round")(["x"], [[picture(60, 60)]])
    with pytest.raises(InputError, match="prompt is empty"):
        tiny([""], [[]])
    assert tiny([""], [[picture(60, 60)]]).user_turn.sum() == 18


@pytest.mark.parametrize("mode", ["square", "native"])
def test_tokens_are_counted_without_a_picture(tiny, mode, monkeypatch):
    one = replace(tiny, mode=mode, resolution=100)
    inputs = one(["a hat"], [[Image.new("RGB", (100, 100))]])
    monkeypatch.setattr(Image.Image, "resize", None)
    assert one.condition_tokens("a hat", pictures=1) == np.asarray(inputs.user_turn).sum()
