"""The encoder against the goldens: sizes, cases, seeds and tolerances all come from the files."""

from collections.abc import Iterator, Mapping
from functools import cache

import jax
import numpy as np
from flax import nnx

from dim_jax.models import module
from dim_jax.models.generate import GenerationSettings, generate
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.processing.inputs import EncoderInputs, encoder_inputs
from dim_jax.weights import table
from dim_jax.weights.qwen import ROWS
from tests.parity.goldens import Goldens, Group, Tensors


def load(config: QwenConfig, weights: Mapping[str, np.ndarray], rows: tuple[table.Row, ...] = ROWS, **options) -> Qwen:
    """A model that holds published weights.

    Raises:
        KeyError: a tensor is missing.
    """
    model, slots = _abstract(config, rows, **options)
    return module.with_parameters(model, table.from_hf(slots, weights.__getitem__))


@cache
def _abstract(config: QwenConfig, rows: tuple[table.Row, ...], **options) -> tuple[Qwen, dict[str, table.TensorMapping]]:
    model = nnx.eval_shape(lambda: Qwen(config, rngs=nnx.Rngs(0), **options))
    return model, table.tensor_mappings(rows, module.shapes(model))


def inputs_of(config: QwenConfig, ids: np.ndarray, mask: np.ndarray, pixels: np.ndarray | None, grids: list, **options) -> EncoderInputs:
    """A batch from transformers' arguments; `grids` are (rows, columns)."""
    mask = mask.astype(bool)
    patches = [] if pixels is None else np.split(pixels, np.cumsum([h * w for h, w in grids])[:-1])
    return encoder_inputs(ids, mask, mask, patches, grids, image_token_id=config.image_token_id, layout=config.vision.layout, **options)


_hidden_states, _logits = jax.jit(Qwen.hidden_states), jax.jit(Qwen.logits)


def groups(goldens: Goldens, model: Qwen | None = None) -> Iterator[Group]:
    """Every tensor group in qwen.forward.safetensors."""
    facts, data = goldens.json("qwen.json"), goldens.tensors("qwen.forward.safetensors")
    if model is None:
        goldens.json("qwen.config.json")  # names the file if it is missing
        config, weights = QwenConfig.from_hf(goldens / "qwen.config.json"), goldens.tensors("qwen.weights.safetensors")
        if config.tie_word_embeddings:
            weights.pass_over("lm_head.weight")  # the embedding once more
        model = load(config, weights)
    for case in facts["cases"]:
        grids = [tuple(grid) for row in case["rows"] for grid in row["image_grids"]]
        for name, ours, golden, exact in _case(model, data.under(f"{case['case']}."), grids):
            yield Group(f"{case['case']}.{name}", ours, golden, *((0.0, 0.0) if exact else (facts["rtol"], facts["atol"])))


def _case(model: Qwen, golden: Tensors, grids: list) -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
    mask = golden["attention_mask"].astype(bool)
    inputs = inputs_of(model.config, golden["input_ids"], mask, golden["pixel_values"] if grids else None, grids)
    yield "position_ids", inputs.position_ids[:, mask], golden["position_ids"][:, mask], True
    states = np.asarray(_hidden_states(model, inputs))
    if grids:
        yield "image_grid_thw", np.array([(1, *grid) for grid in grids]), golden["image_grid_thw"], True
        # The embedding holds the features, picture after picture, in the place of the picture tokens.
        yield "image_features", states[0][inputs.picture_tokens >= 0], golden["image_features"], False
    for i, state in enumerate(states):
        yield f"hidden_states.{i}", state[mask], golden[f"hidden_states.{i}"][mask], False
    yield "logits", np.asarray(_logits(model, states[-1]))[mask], golden["logits"][mask], False
    if len(mask) == 1:  # generation in transformers goes on after the padding, so only single rows were kept
        yield "greedy", *_greedy(model, inputs, golden["greedy"]), True


def _greedy(model: Qwen, inputs: EncoderInputs, golden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    new = golden.shape[1] - inputs.input_ids.shape[1]
    tokens = generate(model, inputs, GenerationSettings(max_new_tokens=new)).tokens
    return np.concatenate([inputs.input_ids, np.asarray(tokens)], axis=1), golden
