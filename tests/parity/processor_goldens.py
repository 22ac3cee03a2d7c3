"""Our preprocessing and chat text beside preprocess.* and chat.json of any folder made like tests/goldens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dim_jax.processing.chat import ChatTokenizer, render
from dim_jax.processing.inputs import normalize
from dim_jax.processing.pictures import autoencoder_pixels
from dim_jax.processing.processor import patchify, resize_for_encoder, smart_resize
from tests.parity.goldens import Goldens, Group, MissingError


def preprocess(goldens: Goldens) -> Iterator[Group]:
    """The table of smart_resize; grids, patches and the autoencoder's pixels of every picture."""
    info, tensors = goldens.json("preprocess.json"), goldens.tensors("preprocess.safetensors")
    resolution, atol = info["resolution"], info["atol"]
    table = np.array(info["smart_resize"])
    yield Group("smart_resize", np.array([smart_resize(int(h), int(w)) for h, w, *_ in table]), table[:, 2:], 0, 0)
    for case in tensors.cases():
        now = tensors.under(f"{case}.")
        image = Image.fromarray(now["image"])
        for mode in ("native", "square"):
            patches, grid = patchify(resize_for_encoder(image, mode, resolution))
            yield Group(f"{case}.{mode}.grid", np.array([(1, *grid)]), now[f"{mode}.grid"], 0, 0)
            yield from _pixels(f"{case}.{mode}.pixel_values", normalize(patches), now[f"{mode}.pixel_values"], atol)
        pixels = autoencoder_pixels(image, (resolution, resolution)).transpose(2, 0, 1)
        yield from _pixels(f"{case}.autoencoder_pixels", pixels, now["autoencoder_pixels"], atol)


def _pixels(name: str, ours: np.ndarray, golden: np.ndarray, atol: float) -> Iterator[Group]:
    """A tolerance of some 8-bit steps is for single pixels; a picture as a whole (root mean square) is held to a tenth of it."""
    yield Group(name, ours, golden, 0, atol)
    if ours.shape == golden.shape:
        yield Group(f"{name} (rms)", np.sqrt(np.mean(np.square(ours - golden, dtype=np.float64))), np.zeros(()), 0, atol / 10)


def chat(goldens: Goldens, tokenizer: Path | None) -> Iterator[Group]:
    """Text, ids and user turn of every case; ids and turn only where a tokenizer (a folder or a tokenizer.json) is given.

    Texts are compared as UTF-8 bytes; where ours and the golden differ in length, so do the shapes.
    """
    cases = goldens.json("chat.json")["cases"]
    if not cases:
        raise MissingError("chat.json: no case in it")
    ours = None if tokenizer is None else ChatTokenizer.from_pretrained(tokenizer)
    for i, case in enumerate(cases):
        prompt, tokens = case["prompt"], case["image_tokens"]
        yield Group(f"{i}.rendered", _utf8(render(prompt, tokens)), _utf8(case["rendered"]), 0, 0)
        ids, user_turn = np.array(case["input_ids"]), np.array(case["user_turn"])
        if ours is not None:
            turn = ours.turn(prompt, tokens)
            yield Group(f"{i}.input_ids", np.array(turn.ids), ids, 0, 0)
            yield Group(f"{i}.user_turn", np.array(turn.user_turn), user_turn, 0, 0)


def _utf8(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
