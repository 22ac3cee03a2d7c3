"""Our preprocessing and chat text beside preprocess.* and chat.json of any folder made like tests/goldens."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from dim_jax.data.chat import ChatTokenizer, render
from dim_jax.data.pictures import autoencoder_pixels
from dim_jax.data.processor import encoder_picture, smart_resize, to_patches

Group = tuple[str, np.ndarray, np.ndarray, float, float]


def groups(folder: Path, tokenizer: Path | None) -> Iterator[Group]:
    """(name, ours, golden, rtol, atol) for every tensor; ids and user turns only where a tokenizer (folder or file) is given.

    Texts are compared as UTF-8 bytes; where ours and the golden differ in length, so do the shapes.

    Raises:
        FileNotFoundError, KeyError: the folder lacks a file or a key.
    """
    yield from _preprocess(folder)
    yield from _chat(folder, None if tokenizer is None else ChatTokenizer.from_pretrained(tokenizer))


def _preprocess(folder: Path) -> Iterator[Group]:
    info = json.loads((folder / "preprocess.json").read_text())
    tensors = load_file(folder / "preprocess.safetensors")
    resolution, atol = info["resolution"], info["atol"]
    table = np.array(info["smart_resize"])
    yield "preprocess.smart_resize", np.array([smart_resize(int(h), int(w)) for h, w, *_ in table]), table[:, 2:], 0, 0
    for case in _cases({key.split(".")[0] for key in tensors}, folder / "preprocess.safetensors"):
        image = Image.fromarray(tensors[f"{case}.image"])
        for mode in ("native", "square"):
            patches, grid = to_patches(encoder_picture(image, mode, resolution))
            name = f"preprocess.{case}.{mode}"
            yield f"{name}.grid", np.array([(1, *grid)]), tensors[f"{case}.{mode}.grid"], 0, 0
            yield f"{name}.pixel_values", patches, tensors[f"{case}.{mode}.pixel_values"], 0, atol
        pixels = autoencoder_pixels(image, (resolution, resolution)).transpose(2, 0, 1)
        yield f"preprocess.{case}.autoencoder_pixels", pixels, tensors[f"{case}.autoencoder_pixels"], 0, atol


def _chat(folder: Path, tokenizer: ChatTokenizer | None) -> Iterator[Group]:
    cases = json.loads((folder / "chat.json").read_text())["cases"]
    for i in _cases({str(i) for i in range(len(cases))}, folder / "chat.json"):
        case = cases[int(i)]
        prompt, tokens = case["prompt"], case["image_tokens"]
        yield f"chat.{i}.rendered", _utf8(render(prompt, tokens)), _utf8(case["rendered"]), 0, 0
        ids, user_turn = np.array(case["input_ids"]), np.array(case["user_turn"])
        if tokenizer is not None:
            turn = tokenizer.turn(prompt, tokens)
            yield f"chat.{i}.input_ids", turn.ids, ids, 0, 0
            yield f"chat.{i}.user_turn", np.array(turn.user_turn), user_turn, 0, 0


def _cases(names: set[str], file: Path) -> list[str]:
    if not names:
        raise KeyError(f"{file}: no case")
    return sorted(names, key=int)


def _utf8(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
