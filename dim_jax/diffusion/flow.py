"""Flow matching: when (timesteps), where (interpolation) and what (velocity and its loss).

t = 0 is data, t = 1 noise; x_sigma = (1 - sigma) data + sigma noise; velocity = noise - data. Rectified flow (arXiv 2209.03003) with
the logit-normal draw and the shift of Stable Diffusion 3 (arXiv 2403.03206), as SANA trains (arXiv 2410.10629).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

NUM_TIMESTEPS = 1000
Draw = Literal["logit_normal", "uniform"]


def shift(s: Float[Array | np.ndarray, "*n"], flow_shift: float) -> Float[Array | np.ndarray, "*n"]:
    """Sigma of the unshifted s in [0, 1]: flow_shift * s / (1 + (flow_shift - 1) * s), more noise for flow_shift > 1."""
    return flow_shift * s / (1 + (flow_shift - 1) * s)


def published_times(flow_shift: float) -> tuple[Float[np.ndarray, "1000"], Int[np.ndarray, "1000"]]:
    """Sigma and the integer timestep that the model sees, for every training index.

    In float64 and in the order of operations of SANA's training code, because the timestep is truncated: one rounding more and
    750 becomes 749.
    """
    sigma = np.asarray(shift(1.0 - np.linspace(1.0, 1 / NUM_TIMESTEPS, NUM_TIMESTEPS), flow_shift))
    return sigma.astype(np.float32), (sigma * NUM_TIMESTEPS).astype(np.int32)


def model_timestep(sigma: Float[Array, "*b"], *, continuous: bool = False) -> Float[Array, "*b"]:
    """The timestep in [0, 1000] that the model embeds: truncated as Draw-In-Mind does, or continuous as diffusers does."""
    timestep = sigma * NUM_TIMESTEPS
    return timestep if continuous else jnp.floor(timestep)


def draw(key: PRNGKeyArray, shape: tuple[int, ...], distribution: Draw = "logit_normal", std: float = 1.0) -> Float[Array, "..."]:
    """Random s in [0, 1): the logistic of a normal draw with mean 0 and standard deviation `std`, or uniform.

    Stable Diffusion 3 (arXiv 2403.03206, section 3.1) draws with a mean m too. It is a shift here: the logit of shift(s, e^m) is that of s
    plus m.
    """
    if distribution == "uniform":
        return jax.random.uniform(key, shape)
    return jax.nn.sigmoid(std * jax.random.normal(key, shape))


class NoiseDraws(NamedTuple):
    """All that is random in a training step: noise and unshifted time of each row, and which rows lose their condition and source."""

    noise: Float[Array, "b h w c"]
    s: Float[Array, " b"]
    drop_condition: Bool[Array, " b"]
    drop_source: Bool[Array, " b"]


def draw_noise(
    key: PRNGKeyArray, shape: tuple[int, ...], distribution: Draw, *, condition_dropout: float, source_dropout: float, std: float = 1.0
) -> NoiseDraws:
    """Draws for latents of `shape` (b h w c). What a row gets follows from the key and its place among the b rows, however they are
    spread over devices; the two dropouts are independent of each other, and neither moves another draw.
    """
    noise_key, time_key, drop_key = jax.random.split(key, 3)
    rows = shape[:1]
    return NoiseDraws(
        jax.random.normal(noise_key, shape),
        draw(time_key, rows, distribution, std),
        jax.random.bernoulli(drop_key, condition_dropout, rows),
        jax.random.bernoulli(jax.random.fold_in(drop_key, 1), source_dropout, rows),
    )


def training_times(s: Float[Array, " b"], flow_shift: float, *, continuous: bool = False) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Sigma and model timestep of drawn s: through the table of 1000 indices as published, or without it (`continuous`)."""
    if continuous:
        sigma = jnp.asarray(shift(s, flow_shift))
        return sigma, model_timestep(sigma, continuous=True)
    sigma, timestep = published_times(flow_shift)
    index = jnp.minimum((s * NUM_TIMESTEPS).astype(jnp.int32), NUM_TIMESTEPS - 1)
    return jnp.asarray(sigma)[index], jnp.asarray(timestep)[index].astype(jnp.float32)


def interpolate(clean: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], sigma: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Noisy latents (1 - sigma) clean + sigma noise."""
    sigma = sigma[:, None, None, None]
    return (1 - sigma) * clean + sigma * noise


def loss(velocity: Float[Array, "b h w c"], clean: Float[Array, "b h w c"], noise: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Mean squared error of each sample's velocity against noise - clean, float32."""
    error = velocity.astype(jnp.float32) - (noise - clean).astype(jnp.float32)
    return jnp.mean(error**2, (1, 2, 3))


def contrast(velocity: Float[Array, "b h w c"], clean: Float[Array, "b h w c"], noise: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Mean squared distance of each sample's velocity to the noise - clean of the sample before it, float32; the first one's is the last.

    Contrastive flow matching (arXiv 2506.05350) subtracts a multiple of it from the loss, so that velocities of other conditions differ.
    Samples are neighbours in the whole batch, however devices share it: each sends a row to the next, and the result is that of one.
    """
    return loss(velocity, jnp.roll(clean, 1, 0), jnp.roll(noise, 1, 0))
