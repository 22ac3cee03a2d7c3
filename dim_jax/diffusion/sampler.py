"""From noise to data along a velocity field, with classifier-free guidance.

Every solver is a table of coefficients (`diffusion.solvers`), and all share one loop; that of consistency models adds noise in each step.
What each step evaluates is a table as well (`evaluations`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dim_jax.diffusion import flow
from dim_jax.diffusion.solvers import SCM, SOLVERS, trigflow_sigmas
from dim_jax.errors import InputError

Velocity = Callable[[Float[Array, "b h w c"], Float[Array, ""]], Float[Array, "b h w c"]]
StepCallback = Callable[[Int[np.ndarray, ""], Float[np.ndarray, "b h w c"]], None]


def sigmas(num_steps: int, flow_shift: float) -> Float[np.ndarray, " {num_steps}+1"]:
    """The noise levels from nearly 1 (0.9997 at shift 3) to 0, float32; the spacing of SANA's sampler ("time_uniform_flow").

    Bit for bit as torch.linspace spaces them (a float32 step, counted from both ends): at 1 - sigma = 3e-4 the last bit counts.

    Raises:
        InputError: no step, or a shift that is not positive.
    """
    if num_steps < 1 or flow_shift <= 0:
        raise InputError(f"num_steps = {num_steps} and flow_shift = {flow_shift}: steps are at least 1 and the shift is positive.")
    one, last, shift, more = np.float32(1), np.float32(1 / flow.NUM_TIMESTEPS), np.float32(flow_shift), np.float32(flow_shift - 1)
    step, index = float((last - one) / np.float32(num_steps)), np.arange(num_steps + 1)
    alpha = np.where(index < (num_steps + 1) // 2, 1 + step * index, float(last) - step * (num_steps - index))
    s = one - alpha.astype(np.float32)
    return (shift * s / (one + more * s))[::-1]


GUIDED, CONDITIONAL, CACHED = range(3)


def evaluations(num_steps: int, *, guided: bool, start: float, stop: float, cache_interval: int) -> Int[np.ndarray, " steps"]:
    """What each step evaluates: all branches of guidance (`GUIDED`), the conditional one (`CONDITIONAL`), or nothing (`CACHED`).

    Guidance is on from the fraction `start` of the steps to `stop` (arXiv 2404.07724 limits it to a middle interval). Of the steps after
    the first fifth, where the velocity changes fast, one in `cache_interval` is evaluated, and the last one always.
    """
    step = np.arange(num_steps)
    table = np.where(guided & (start * num_steps <= step) & (step < stop * num_steps), GUIDED, CONDITIONAL)
    first = math.ceil(num_steps / 5)
    return np.where((step < first) | ((step - first) % cache_interval == 0) | (step == num_steps - 1), table, CACHED)


def noise(seeds: Int[Array | np.ndarray, " b"], shape: tuple[int, int, int]) -> Float[Array, "b h w c"]:
    """Standard normal latents, each drawn from its own seed alone, so that a picture does not depend on its batch."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(jnp.asarray(seeds))


class State(NamedTuple):
    """The sampler between two steps: the latents, the data and the velocity that the step before predicted, and the seeds of noise that is
    yet to be drawn."""

    latents: Float[Array, "b h w c"]
    data: Float[Array, "b h w c"]
    velocity: Float[Array, "b h w c"]
    seeds: Int[Array, " b"]

    @classmethod
    def start(cls, noise: Float[Array, "b h w c"], seeds: Int[Array | np.ndarray, " b"] | None = None) -> "State":
        """Before the first step, which needs no prediction; without `seeds` they are 0."""
        seeds = jnp.zeros(len(noise), jnp.int32) if seeds is None else jnp.asarray(seeds)
        return cls(noise, jnp.zeros_like(noise), jnp.zeros_like(noise), seeds)


def fresh_noise(seeds: Int[Array, " b"], step: Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """Standard normal latents that a step adds, each drawn from its own seed and the number of the step."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.fold_in(jax.random.key(seed), step + 1), shape))(seeds)


class Known(NamedTuple):
    """Latents that are known in part, such as those of a source outside of a mask (RePaint, arXiv 2201.09865; Blended Latent Diffusion,
    arXiv 2206.02779).

    Outside of `mask`, the latents before each step are (1 - sigma) known + sigma noise, with the noise that the sampler began with, so
    the network fits what it paints to them; and after the last step they are the known ones, to the bit.
    """

    latents: Float[Array, "b h w c"]
    mask: Bool[Array, "b h w"]

    def start(self, noise: Float[Array, "b h w c"], sigma: Float[Array, ""]) -> Float[Array, "b h w c"]:
        """The latents before the first step."""
        return jnp.where(self.mask[..., None], noise, (1 - sigma) * self.latents + sigma * noise)

    def keep(self, data: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Predicted data, where they are not known. A solver is linear in noise and data: from known data it steps along their path."""
        return jnp.where(self.mask[..., None], data, self.latents)


def sample(velocity: Velocity, noise: Float[Array, "b h w c"], *, num_steps: int = 30, **options: Any) -> Float[Array, "b h w c"]:
    """Latents at sigma = 0, after all steps. Options and errors as in `advance`."""
    return advance(velocity, State.start(noise), 0, num_steps, num_steps=num_steps, **options).latents


def advance(
    velocity: Velocity,
    state: State,
    first: Int[Array, ""] | int,
    count: int,
    *,
    num_steps: int = 30,
    guidance_scale: Float[Array, ""] | float | None = None,
    image_guidance_scale: Float[Array, ""] | float | None = None,
    guidance_start: float = 0.0,
    guidance_stop: float = 1.0,
    cache_interval: int = 1,
    flow_shift: float = 3.0,
    solver: str = "dpm++2m",
    known: Known | None = None,
    callback: StepCallback | None = None,
) -> State:
    """The state after `count` more of the `num_steps` steps, of which `first` are done: a loop over steps on the host takes one at a time.
    `callback(step, latents)` sees the latents before each step, in order. With `known`, the sampler paints inside of its mask alone.

    Without guidance, and in steps outside of [`guidance_start`, `guidance_stop`), fractions of all steps, `velocity` is called on the b
    latents. With it, it is called once on 2 b latents, of each row an unconditional and a conditional branch in turn, and
    u + guidance_scale (c - u) guides (classifier-free guidance, arXiv 2207.12598). With an image guidance scale as well, it is called
    once on 3 b latents, of each row unconditional without a source, unconditional with it, and conditional, and
    u + image_guidance_scale (i - u) + guidance_scale (c - i) guides (InstructPix2Pix, arXiv 2211.09800, equation 3).
    A row's branches are neighbours so that they are on one device where rows are spread over several.

    The data are recovered through the guided noise, (x - sigma noise) / (1 - sigma) with noise = x + (1 - sigma) velocity, as the
    published sampler does. x - sigma velocity is the same in real numbers, but at sigma = 0.9997 float32 rounds the two 1e-4 apart.
    "scm", the sampler of consistency models such as SANA-Sprint (arXiv 2503.09641), starts at sigma = 1 and takes the velocity; it has
    its own noise levels, and each step adds fresh noise to the predicted data.

    With a `cache_interval` above 1 some steps take the guided velocity of the step before instead of evaluating one (`evaluations`).

    Raises:
        InputError: no step, or a shift that is not positive.
    """
    consistency = solver == SCM
    sigma = trigflow_sigmas(num_steps) if consistency else sigmas(num_steps, flow_shift)
    scales = [scale for scale in (image_guidance_scale, guidance_scale) if scale is not None]

    def predict(velocity: Array, x: Array, sigma: Array) -> Array:
        return velocity if consistency else (1 - sigma) * velocity + x

    def evaluated(scales: Sequence[Array | float], x: Array, sigma: Array, last: Array) -> Array:
        copies = jnp.repeat(x, 1 + len(scales), axis=0)
        # From the branch that knows least to the one that knows most: each scale multiplies what the next one adds.
        predicted = predict(velocity(copies, sigma), copies, sigma)
        guided, *branches = jnp.unstack(predicted.reshape(len(x), 1 + len(scales), *x.shape[1:]), axis=1)
        previous = guided
        for scale, branch in zip(scales, branches, strict=True):
            guided, previous = guided + scale * (branch - previous), branch
        return guided

    def cached(x: Array, sigma: Array, last: Array) -> Array:
        return predict(last, x, sigma)

    # What no step does is not compiled; where all do the same, there is nothing to choose.
    options = {"guided": bool(scales), "start": guidance_start, "stop": guidance_stop, "cache_interval": cache_interval}
    kinds, kind = np.unique(evaluations(num_steps, **options), return_inverse=True)
    predictors = [(partial(evaluated, scales), partial(evaluated, ()), cached)[kind] for kind in kinds]

    def step(state: State, now: tuple[Array, Array, Array, Array]) -> tuple[State, None]:
        x, previous, last, seeds = state
        index, kind, sigma, (a, b, c, fresh) = now
        if known is not None:
            x = jnp.where(index == 0, known.start(x, sigma), x)
        if callback is not None:
            jax.debug.callback(callback, index, x, ordered=True)
        prediction = jax.lax.switch(kind, predictors, x, sigma, last)
        data = x - sigma * prediction if consistency else (x - sigma * prediction) / (1 - sigma)
        if known is not None:
            data = known.keep(data)
        if consistency:
            return State(b * data + fresh * fresh_noise(seeds, index, x.shape[1:]), data, prediction, seeds), None
        return State(a * x + b * data + c * previous, data, (prediction - x) / (1 - sigma), seeds), None

    if consistency:
        table = np.stack([0 * sigma[1:], 1 - sigma[1:], 0 * sigma[1:], sigma[1:]], 1)
    else:
        table = np.pad(SOLVERS[solver](sigma.astype(np.float64)).astype(np.float32), ((0, 0), (0, 1)))
    steps = (jnp.arange(num_steps), jnp.asarray(kind), jnp.asarray(sigma[:-1]), jnp.asarray(table))
    steps = jax.tree.map(lambda values: jax.lax.dynamic_slice_in_dim(values, first, count), steps)
    return jax.lax.scan(step, state, steps)[0]
