"""When, where and what flow matching trains: the published table of times, the draws, the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dim_jax.diffusion import flow


@pytest.mark.parametrize("flow_shift", [1.0, 3.0, 5.0])
def test_published_times_are_those_of_the_training_code(flow_shift):
    """Its float64 formula, and the cast to integers that torch makes of it."""
    sigma = 1.0 - np.linspace(1.0, 1 / 1000, 1000)
    sigma = flow_shift * sigma / (1 + (flow_shift - 1) * sigma)
    ours, timestep = flow.published_times(flow_shift)
    np.testing.assert_array_equal(ours, sigma.astype(np.float32))
    np.testing.assert_array_equal(timestep, torch.tensor((sigma * 1000).tolist(), dtype=torch.int64).numpy())
    assert ours[0] == 0
    assert np.all(np.diff(ours) > 0)


@pytest.mark.parametrize("index", [0, 100, 125, 250, 400, 500, 625, 700, 750, 999])
def test_every_index_sees_its_own_sigma_and_integer_timestep(index):
    """At shift 3 many indices fall on whole timesteps, where the last bit decides: 250 stays 500, 700 falls from 875 to 874."""
    sigma, timestep = flow.training_times(jnp.array([(index + 0.5) / 1000]), 3.0)
    exact = 3 * index / (1000 + 2 * index)
    assert abs(sigma[0] - exact) < 1e-7
    assert int(timestep[0]) in {int(np.floor(1000 * exact)), int(np.ceil(1000 * exact)) - 1}
    assert timestep[0] == flow.published_times(3.0)[1][index]


def test_timestep_index_is_clamped_near_one():
    sigma, timestep = flow.training_times(jnp.array([1.0, 0.0]), 3.0)
    np.testing.assert_array_equal(timestep, [999, 0])
    assert sigma[0] < 1


def test_continuous_times():
    s = jnp.array([0.0, 0.25, 0.5])
    sigma, timestep = flow.training_times(s, 3.0, continuous=True)
    np.testing.assert_allclose(sigma, [0, 0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose(timestep, [0, 500, 750], rtol=1e-6)


def test_model_timestep_is_truncated_unless_continuous():
    np.testing.assert_array_equal(flow.model_timestep(jnp.array([0.99967, 0.5, 0.0])), [999, 500, 0])
    np.testing.assert_allclose(flow.model_timestep(jnp.array([0.99967]), continuous=True), [999.67], rtol=1e-6)


def test_flow_shift_fixes_endpoints_and_one_is_identity():
    s = np.linspace(0, 1, 11)
    np.testing.assert_array_equal(flow.shift(s, 1.0), s)
    np.testing.assert_allclose(flow.shift(s, 3.0)[[0, -1]], [0, 1])
    np.testing.assert_allclose(flow.shift(flow.shift(s, 3.0), 1 / 3), s, atol=1e-15)


def test_draws_have_their_distributions():
    """20,000 of each: the logit of the one is standard normal, the other uniform (errors of the means: 0.007, 0.002)."""
    key = jax.random.key(0)
    s = flow.draw(key, (20_000,))
    logit = np.log(s) - np.log1p(-s)
    assert abs(logit.mean()) < 0.03
    assert abs(logit.std() - 1) < 0.02
    assert abs(np.mean((s > 0.2689) & (s < 0.7311)) - 0.6827) < 0.015  # one standard deviation
    uniform = flow.draw(key, (20_000,), "uniform")
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(uniform.var() - 1 / 12) < 0.003
    narrow = flow.draw(key, (20_000,), std=0.5)
    np.testing.assert_allclose(np.log(narrow) - np.log1p(-narrow), logit / 2, atol=1e-3)
    for drawn in (s, uniform, narrow):
        assert drawn.min() >= 0
        assert drawn.max() < 1


ROWS = (20_000, 1, 1, 1)
SHARES = {"condition_dropout": 0.1, "source_dropout": 0.3}


def test_dropouts_have_their_shares_and_are_independent():
    """Of condition alone, source alone, both and neither among 20,000 rows: expected are products (errors of the shares: 0.003)."""
    drawn = flow.draw_noise(jax.random.key(1), ROWS, "uniform", **SHARES)
    for condition, source, share in ((True, False, 0.07), (False, True, 0.27), (True, True, 0.03), (False, False, 0.63)):
        assert abs(np.mean((drawn.drop_condition == condition) & (drawn.drop_source == source)) - share) < 0.012


def test_noise_streams_are_independent():
    """A run with source dropout has the noise, times and dropped conditions of one without, which are those of three keys."""
    key = jax.random.key(1)
    drawn, other = (flow.draw_noise(key, ROWS, "logit_normal", **SHARES | {"source_dropout": share}) for share in (0.3, 0.0))
    assert not other.drop_source.any()
    for one, same in zip(drawn[:3], other[:3], strict=True):
        np.testing.assert_array_equal(one, same)
    noise, time, dropped = jax.random.split(key, 3)
    np.testing.assert_array_equal(other.noise, jax.random.normal(noise, ROWS))
    np.testing.assert_array_equal(other.s, flow.draw(time, ROWS[:1]))
    np.testing.assert_array_equal(other.drop_condition, jax.random.bernoulli(dropped, 0.1, ROWS[:1]))


def test_interpolation_runs_from_data_to_noise_and_its_slope_is_the_velocity():
    clean, noise = jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 5))
    np.testing.assert_array_equal(flow.interpolate(clean, noise, jnp.zeros(3)), clean)
    np.testing.assert_array_equal(flow.interpolate(clean, noise, jnp.ones(3)), noise)
    sigma, step = jnp.array([0.1, 0.5, 0.7]), 0.125
    slope = (flow.interpolate(clean, noise, sigma + step) - flow.interpolate(clean, noise, sigma)) / step
    np.testing.assert_allclose(slope, noise - clean, atol=1e-5)


def test_loss_is_zero_for_the_right_velocity_and_one_a_sample():
    clean, noise = jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 5))
    np.testing.assert_array_equal(flow.loss(noise - clean, clean, noise), jnp.zeros(3))
    off = jnp.array([0.0, 1.0, 2.0])[:, None, None, None]
    np.testing.assert_allclose(flow.loss(noise - clean + off, clean, noise), [0, 1, 4], rtol=1e-5)


def test_contrast_is_the_distance_to_the_target_of_the_sample_before():
    clean, noise, velocity = np.asarray(jax.random.normal(jax.random.key(0), (3, 4, 2, 3, 5)))
    expected = [np.mean((velocity[i] - (noise[i - 1] - clean[i - 1])) ** 2) for i in range(4)]
    np.testing.assert_allclose(flow.contrast(*map(jnp.asarray, (velocity, clean, noise))), expected, rtol=1e-5)


def test_loss_of_half_precision_is_float32():
    half = jnp.zeros((1, 2, 2, 3), jnp.bfloat16)
    clean = jnp.full((1, 2, 2, 3), 1.001)
    assert flow.loss(half, clean, jnp.zeros_like(clean)).dtype == jnp.float32
