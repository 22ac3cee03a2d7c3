"""The painter's own encoder as the designer: it shares the weights, and writes what generation writes."""

import asyncio
import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from dim_jax.designer.blueprint import prompt
from dim_jax.designer.clients import Request
from dim_jax.designer.local import LocalDesigner
from dim_jax.designer.picture import EncodedPicture
from dim_jax.errors import InputError
from dim_jax.models.generate import GenerationSettings, generate
from dim_jax.processing.chat import END_OF_TEXT, IM_END
from dim_jax.settings import read_prompt_mode, read_settings
from tests.painter_fixtures import painter, picture, tiny_checkpoint

INSTRUCTION = "Make it blue."


def designer(**changes) -> LocalDesigner:
    return replace(LocalDesigner.from_sampler(painter(), 64), max_tokens=12, **changes)


def expected(text: str, mode: str, penalty: float) -> str:
    """Plain generation, without buckets."""
    processor = replace(painter().processor, condition_length=4096, resolution=64, mode=mode)
    tokenizer = processor.tokenizer
    inputs = processor([text], [[picture(80, 60)]], generation_prompt=True)
    stops = (tokenizer.ids[IM_END], tokenizer.ids[END_OF_TEXT])
    settings = GenerationSettings(12, repetition_penalty=penalty, stop_tokens=stops, pad_token=tokenizer.pad_id)
    written = generate(painter().dim.encoder, inputs, settings)
    return tokenizer.decode(np.asarray(written.tokens)[0, : int(written.lengths[0])].tolist())


def test_local_designer_shares_the_painters_arrays():
    ours, theirs = (jax.tree.leaves(encoder) for encoder in (LocalDesigner.from_sampler(painter(), 64).encoder, painter().dim.encoder))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("prompt_mode", "text", "mode", "penalty"),
    [("prompt", prompt(INSTRUCTION), "native", 1.05), ("instruction", INSTRUCTION, "square", 1.0)],
)
def test_local_designer_equals_generate(prompt_mode, text, mode, penalty):
    (answer,) = designer(prompt_mode=prompt_mode).write([picture(80, 60)], [INSTRUCTION])
    assert answer.text == expected(text, mode, penalty)
    assert answer.tokens_in > 20
    assert (answer.failure is not None) == (answer.tokens_out == 12)


def test_local_designer_completes_requests():
    file = io.BytesIO()
    picture(80, 60).save(file, "PNG")
    question = Request("1", INSTRUCTION, prompt(INSTRUCTION), (EncodedPicture(file.getvalue(), "image/png"),))
    assert [asyncio.run(designer().complete(question))] == designer().write([picture(80, 60)], [INSTRUCTION])


def test_from_a_checkpoint_alone(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    (folder / "settings.json").write_text(json.dumps({"resolution": 64, "blueprint_from": "instruction"}))
    found = LocalDesigner.from_pretrained(folder)
    assert (found.prompt_mode, found.processor.resolution, found.name) == ("instruction", 64, f"local:{folder}")
    ours = replace(found, max_tokens=12).write([picture(80, 60)], [INSTRUCTION])
    assert ours == designer(prompt_mode="instruction").write([picture(80, 60)], [INSTRUCTION])
    assert read_settings(folder / "settings.json").resolution == 64
    (folder / "settings.json").write_text('{"blueprint_from": "dreams"}')
    with pytest.raises(InputError, match="blueprint_from"):
        read_prompt_mode(folder / "settings.json")
