"""Qwen2.5-VL without PyTorch: configs, sizes, padding, precision, compile time."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig

from dim_jax.errors import InputError
from dim_jax.models import layers, module
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.models.qwen_layers import GatedMLP
from dim_jax.processing.inputs import EncoderInputs, encoder_inputs
from tests.sana_fixtures import normal

TINY = QwenConfig.tiny()
PUBLISHED_3B = {  # the keys of the published config.json that matter, in its flat form
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}


def nested(flat):
    """The same config as transformers 5 writes it."""
    vision = {**flat["vision_config"], "in_channels": 3, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}
    text = {key: value for key, value in flat.items() if key not in ("vision_config", "model_type", "torch_dtype", "tie_word_embeddings")}
    rope = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta"), "rope_type": "default"}
    del rope["type"]
    root = {"model_type": "qwen2_5_vl", "dtype": flat["torch_dtype"], "tie_word_embeddings": flat["tie_word_embeddings"]}
    return {**root, "text_config": {**text, "rope_parameters": rope, "head_dim": None}, "vision_config": vision}


def abstract(config):
    return nnx.eval_shape(lambda: Qwen(config, rngs=nnx.Rngs(0)))


def batch_of(rows, config=TINY, *, extra=0, **options) -> EncoderInputs:
    """Rows of grids, two text tokens before and after each picture; a picture's pixels follow from its grid alone."""
    lists = [[1, 2] + [i for h, w in grids for i in [config.image_token_id] * (h * w // 4) + [3, 4]] for grids in rows]
    width = max(map(len, lists)) + extra
    ids = np.array([row + [0] * (width - len(row)) for row in lists])
    mask = np.array([[True] * len(row) + [False] * (width - len(row)) for row in lists])
    grids = [grid for row in rows for grid in row]
    patches = [np.random.default_rng(h * 100 + w).normal(size=(h * w, 1176)).astype(np.float32) for h, w in grids]
    return encoder_inputs(ids, mask, mask, patches, grids, image_token_id=config.image_token_id, **options)


def random_model(config=TINY, seed=0, **options) -> Qwen:
    """Weights from numpy, of the size that initialisers give, norms and biases too: much faster than compiling initialisers."""
    rng, empty = np.random.default_rng(seed), nnx.eval_shape(lambda: Qwen(config, rngs=nnx.Rngs(0), **options))
    tensors = {}
    for path, shape in module.shapes(empty).items():
        values = rng.normal(size=shape).astype(np.float32)
        tensors[path] = 1 + values / 10 if path.endswith("scale") else values / 10 if path.endswith("bias") else values / shape[-2] ** 0.5
    return module.with_parameters(empty, tensors)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.mark.parametrize(("size", "count"), [("qwen_3b", 3_754_622_976), ("qwen_7b", 8_292_166_656)])
def test_parameters_are_counted(size, count):
    assert sum(value.size for value in module.parameters(abstract(getattr(QwenConfig, size)())).values()) == count


def test_full_size_forward_is_abstract():
    config = QwenConfig.qwen_3b()
    inputs = batch_of([[(74, 74)], []], config, extra=100)
    out = jax.eval_shape(Qwen.__call__, abstract(config), inputs)
    assert out.shape == (2, 5476 // 4 + 4 + 100, 2048)


def test_attributes_are_named_as_published():
    paths = module.shapes(abstract(replace(TINY, tie_word_embeddings=False)))
    assert paths["visual.blocks.attn.qkv.kernel"] == (4, 32, 96)
    assert paths["model.layers.self_attn.q_proj.kernel"] == (2, 64, 64)
    assert paths["lm_head.kernel"] == (64, 300)
    assert "lm_head.kernel" not in module.shapes(abstract(TINY))


@pytest.mark.parametrize("form", [lambda flat: flat, nested])
def test_config_forms(tmp_path, form):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(form(PUBLISHED_3B)))
    assert QwenConfig.from_hf(path) == QwenConfig.qwen_3b()


def test_config_of_the_goldens_and_the_way_back(goldens):
    config = QwenConfig.from_hf(goldens / "qwen.config.json")
    assert (config.text.mrope_section, config.vision.fullatt_block_indexes) == ((4, 6, 6), (1, 3))
    for each in (config, TINY, QwenConfig.qwen_3b(), QwenConfig.qwen_7b()):
        assert QwenConfig.from_hf(json.loads(json.dumps(each.to_hf()))) == each


def test_config_read_and_written_by_transformers():
    for config in (TINY, QwenConfig.qwen_3b(), QwenConfig.qwen_7b()):
        theirs = Qwen2_5_VLConfig(**config.to_hf())
        assert QwenConfig.from_hf(theirs.to_dict()) == config


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("", {"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'"),
        ("", {"hidden_size": None}, "'hidden_size' is missing"),
        ("", {"hidden_size": "2048"}, "hidden_size is '2048'. Input should be a valid integer."),
        ("", {"num_attention_heads": 15}, "multiple of 2 \\* num_attention_heads"),
        ("", {"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ("", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("", {"rope_scaling": {"type": "yarn"}}, "rope_scaling: type is 'yarn'"),
        ("", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}}, "mrope_section"),
        ("", {"hidden_act": "gelu"}, "hidden_act"),
        ("", {"use_sliding_window": True}, "use_sliding_window"),
        ("", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("", {"torch_dtype": "int8"}, "dtype"),
        ("", {"image_token_id": 200000}, "image_token_id"),
        ("", {"vision_config": 3}, "vision_config is 3"),
        ("vision_config", {"in_chans": 4}, "in_chans"),
        ("vision_config", {"out_hidden_size": 3584}, "out_hidden_size"),
        ("vision_config", {"num_heads": 7}, "num_heads"),
        ("vision_config", {"fullatt_block_indexes": [7, 32]}, "fullatt_block_indexes has 32"),
        ("vision_config", {"fullatt_block_indexes": 7}, "fullatt_block_indexes is 7. Input should be a valid"),
        ("vision_config", {"window_size": 14}, "window_size"),
        ("vision_config", {"rope_parameters": {"rope_theta": 5000.0}}, "rope_theta"),
        ("vision_config", {"depth": True}, "depth"),
    ],
)
def test_wrong_configs_name_the_key(where, change, message):
    values = {**PUBLISHED_3B, where: {**PUBLISHED_3B[where], **change}} if where else {**PUBLISHED_3B, **change}
    with pytest.raises(InputError, match=message):
        QwenConfig.from_hf(values)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("{", "not a JSON file"), ("[1]", "not a JSON object")])
def test_invalid_config_files_are_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        QwenConfig.from_hf(path)
    assert str(path) in str(error.value)


def test_padding_and_other_rows_never_change_a_result(model):
    rows = [[(10, 14)], [(4, 6), (2, 2)], []]
    together = batch_of(rows, extra=7, patch_length=200)
    states = np.asarray(jax.jit(Qwen.hidden_states)(model, together))
    for row, grids in enumerate(rows):
        alone = batch_of([grids])
        expected = np.asarray(jax.jit(Qwen.hidden_states)(model, alone))[:, 0]
        np.testing.assert_allclose(states[:, row, : expected.shape[1]], expected, rtol=1e-5, atol=1e-5)
    assert np.isfinite(states).all(), "padding stays finite"


def test_padding_content_is_never_read(model):
    inputs = batch_of([[(4, 6)], []], extra=3, patch_length=60)
    ids = np.where(inputs.mask, inputs.input_ids, 77)
    patches = np.where(inputs.patch_mask[..., None], inputs.patches, 9.0).astype(np.float32)
    run = jax.jit(Qwen.__call__)
    clean, dirty = run(model, inputs), run(model, replace(inputs, input_ids=ids, patches=patches))
    np.testing.assert_array_equal(np.asarray(clean)[inputs.mask], np.asarray(dirty)[inputs.mask])


def test_compiled_size_is_constant_in_depth():
    def size(depth):
        vision = replace(TINY.vision, depth=depth, fullatt_block_indexes=tuple(range(0, depth, 3)))
        config = replace(TINY, vision=vision, text=replace(TINY.text, num_hidden_layers=depth))
        return len(jax.jit(Qwen.__call__).lower(abstract(config), batch_of([[(4, 6)]])).as_text().splitlines())

    assert size(12) == size(24)


def test_bfloat16_error_is_bounded(model):
    """Off fp32, in the last hidden state: 1.8e-2 of the largest value was seen, and 1.4e-2 as relative root mean square."""
    inputs = batch_of([[(10, 14)], [(4, 6)]])
    run = jax.jit(Qwen.__call__)
    exact, rounded = run(model, inputs), run(random_model(dtype=jnp.bfloat16), inputs)
    assert rounded.dtype == jnp.bfloat16
    exact, error = np.asarray(exact)[inputs.mask], (np.asarray(rounded).astype(np.float32) - np.asarray(exact))[inputs.mask]
    assert np.abs(error).max() < 0.03 * np.abs(exact).max()
    assert np.sqrt((error**2).mean()) < 0.02 * np.sqrt((exact**2).mean())


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 9))
def test_attention_by_blocks_of_queries(t, causal, with_lengths, seed):
    b, n, m, k = 2, 4, 2, 8
    rng = np.random.default_rng(seed)
    q, key, value = (jnp.asarray(rng.normal(size=(b, t, heads, k)), jnp.float32) for heads in (n, m, m))
    lengths = rng.integers(1, t + 1, b) if with_lengths else np.full(b, t)
    mask = np.arange(t) < lengths[:, None, None]
    mask = mask & np.tri(t, dtype=bool) if causal else np.broadcast_to(mask, (b, t, t))
    scores = np.einsum("btnk,bsnk->bnts", q, np.repeat(key, n // m, 2)) / np.sqrt(k)
    weights = np.exp(np.where(mask[:, None], scores, -np.inf))
    expected = np.einsum("bnts,bsnk->btnk", weights / weights.sum(-1, keepdims=True), np.repeat(value, n // m, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "QUERIES", 8)
        ours = layers.attention(q, key, value, lengths=jnp.asarray(lengths, jnp.int32) if with_lengths else None, causal=causal)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_mlp_of_odd_width_is_the_same_where_it_is_filled_up(bias, monkeypatch):
    """As on a GPU, whose products are slow where the summed width is no multiple of 8."""
    mlp = GatedMLP(6, 13, use_bias=bias, dtype=jnp.float32, rngs=nnx.Rngs(0))
    if bias:
        mlp.down_proj.bias[...] = normal(6, seed=2)
    x = normal(2, 5, 6)
    expected = mlp(x)
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    np.testing.assert_allclose(mlp(x), expected, rtol=1e-6, atol=1e-6)
    assert "pad" in str(jax.make_jaxpr(mlp)(x))
