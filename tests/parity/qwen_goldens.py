"""The encoder against the goldens: sizes, cases, seeds and tolerances all come from the files."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from dim_jax.data.inputs import EncoderInputs, encoder_inputs
from dim_jax.models.generate import GenerationSettings, generate
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.weights import module, table
from dim_jax.weights.qwen import ROWS

Group = tuple[str, np.ndarray, np.ndarray, float, float]


def load(config: QwenConfig, weights: dict[str, np.ndarray], rows: tuple[table.Row, ...] = ROWS, **options) -> Qwen:
    """A model that holds published weights.

    Raises:
        KeyError: a tensor is missing or unknown.
    """
    abstract = nnx.eval_shape(lambda: Qwen(config, rngs=nnx.Rngs(0), **options))
    slots = table.slots(rows, module.shapes(abstract))
    if slots.keys() != weights.keys():
        raise KeyError(f"missing or unknown tensors: {sorted(slots.keys() ^ weights.keys())}")
    return module.with_parameters(abstract, table.to_ours(slots, weights.__getitem__))


def inputs_of(config: QwenConfig, ids: np.ndarray, mask: np.ndarray, pixels: np.ndarray | None, grids: list, **options) -> EncoderInputs:
    """A batch from transformers' arguments; `grids` are (rows, columns)."""
    mask = mask.astype(bool)
    patches = [] if pixels is None else np.split(pixels, np.cumsum([h * w for h, w in grids])[:-1])
    return encoder_inputs(ids, mask, mask, patches, grids, image_token_id=config.image_token_id, layout=config.vision.layout, **options)


def groups(folder: Path) -> Iterator[Group]:
    """(name, ours, golden, rtol, atol) of every tensor group in qwen.forward.safetensors."""
    facts = json.loads((folder / "qwen.json").read_text())
    config = QwenConfig.from_hf(folder / "qwen.config.json")
    model = load(config, load_file(folder / "qwen.weights.safetensors"))
    goldens = load_file(folder / "qwen.forward.safetensors")
    for case in facts["cases"]:
        golden = {name.removeprefix(f"{case['case']}."): t for name, t in goldens.items() if name.startswith(f"{case['case']}.")}
        grids = [tuple(grid) for row in case["rows"] for grid in row["image_grids"]]
        for name, ours, theirs, exact in _case(model, golden, grids):
            yield f"qwen {case['case']}.{name}", ours, theirs, *((0.0, 0.0) if exact else (facts["rtol"], facts["atol"]))


def _case(model: Qwen, golden: dict[str, np.ndarray], grids: list) -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
    mask = golden["attention_mask"].astype(bool)
    inputs = inputs_of(model.config, golden["input_ids"], mask, golden["pixel_values"] if grids else None, grids)
    yield "position_ids", inputs.position_ids[:, mask], golden["position_ids"][:, mask], True
    states = np.asarray(jax.jit(Qwen.hidden_states)(model, inputs))
    if grids:
        yield "image_grid_thw", np.array([(1, *grid) for grid in grids]), golden["image_grid_thw"], True
        # The embedding holds the features, picture after picture, in the place of the picture tokens.
        yield "image_features", states[0][inputs.picture_tokens >= 0], golden["image_features"], False
    for i, state in enumerate(states):
        yield f"hidden_states.{i}", state[mask], golden[f"hidden_states.{i}"][mask], False
    yield "logits", np.asarray(model.logits(jnp.asarray(states[-1])))[mask], golden["logits"][mask], False
    if len(mask) == 1:  # generation in transformers goes on behind the padding, so only single rows were kept
        yield "greedy", *_greedy(model, inputs, golden["greedy"]), True


def _greedy(model: Qwen, inputs: EncoderInputs, golden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    new = golden.shape[1] - inputs.input_ids.shape[1]
    tokens = generate(model, inputs, GenerationSettings(max_new_tokens=new)).tokens
    return np.concatenate([inputs.input_ids, np.asarray(tokens)], axis=1), golden
