"""The samplers on velocities with known answers: spacing, order of convergence, guidance, seeds, callbacks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dim_jax.diffusion import sampler, solvers
from dim_jax.errors import InputError

NOISE = sampler.noise(np.arange(2), (2, 3, 4))


@pytest.mark.parametrize("flow_shift", [0.5, 1.0, 3.0, 4.7])
def test_sigmas_are_those_of_torch_to_the_bit(flow_shift):
    """The published sampler spaces 1 - s with torch.linspace from 1 to 1/1000, shifts, and runs backwards; every number of steps."""
    for num_steps in range(1, 101):
        s = 1 - torch.linspace(1.0, 1 / 1000, num_steps + 1)
        expected = (flow_shift * s / (1 + (flow_shift - 1) * s)).flip(0).numpy()
        ours = sampler.sigmas(num_steps, flow_shift)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, expected, err_msg=str(num_steps))
        assert ours[-1] == 0


@pytest.mark.parametrize("values", [(0, 3.0), (-1, 3.0), (5, 0.0), (5, -1.0)])
def test_impossible_schedules_are_refused(values):
    with pytest.raises(InputError, match="num_steps"):
        sampler.sigmas(*values)


def test_data_weights_of_every_step_add_up():
    """x' = a x + b data + c previous: for data = x and noise = 0 nothing but the level of noise may change."""
    sigma = sampler.sigmas(20, 3.0).astype(np.float64)
    for solver in solvers.SOLVERS.values():
        a, b, c = solver(sigma).T
        np.testing.assert_allclose(a + b + c, 1, atol=1e-6)
        np.testing.assert_allclose(a, sigma[1:] / sigma[:-1], atol=1e-7)
        assert c[0] == c[-1] == 0
    assert solvers.dpm_solver_2m(sigma)[:, 2].any()


def test_what_each_step_evaluates():
    """Guidance in an interval; one of three steps after the first fifth, and the last."""
    guided, conditional, cached = sampler.GUIDED, sampler.CONDITIONAL, sampler.CACHED
    table = sampler.evaluations(10, guided=True, start=0.2, stop=0.7, cache_interval=1)
    assert table.tolist() == [conditional] * 2 + [guided] * 5 + [conditional] * 3
    table = sampler.evaluations(10, guided=True, start=0.0, stop=1.0, cache_interval=3)
    assert table.tolist() == [guided] * 3 + [cached, cached, guided, cached, cached, guided, guided]
    assert set(sampler.evaluations(10, guided=False, start=0.0, stop=1.0, cache_interval=1)) == {conditional}


def test_sampler_step_follows_coefficient_table():
    """Euler adds up the velocities. This one is the number of latents it is called on, plus sigma: the sum shows each call."""
    num_steps, sigma = 10, sampler.sigmas(10, 1.0)

    def velocity(x, sigma):
        return jnp.full_like(x, len(x)) + sigma

    options = {"num_steps": num_steps, "guidance_scale": 3.0, "flow_shift": 1.0, "solver": "euler"}
    out = sampler.sample(velocity, NOISE, **options, guidance_start=0.2, guidance_stop=0.7, cache_interval=3)
    rows = np.where((np.arange(num_steps) >= 2) & (np.arange(num_steps) < 7), 2 * len(NOISE), len(NOISE))
    evaluated = np.array([0, 1, 2, 2, 2, 5, 5, 5, 8, 9])
    expected = NOISE + ((rows + sigma[:-1])[evaluated] * np.diff(sigma)).sum()
    np.testing.assert_allclose(out, expected, atol=1e-3)


@pytest.mark.parametrize("cache_interval", [1, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_a_straight_path_is_followed_exactly(num_steps, solver, cache_interval):
    """The velocity noise - data of one picture is constant: any number of steps ends at the picture."""
    data = jnp.asarray(np.random.default_rng(1).normal(size=NOISE.shape), jnp.float32)
    start = sampler.sigmas(num_steps, 3.0)[0]
    x = (1 - start) * data + start * NOISE
    out = sampler.sample(lambda x, sigma: NOISE - data, x, num_steps=num_steps, solver=solver, cache_interval=cache_interval)
    np.testing.assert_allclose(out, data, atol=2e-3)


def spread_of_gaussian_data(scale: float):
    """Velocity and solution where data are normal with deviation `scale`: x keeps its place within the spread of all x."""

    def variance(sigma):
        return (1 - sigma) ** 2 * scale**2 + sigma**2

    def velocity(x, sigma):
        return (sigma - (1 - sigma) * scale**2) * x / variance(sigma)

    return velocity, lambda x, start: x * scale / np.sqrt(variance(start))


@pytest.mark.parametrize(("solver", "low", "high"), [("euler", 1.8, 2.2), ("dpm++2m", 3, 4.5)])
def test_order_of_convergence(solver, low, high):
    """Twice the steps: half the error for Euler, near a quarter for DPM-Solver++ 2M, whose first and last steps are of first order."""
    velocity, solution = spread_of_gaussian_data(1.5)
    errors = []
    for num_steps in (20, 40, 80):
        exact = solution(np.asarray(NOISE, np.float64), float(sampler.sigmas(num_steps, 1.0)[0]))
        out = sampler.sample(velocity, NOISE, num_steps=num_steps, flow_shift=1.0, solver=solver)
        errors.append(float(np.abs(out - exact).max()))
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    assert all(low < ratio < high for ratio in ratios), (errors, ratios)


def counted(scales: list[float] | None = None):
    """A velocity that notes the number of rows of each call; of guided rows every other points to 1, the ones between to 3."""
    rows: list[int] = []

    def velocity(x, sigma):
        rows.append(len(x))
        target = jnp.where(jnp.arange(len(x)) % 2, 3.0, 1.0) if len(x) > 2 else jnp.full(len(x), 3.0)
        return (x - target[:, None, None, None]) / jnp.maximum(sigma, 1e-3)

    return velocity, rows


def test_without_guidance_one_branch_runs():
    velocity, rows = counted()
    out = sampler.sample(velocity, NOISE, num_steps=4)
    assert set(rows) == {2}
    np.testing.assert_allclose(out, 3, atol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 2.0, 7.5])
def test_guidance_goes_on_from_unconditional_through_conditional(scale):
    velocity, rows = counted()
    out = sampler.sample(velocity, NOISE, num_steps=4, guidance_scale=scale)
    assert set(rows) == {4}
    np.testing.assert_allclose(out, 1 + scale * 2, atol=2e-2)


def test_image_guidance_is_the_formula_of_instruct_pix2pix():
    """Equation 3, step by step in float64, on three branches that each bend the path another way."""
    pulls, (text, image) = np.array([0.3, -1.1, 2.0]), (4.0, 1.7)

    def velocity(x, sigma):
        pull = jnp.tile(jnp.asarray(pulls, jnp.float32), len(x) // 3)[:, None, None, None]
        return jnp.sin(x + pull) + sigma * pull

    sigma = sampler.sigmas(5, 3.0).astype(np.float64)
    x = np.asarray(NOISE, np.float64)
    for now, after in itertools.pairwise(sigma):
        nothing, source, both = (x + (1 - now) * (np.sin(x + pull) + now * pull) for pull in pulls)  # noise of each branch
        guided = nothing + image * (source - nothing) + text * (both - source)
        data = (x - now * guided) / (1 - now)
        x = after / now * x + (1 - after / now) * data
    run = partial(sampler.sample, velocity, NOISE, num_steps=5, solver="euler", guidance_scale=text)
    out = run(image_guidance_scale=image)
    np.testing.assert_allclose(out, x, rtol=1e-3, atol=2e-3)
    assert np.abs(run(image_guidance_scale=1.0) - x).max() > 0.1


def test_image_guidance_takes_three_evaluations_in_one_call():
    velocity, rows = counted()
    sampler.sample(velocity, NOISE, num_steps=4, guidance_scale=2.0, image_guidance_scale=1.5)
    assert set(rows) == {6}


def test_guidance_can_be_traced():
    """Every scale runs one compiled program."""
    velocity, rows = counted()
    run = jax.jit(lambda scale: sampler.sample(velocity, NOISE, num_steps=4, guidance_scale=scale))
    first = run(jnp.float32(2.0))
    traced = len(rows)
    np.testing.assert_allclose(run(jnp.float32(3.0)) - first, 2, atol=2e-2)
    assert len(rows) == traced


def test_noise_is_standard_and_each_row_its_own_seed():
    shape = (8, 6, 4)
    batch = sampler.noise(np.array([3, 7, 3, 2**31 - 1]), shape)
    np.testing.assert_array_equal(batch[0], batch[2])
    np.testing.assert_array_equal(sampler.noise(np.array([7]), shape)[0], batch[1])
    assert np.abs(batch[0] - batch[1]).max() > 0.1
    many = sampler.noise(np.arange(100), shape)
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03


def test_a_picture_does_not_depend_on_its_batch():
    """Through a velocity that mixes everything within a row."""
    velocity = jax.jit(lambda x, sigma: jnp.tanh(x + x.mean((1, 2, 3), keepdims=True)) + sigma)
    alone = sampler.sample(velocity, sampler.noise(np.array([5]), (4, 4, 4)), num_steps=5)
    among = sampler.sample(velocity, sampler.noise(np.array([9, 5, 1]), (4, 4, 4)), num_steps=5)
    np.testing.assert_allclose(alone[0], among[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_callback_sees_every_step_in_order(compiled):
    seen = []
    velocity, _ = spread_of_gaussian_data(0.5)
    run = lambda x: sampler.sample(velocity, x, num_steps=6, callback=lambda step, x: seen.append((int(step), np.asarray(x))))  # noqa: E731
    quiet = sampler.sample(velocity, NOISE, num_steps=6)
    out = (jax.jit(run) if compiled else run)(NOISE)
    jax.effects_barrier()
    assert [step for step, _ in seen] == list(range(6))
    np.testing.assert_array_equal(seen[0][1], NOISE)
    np.testing.assert_allclose(out, quiet, rtol=1e-6, atol=1e-6)
    assert all(x.shape == NOISE.shape for _, x in seen)


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_what_is_known_is_noised_to_every_level_and_kept_at_the_end(solver):
    """Of RePaint: outside of the mask (1 - sigma) known + sigma noise before each step; inside, the velocity sees it."""
    seen = {}
    clean, mask = sampler.noise(np.arange(5, 7), (2, 3, 4)), np.zeros((2, 2, 3), bool)
    mask[0, :, 1] = mask[1, 1] = True
    velocity = lambda x, sigma: jnp.tanh(x + x.mean((1, 2, 3), keepdims=True)) + sigma  # noqa: E731
    known = sampler.Known(jnp.asarray(clean), jnp.asarray(mask))
    options = {"num_steps": 6, "solver": solver, "cache_interval": 2, "guidance_scale": 2.0}
    callback = lambda step, x: seen.update({int(step): np.asarray(x)})  # noqa: E731
    out = np.asarray(sampler.sample(velocity, NOISE, known=known, callback=callback, **options))
    jax.effects_barrier()
    np.testing.assert_array_equal(out[~mask], np.asarray(clean)[~mask])
    for step, sigma in enumerate(sampler.sigmas(6, 3.0)[1:-1], 1):
        expected = (1 - sigma) * np.asarray(clean) + sigma * np.asarray(NOISE)
        np.testing.assert_allclose(seen[step][~mask], expected[~mask], rtol=1e-5, atol=1e-5)
    free = np.asarray(sampler.sample(velocity, NOISE, **options))
    assert np.abs(out - free)[mask].max() > 1e-3, "inside it is painted to fit"
    whole = sampler.Known(jnp.asarray(clean), jnp.ones_like(mask))
    np.testing.assert_array_equal(sampler.sample(velocity, NOISE, known=whole, **options), free)
    # One step at a time, as where a painting is watched.
    state = sampler.State.start(NOISE)
    for step in range(6):
        state = sampler.advance(velocity, state, jnp.int32(step), 1, known=known, **options)
    np.testing.assert_allclose(state.latents, out, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_one_step_at_a_time_ends_at_the_same_latents(solver):
    """Where guidance begins, the cache is used and the data are those of the step before."""
    velocity = jax.jit(lambda x, sigma: jnp.tanh(x) + sigma)
    options = {"num_steps": 7, "guidance_scale": 2.0, "guidance_start": 0.3, "cache_interval": 2, "solver": solver}
    state = sampler.State.start(NOISE)
    for step in range(7):
        state = sampler.advance(velocity, state, jnp.int32(step), 1, **options)
    np.testing.assert_allclose(state.latents, sampler.sample(velocity, NOISE, **options), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(state.latents, state.data)
