"""Policies: velocities over a step, and where they lead."""

import jax.numpy as jnp
import numpy as np
import pytest

from dim_jax.diffusion import policy


@pytest.mark.parametrize("velocities", [1, 2, 5])
def test_a_policy_leads_where_many_substeps_lead(velocities):
    """Midpoints of its velocity, from the beginning of the step to each time; at the grid's times it is the grid's velocity."""
    grid, count = np.random.default_rng(velocities).normal(size=velocities), 400
    midpoints, ends = (np.arange(count) + 0.5) / count, np.arange(count + 1) / count
    velocity = policy.weights(jnp.asarray(midpoints), velocities) @ grid
    path = policy.path_weights(jnp.asarray(ends), velocities) @ grid
    np.testing.assert_allclose(np.concatenate([[0], np.cumsum(velocity) / count]), path, atol=2e-5)
    at_grid = policy.weights(jnp.linspace(0, 1, velocities), velocities) @ grid
    np.testing.assert_allclose(at_grid, grid, rtol=1e-5)
    np.testing.assert_allclose(policy.mean_weights(velocities) @ grid, path[-1], rtol=1e-5)
    np.testing.assert_allclose(policy.mean_weights(velocities).sum(), 1, rtol=1e-6)
