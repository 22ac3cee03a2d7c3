"""Distillation: a student paints with fewer evaluations of the network what a frozen teacher, a painter with guidance, paints.

"guidance" learns the teacher's guided velocity at any time, so that the student needs one branch in place of two. "steps" learns where the
teacher's guided velocity leads in each of a few steps of the sampler. Config: config.distill; page: docs/few_steps.md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dim_jax.config import Config
from dim_jax.diffusion import flow, policy, sampler
from dim_jax.models import layers
from dim_jax.models.connector import Connector
from dim_jax.models.sana import ConditionTokens, Remat, Sana
from dim_jax.training.losses import Features, Loss

Scales = tuple[float, float]
GuidedVelocity = Callable[[Float[Array, "r h w c"], Float[Array, " r"]], Float[Array, "r h w c"]]


def guidance_loss(
    connector: Connector,
    sana: Sana,
    teacher: Sana,
    features: Features,
    key: PRNGKeyArray,
    *,
    guidance_scales: Scales,
    shift: float,
    draw: flow.Draw,
    std: float = 1.0,
    remat: Remat = "none",
) -> Loss:
    """The squared error of the student's velocity against the teacher's guided one, u + w (c - u), at a random time.

    Guidance distillation (arXiv 2210.03142, stage one), of velocities. Each row's w is uniform in `guidance_scales`, and the student is
    given it as an input, unless it is always the same.
    """
    target, source = features.target, features.source
    noise_key, scale_key = jax.random.split(key)
    draws = flow.draw_noise(noise_key, target.shape, draw, condition_dropout=0.0, source_dropout=0.0, std=std)
    sigma, timestep = flow.training_times(draws.s, shift)
    latents = flow.interpolate(target, layers.shard_batch(draws.noise), sigma)
    scale = _draw_scales(scale_key, len(target), guidance_scales)
    condition = _condition(connector, features)
    expected = _guided(teacher, condition, features, scale)(latents, timestep)
    embedded = sana.embed_condition(condition, features.mask)
    velocity = sana(latents, timestep, embedded, source, guidance=_guidance_input(sana, scale), remat=remat)
    return jnp.mean((velocity - expected) ** 2), {}


def steps_loss(
    connector: Connector,
    sana: Sana,
    teacher: Sana,
    features: Features,
    key: PRNGKeyArray,
    *,
    guidance_scales: Scales,
    num_steps: int,
    flow_shift: float,
    times: int,
    remat: Remat = "none",
) -> Loss:
    """The squared error of the student's policies against the teacher's guided velocity, on the student's own way from noise to data.

    Imitation as in pi-Flow (arXiv 2510.14974): at the beginning of each of the sampler's `num_steps` steps the student predicts a policy
    (`diffusion.policy`); at `times` random times of the step, on the policy's own path and without a gradient through where that leads, its
    velocity is compared with the teacher's. The policy's end begins the next step. So a row passes through all steps, as in sampling, and
    the targets of the batch are not read. Guidance as in `guidance_loss`.
    """
    rows, source, velocities = len(features.target), features.source, sana.config.velocities
    noise_key, time_key, scale_key = jax.random.split(key, 3)
    scale = _draw_scales(scale_key, rows, guidance_scales)
    condition = _condition(connector, features)
    embedded = sana.embed_condition(condition, features.mask)
    guided = _guided(teacher, condition, features, scale, times)
    sigma = jnp.asarray(sampler.sigmas(num_steps, flow_shift))
    # A time of each part of the step, so that few cover it; of each row its times are neighbours.
    draws = (jnp.arange(times) + jax.random.uniform(time_key, (num_steps, rows, times))) / times

    def step(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        start, end, time = inputs
        timestep = jnp.full(rows, flow.model_timestep(start))
        predicted = sana(x, timestep, embedded, source, guidance=_guidance_input(sana, scale), remat=remat)
        grid = predicted.reshape(*x.shape[:3], velocities, x.shape[3])
        reached = x[:, None] + (end - start) * _sum(grid, policy.path_weights(time, velocities))
        reached = layers.shard_batch(jax.lax.stop_gradient(reached).reshape(-1, *x.shape[1:]))
        expected = guided(reached, flow.model_timestep(start + (end - start) * time).reshape(-1))
        velocity = _sum(grid, policy.weights(time, velocities))
        mean = jnp.einsum("bhwnc,n->bhwc", grid, policy.mean_weights(velocities), precision="highest")
        following = jax.lax.stop_gradient(x + (end - start) * mean)
        return following, jnp.mean((velocity - expected.reshape(velocity.shape)) ** 2)

    noise = layers.shard_batch(jax.random.normal(noise_key, features.target.shape))
    _, losses = jax.lax.scan(step, noise, (sigma[:-1], sigma[1:], draws))
    return losses.mean(), {"first_step": losses[0], "last_step": losses[-1]}


def distillation_loss(config: Config) -> Callable[[Any, Features, PRNGKeyArray], Loss]:
    """The loss of `config.distill.method`, of a model with a teacher."""
    options: dict[str, Any] = {"guidance_scales": tuple(config.distill.guidance_scales), "remat": config.model.remat}
    if config.distill.method == "steps":
        sample = config.sample
        function = steps_loss
        options |= {"num_steps": sample.num_steps, "flow_shift": sample.flow_shift, "times": config.distill.times}
    else:
        function = guidance_loss
        options |= {"shift": config.flow.shift, "draw": config.flow.draw, "std": config.flow.std}

    def loss(model: Any, features: Features, key: PRNGKeyArray) -> Loss:
        return function(model.connector, model.sana, model.teacher, features, key, **options)

    return loss


def _condition(connector: Connector, features: Features) -> Float[Array, "b t c"]:
    return jnp.where(features.mask[..., None], connector(features.hidden), 0)


def _draw_scales(key: PRNGKeyArray, rows: int, scales: Scales) -> Float[Array, " {rows}"]:
    return jax.random.uniform(key, (rows,), minval=scales[0], maxval=scales[1])


def _guidance_input(sana: Sana, scale: Float[Array, " b"]) -> Float[Array, " b"] | None:
    return scale if sana.config.guidance_embeds else None


def _guided(
    teacher: Sana, condition: Float[Array, "b t c"], features: Features, scale: Float[Array, " b"], times: int = 1
) -> GuidedVelocity:
    """The teacher's guided velocity of `times` latents of each row. These are neighbours, and so are a row's branches, so that they are on
    one device; a teacher that takes the scale as an input has one branch."""
    embeds, source = teacher.config.guidance_embeds, features.source
    everywhere = jnp.ones(len(condition), bool)
    tokens = condition if embeds else layers.interleave(teacher.drop_condition(condition, everywhere), condition)
    branches = len(tokens) // len(condition)
    embedded = teacher.embed_condition(tokens, features.mask.repeat(branches, 0))

    def repeat(x: Array, count: int) -> Array:
        return layers.shard_batch(x.repeat(count, 0))

    def branch_rows(x: Array) -> Array:
        """Rows (row, branch) as (row, time, branch)."""
        grouped = x.reshape(-1, 1, branches, *x.shape[1:])
        return layers.shard_batch(grouped.repeat(times, 1).reshape(-1, *x.shape[1:]))

    embedded = ConditionTokens(branch_rows(embedded.tokens), branch_rows(embedded.mask))
    sources = None if source is None else repeat(source, times * branches)
    scales = repeat(scale, times)

    def velocity(latents: Float[Array, "r h w c"], timestep: Float[Array, " r"]) -> Float[Array, "r h w c"]:
        result = teacher(repeat(latents, branches), repeat(timestep, branches), embedded, sources, guidance=scales if embeds else None)
        if not embeds:
            unconditional, conditional = jnp.unstack(result.reshape(-1, 2, *latents.shape[1:]), axis=1)
            result = unconditional + scales[:, None, None, None] * (conditional - unconditional)
        return jax.lax.stop_gradient(result)

    return velocity


def _sum(grid: Float[Array, "b h w n c"], weights: Float[Array, "b i n"]) -> Float[Array, "b i h w c"]:
    """Velocities of a policy at some times, or along its path to there."""
    return jnp.einsum("bhwnc,bin->bihwc", grid, weights, precision="highest")
