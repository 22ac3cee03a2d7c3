"""Policies: velocities over a whole step of a few-step sampler, from one evaluation of the network, as pi-Flow has them (arXiv 2510.14974).

A policy is the velocity at evenly spaced times of a step, its two ends among them, and between them a straight line. Then nothing needs
substeps: its path is known in closed form, and where it ends is one Euler step along a mean of the velocities with fixed weights
(`mean_weights`). pi-Flow's "DX" keeps the predicted data on such a grid instead. That has the same freedom, but its velocity
(x - data) / sigma weighs an error by 1 / sigma^2 in the last step, and its end is no fixed mean.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def weights(time: Float[Array, "*b"], velocities: int) -> Float[Array, "*b {velocities}"]:
    """What each velocity of the grid counts at `time` in [0, 1], from the beginning of the step to its end. They add up to 1."""
    if velocities == 1:
        return jnp.ones((*time.shape, 1))
    return 1 - jnp.abs(_distance(time, velocities))


def path_weights(time: Float[Array, "*b"], velocities: int) -> Float[Array, "*b {velocities}"]:
    """The integral of `weights` from 0 to `time`: at `time`, the policy has moved the latents by the step times their sum over the grid."""
    if velocities == 1:
        return time[..., None]
    area = _area(_distance(time, velocities)) - _area(_distance(jnp.zeros_like(time), velocities))
    return area / (velocities - 1)


def mean_weights(velocities: int) -> Float[Array, " {velocities}"]:
    """`path_weights` at the end of the step: those of the trapezoidal rule. They add up to 1."""
    return path_weights(jnp.ones(()), velocities)


def _distance(time: Float[Array, "*b"], velocities: int) -> Float[Array, "*b {velocities}"]:
    """From each time of the grid, in units of its spacing, at most 1."""
    return jnp.clip(time[..., None] * (velocities - 1) - jnp.arange(velocities), -1, 1)


def _area(distance: Float[Array, "..."]) -> Float[Array, "..."]:
    """Of a hat of width 2 and height 1, from -1 to `distance`."""
    return 0.5 + distance - 0.5 * distance * jnp.abs(distance)
