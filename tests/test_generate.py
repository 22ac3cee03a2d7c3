"""Writing: the cache against whole forwards, every way to choose a token, stops, and rows that do not feel each other."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dim_jax.errors import InputError
from dim_jax.models.generate import GenerationSettings, generate, sample_tokens
from dim_jax.models.qwen import Qwen
from dim_jax.processing.inputs import encoder_inputs
from tests.test_qwen import TINY, batch_of, random_model

PUBLISHED = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}


@pytest.fixture(scope="module")
def model():
    return random_model(seed=1)


def keys(count, seed=0):
    return jax.vmap(jax.random.key)(np.arange(seed, seed + count, dtype=np.uint32))


def test_kv_cache_equals_full_forward(model):
    """A picture and other lengths a row: greedy tokens with the cache, and without it by running the whole text again."""
    new = 4
    inputs = batch_of([[(4, 6)], []], extra=2)
    written = np.asarray(generate(model, inputs, GenerationSettings(max_new_tokens=new)).tokens)
    pixels = list(inputs.patches)
    for row, grids in enumerate([[(4, 6)], []]):
        ids = inputs.input_ids[row, inputs.mask[row]].tolist()
        full = np.array([ids + written[row].tolist()])
        mask = np.ones_like(full, bool)
        again = encoder_inputs(full, mask, mask, pixels[: len(grids)], grids, image_token_id=TINY.image_token_id)
        logits = model.logits(jax.jit(Qwen.__call__)(model, again))
        np.testing.assert_array_equal(np.asarray(logits.argmax(-1))[0, len(ids) - 1 : -1], written[row])


def test_a_row_is_sampled_alike_in_every_batch(model):
    options = GenerationSettings(max_new_tokens=6, temperature=1.0, top_k=50, top_p=0.95)
    together = generate(model, batch_of([[(4, 6)], []], extra=5), options, seeds=[3, 8]).tokens
    alone = generate(model, batch_of([[]]), options, seeds=[8]).tokens
    np.testing.assert_array_equal(together[1], alone[0])
    others = generate(model, batch_of([[]] * 2), options, seeds=[8, 9]).tokens
    np.testing.assert_array_equal(others[0], alone[0])
    assert (np.asarray(others[1]) != np.asarray(others[0])).any()


def test_rows_stop_one_by_one(model):
    inputs = batch_of([[(2, 2)], []])
    free = np.asarray(generate(model, inputs, GenerationSettings(max_new_tokens=8)).tokens)
    stop = int(free[1, 2])
    options = GenerationSettings(max_new_tokens=8, stop_tokens=(stop, 299), pad_token=7)
    written = generate(model, inputs, options)
    for row in range(2):
        ends = [i for i, token in enumerate(free[row]) if token in options.stop_tokens]
        length = ends[0] if ends else 8
        assert written.lengths[row] == length
        np.testing.assert_array_equal(written.tokens[row, : length + 1], free[row, : length + 1])
        assert (np.asarray(written.tokens[row, length + 1 :]) == 7).all()


def test_seeds_must_match_rows(model):
    with pytest.raises(ValueError, match="1 seeds came with 2 rows"):
        generate(model, batch_of([[], []]), GenerationSettings(), seeds=[1])


@hypothesis_settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.integers(0, 6), st.sampled_from([0.05, 0.5, 0.9, 1.0]), st.sampled_from([0.3, 1.0, 2.0]))
def test_top_k_and_top_p_restrict_samples(seed, top_k, top_p, temperature):
    """The k best, and of them the fewest whose probability reaches top_p: each drawn token is one of these, computed plainly."""
    scores = np.random.default_rng(seed).normal(size=12).astype(np.float32) * 2
    order = np.argsort(-scores)[: top_k or 12]
    probability = np.exp(scores[order].astype(np.float64) / temperature)
    probability /= probability.sum()
    allowed = order[: int((np.cumsum(probability) < top_p - 1e-6).sum()) + 1]
    options = GenerationSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = sample_tokens(jnp.tile(scores, (64, 1)), jnp.zeros((64, 12), bool), keys(64, seed), options)
    assert set(np.asarray(drawn).tolist()) <= set(allowed.tolist())


def test_drawn_tokens_follow_the_probabilities():
    scores = jnp.log(jnp.array([0.5, 0.3, 0.2], jnp.float32))
    drawn = sample_tokens(jnp.tile(scores, (4000, 1)), jnp.zeros((4000, 3), bool), keys(4000), GenerationSettings(temperature=1.0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4000, [0.5, 0.3, 0.2], atol=0.03)


def test_repetition_penalty_lowers_seen_tokens():
    logits, seen = jnp.array([[2.0, 1.5, -1.0]]), jnp.array([[True, False, False]])
    assert sample_tokens(logits, seen, keys(1), GenerationSettings(repetition_penalty=1.5)).tolist() == [1]
    logits, seen = jnp.array([[-1.0, -1.2, -9.0]]), jnp.array([[True, False, False]])
    assert sample_tokens(logits, seen, keys(1), GenerationSettings(repetition_penalty=1.5)).tolist() == [1]


def test_settings_of_a_published_file(tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(PUBLISHED))
    found = GenerationSettings.from_hf(path, max_new_tokens=9)
    assert found == GenerationSettings(9, 0.000001, 50, 1.0, 1.05, (151645, 151643), 151643)
    assert GenerationSettings.from_hf({"eos_token_id": 5, "temperature": 0.7}) == GenerationSettings(
        top_k=50, stop_tokens=(5,), pad_token=5
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": "many"}, "top_k is 'many'. Input should be a valid integer."),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"eos_token_id": ["<eos>"]}, "eos_token_id"),
    ],
)
def test_wrong_settings_name_the_key(values, message):
    with pytest.raises(InputError, match=message):
        GenerationSettings.from_hf(values)
