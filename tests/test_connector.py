"""Choosing the user turn, padding it, projecting it."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from dim_jax.models.connector import Connector, select_user_turn


@st.composite
def turns(draw) -> tuple[np.ndarray, int]:
    """Which of some tokens belong to the user turn (any pattern), and a length shorter or longer than them."""
    b, t = 2, draw(st.sampled_from([1, 6]))  # few shapes, for each is compiled
    rows = draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=b, max_size=b))
    return np.array(rows), draw(st.sampled_from([1, 4, 9]))


@settings(max_examples=60)
@given(turns())
def test_order_is_kept_padding_is_zero_and_the_last_tokens_stay(case):
    user_turn, length = case
    b, t = user_turn.shape
    hidden = np.arange(1.0, b * t * 2 + 1, dtype=np.float32).reshape(b, t, 2)
    states, mask = select_user_turn(jnp.asarray(hidden), jnp.asarray(user_turn), length)
    assert states.shape == (b, length, 2)
    for row in range(b):
        kept = hidden[row][user_turn[row]][-length:]
        np.testing.assert_array_equal(states[row, : len(kept)], kept)
        np.testing.assert_array_equal(states[row, len(kept) :], 0)
        np.testing.assert_array_equal(mask[row], np.arange(length) < len(kept))


def test_tokens_outside_the_user_turn_are_ignored():
    user_turn = jnp.array([[False, True, True, False]])
    hidden = jnp.arange(8.0).reshape(1, 4, 2)
    other = jnp.where(user_turn[..., None], hidden, jnp.nan)
    for ours, expected in zip(select_user_turn(other, user_turn, 3), select_user_turn(hidden, user_turn, 3), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_longer_bucket_only_adds_padding():
    user_turn = jnp.array([[False, True, True, True], [True, False, False, False]])
    hidden = jnp.arange(16.0).reshape(2, 4, 2)
    (short, short_mask), (long, long_mask) = (select_user_turn(hidden, user_turn, length) for length in (3, 9))
    np.testing.assert_array_equal(long[:, :3], short)
    np.testing.assert_array_equal(long_mask[:, :3], short_mask)
    assert not long[:, 3:].any()
    assert not long_mask[:, 3:].any()


def test_connector_is_linear_exact_gelu_linear():
    connector = Connector(5, 7, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32) * 3
    y = x @ connector.fc1.kernel[...] + connector.fc1.bias[...]
    y = y * 0.5 * (1 + erf(y / 2**0.5))
    np.testing.assert_allclose(connector(jnp.asarray(x)), y @ connector.fc2.kernel[...] + connector.fc2.bias[...], rtol=1e-5, atol=1e-5)


def test_full_size():
    """2048 -> 2304 -> 2304, as published: 10 M parameters."""
    connector = nnx.eval_shape(lambda: Connector(2048, 2304, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in nnx.to_flat_state(nnx.state(connector, nnx.Param)).leaves) == 2048 * 2304 + 2304 + 2304 * 2304 + 2304
