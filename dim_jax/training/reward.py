"""Learning from rewards: the painter moves towards the better of several pictures that it has painted of an edit, and away from the worse.

DiffusionNFT (arXiv 2509.16117), for edits as in Edit-R1 (arXiv 2510.16888). The policy that paints is the run's average of its parameters.
Config: config.reward; page: docs/reward.md. What gives the rewards is in training/rollout.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from dim_jax.config import Config
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.diffusion import flow, sampler
from dim_jax.errors import check
from dim_jax.models import layers
from dim_jax.models.connector import Connector
from dim_jax.models.sana import Remat, Sana
from dim_jax.training.losses import Features, Loss
from dim_jax.training.student import check_one_branch
from dim_jax.weights.model_config import TEACHER

METHODS = ("none", "target", "judge")
LEARN = ("connector", "sana")  # the parts that may; the others read pictures or make them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PaintedBatch:
    """Edits with k pictures of each, as n = k * times points on their ways from noise; a picture's points are neighbours.

    Attributes:
        hidden, mask, source: as in `Features`.
        sigma, timestep: of a point.
        latents: (1 - sigma) picture + sigma noise.
        target: the velocity there, noise - picture.
        old: the velocity that the policy which painted predicts there.
        reference: what the teacher predicts there; None: there is none.
        rewards: of the pictures, NaN where one got none; None: not yet known.
    """

    hidden: Float[Any, "b t d"]
    mask: Bool[Any, "b t"]
    source: Float[Any, "b h w c"]
    sigma: Float[Any, "b n"]
    timestep: Float[Any, "b n"]
    latents: Float[Any, "b n h w c"]
    target: Float[Any, "b n h w c"]
    old: Float[Any, "b n h w c"]
    reference: Float[Any, "b n h w c"] | None
    rewards: Float[Any, "b k"] | None = None


def paint_groups(
    connector: Connector,
    sana: Sana,
    decode: Callable[[Array], Array],
    teacher: Sana | None,
    features: Features,
    key: PRNGKeyArray,
    *,
    pictures: int,
    times: int,
    num_steps: int,
    flow_shift: float,
    shift: float,
    draw: flow.Draw,
    std: float = 1.0,
) -> tuple[PaintedBatch, UInt8[Array, "b k h w 3"]]:
    """`pictures` of each edit, painted without guidance from noise of their own, and each at `times` random times of training.

    `decode` makes pixels in [-1, 1] of latents. All edits are painted at once, one picture of each after the other, so that keys and values
    of a condition are there once for a row.
    """
    assert features.source is not None  # `check_reward`
    rows, shape = features.target.shape[0], features.target.shape[1:]
    paint_key, draw_key = jax.random.split(key)
    tokens = _condition(connector, features.hidden, features.mask)

    def velocities(model: Sana) -> Callable[[Array, Array], Array]:
        condition = model.encode_condition(tokens, features.mask)
        return lambda x, timestep: model(x, timestep, condition, features.source)

    policy = velocities(sana)

    def paint(noise: Array) -> tuple[Array, Array]:
        latents = sampler.sample(
            lambda x, sigma: policy(x, jnp.full(rows, flow.model_timestep(sigma))), noise, num_steps=num_steps, flow_shift=flow_shift
        )
        unit = (jnp.clip(decode(latents).astype(jnp.float32), -1, 1) + 1) / 2
        return latents, (unit * 255 + 0.5).astype(jnp.uint8)  # rounded as `to_picture` does

    painted, pixels = map_axis_1(paint, layers.shard_batch(jax.random.normal(paint_key, (rows, pictures, *shape))))
    points = (rows, pictures * times)
    draws = flow.draw_noise(draw_key, (points[0] * points[1], *shape), draw, condition_dropout=0.0, source_dropout=0.0, std=std)
    sigma, timestep = (x.reshape(points) for x in flow.training_times(draws.s, shift))
    noise, clean = layers.shard_batch(draws.noise.reshape(*points, *shape)), painted.repeat(times, 1)
    latents = clean + sigma[..., None, None, None] * (noise - clean)

    def at_points(model: Callable[[Array, Array], Array]) -> Array:
        return map_axis_1(lambda inputs: model(*inputs), (latents, timestep))

    reference = None if teacher is None else at_points(velocities(teacher))
    batch = PaintedBatch(
        features.hidden, features.mask, features.source, sigma, timestep, latents, noise - clean, at_points(policy), reference
    )  # fmt: skip
    return batch, pixels


def optimality(rewards: Float[Array, "b k"], clip: float) -> Float[Array, "b k"]:
    """How likely each picture is one of the good ones of its group, in [0, 1]: 1/2 + 1/2 clip((R - mean) / (`clip` std), -1, 1).

    DiffusionNFT's, with so many standard deviations of the group for its Z. A group without a spread, and a picture without a reward, have
    1/2: they hold the policy where it is.
    """
    mean = jnp.nanmean(rewards, 1, keepdims=True)
    std = jnp.nanstd(rewards, 1, keepdims=True)
    tied = jnp.nanmax(rewards, 1, keepdims=True) == jnp.nanmin(rewards, 1, keepdims=True)
    advantage = (rewards - mean) / (clip * jnp.where(tied, 1.0, std))
    return jnp.where(tied | jnp.isnan(advantage), 0.5, 0.5 + 0.5 * jnp.clip(advantage, -1, 1))


def policy_loss(
    velocity: Float[Array, "b h w c"],
    old: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    sigma: Float[Array, " b"],
    r: Float[Array, " b"],
    beta: float,
) -> Float[Array, " b"]:
    """r E(v+) + (1 - r) E(v-), of the implicit positive policy v+ = (1 - beta) old + beta v and the negative one (1 + beta) old - beta v.

    The objective of DiffusionNFT (arXiv 2509.16117). E is its self-normalised error of the predicted picture: that is sigma (v - target)
    off, so its mean square over its mean magnitude is sigma mean(e^2) / mean(|e|), with e = v - target and no gradient through the latter.
    """

    def error(predicted: Array) -> Array:
        e = predicted - target
        size = jax.lax.stop_gradient(jnp.mean(jnp.abs(e), (1, 2, 3)))
        return sigma * jnp.mean(e**2, (1, 2, 3)) / jnp.maximum(size, 1e-5)

    positive, negative = (1 - beta) * old + beta * velocity, (1 + beta) * old - beta * velocity
    return r * error(positive) + (1 - r) * error(negative)


def reward_loss(
    connector: Connector, sana: Sana, batch: PaintedBatch, *, beta: float, clip: float, anchor: float, remat: Remat = "none"
) -> Loss:
    """`policy_loss` at all points of all pictures, and `anchor` times the squared distance from the teacher's velocity.

    Metrics: `reward`, the mean; `reward_spread`, the mean over edits of their pictures' standard deviation; `reward_ties`, the share of
    edits whose pictures are all worth the same, which teach nothing.
    """
    assert batch.rewards is not None
    condition = sana.encode_condition(_condition(connector, batch.hidden, batch.mask), batch.mask)
    r = optimality(batch.rewards, clip).repeat(batch.sigma.shape[1] // batch.rewards.shape[1], 1)

    def point(inputs: tuple[Array, ...]) -> Array:
        latents, timestep, sigma, target, old, r, *reference = inputs
        velocity = sana(latents, timestep, condition, batch.source, remat=remat)
        loss = policy_loss(velocity, old, target, sigma, r, beta)
        return loss + sum(anchor * jnp.mean((velocity - there) ** 2, (1, 2, 3)) for there in reference)

    reference = () if batch.reference is None else (batch.reference,)
    losses = map_axis_1(point, (batch.latents, batch.timestep, batch.sigma, batch.target, batch.old, r, *reference))
    most, least = jnp.nanmax(batch.rewards, 1), jnp.nanmin(batch.rewards, 1)
    metrics = {
        "reward": jnp.nanmean(batch.rewards), "reward_spread": jnp.nanmean(jnp.nanstd(batch.rewards, 1)),
        "reward_ties": jnp.mean(~(most > least)),
    }  # fmt: skip
    return losses.mean(), metrics


def map_axis_1(function: Callable[[Any], Any], arrays: Any) -> Any:
    """`function` of all rows at once, for one index of axis 1 after the other."""
    swapped = jax.lax.map(function, jax.tree.map(lambda x: x.swapaxes(0, 1), arrays))
    return jax.tree.map(lambda x: layers.shard_batch(x.swapaxes(0, 1)), swapped)


def target_rewards(
    target: UInt8[np.ndarray, "b h w 3"], source: UInt8[np.ndarray, "b h w 3"], painted: UInt8[np.ndarray, "b k h w 3"]
) -> Float[np.ndarray, "b k"]:
    """How near pictures are to their target where it differs from the source, and how unchanged they are where it does not, in (0, 1].

    D / (D + E), where D is the mean squared distance of source and target where they differ, and E that of the picture from the target
    there, plus the same where they agree: places count by themselves, however small. 1 is the target, 1/2 the source as it is.
    """
    target, source, painted = (x.astype(np.float32) / 255 for x in (target, source, painted))
    changed = (target != source).any(-1)
    error = np.mean((painted - target[:, None]) ** 2, -1)

    def mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return (values * where).sum((-2, -1)) / np.maximum(where.sum((-2, -1)), 1)

    distance = np.maximum(mean_where(np.mean((target - source) ** 2, -1), changed), 1e-4)[:, None]  # where none differs, too
    off = mean_where(error, changed[:, None]) + mean_where(error, ~changed[:, None])
    return (distance / (distance + off)).astype(np.float32)


def check_reward(config: Config) -> None:
    """Refuse a `config.reward` that cannot be, or with which other keys do not fit.

    Raises:
        InputError: says which, and what to do.
    """
    reward = config.reward
    if reward.method == "none":
        return
    check(config.objective == "painter", f'config.reward.method is "{reward.method}": only a painter learns from rewards. Set "none".')
    check(config.distill.method == "none", "config.distill.method and config.reward.method: a run has one of them. Set the other to none.")
    learn = tuple(config.trainable)
    check({*learn} <= {*LEARN}, f"config.trainable is {learn}: of a painter, {' and '.join(LEARN)} learn from rewards. Freeze the others.")
    kinds = sorted(name for name, weight in config.data.mix.items() if weight and name.partition(":")[0] != "edit")
    check(not kinds, f"config.data.mix has {', '.join(kinds)}: rewards are of edits. Set the weights of all others to 0.")
    check_one_branch(config, "the policies of a reward paint in one branch")
    scale = config.sample.guidance_scale
    check(scale == 1, f"config.sample.guidance_scale is {scale}: the policies of a reward paint in one branch. Set it to 1.")
    check(reward.pictures > 1, f"config.reward.pictures is {reward.pictures}: pictures of an edit are compared. Take at least 2.")
    check(
        not reward.anchor or config.data.source == SYNTHETIC or config.init[TEACHER],
        f"config.init.{TEACHER} is empty, but config.reward.anchor is {reward.anchor}. Name the checkpoint to stay near, or set it to 0.",
    )
    check(
        (reward.method == "judge") == bool(reward.judge),
        f'config.reward.method is "{reward.method}" and config.reward.judge "{reward.judge}": name a judge where one judges, as '
        "openai:gpt-4o, and only there.",
    )


def _condition(connector: Connector, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b t c"]:
    return jnp.where(mask[..., None], connector(hidden), 0)
