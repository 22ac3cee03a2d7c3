"""The optimizer of every stage: AdamW after a clip of the global gradient norm."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dim_jax.config import Config
from dim_jax.errors import InputError

UNDECAYED = ("scale", "bias", "scale_shift_table", "y_embedding")  # last names of parameters


def make_optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run, and the learning rate of each of its updates.

    Raises:
        InputError: more batches make an update than there are steps.
    """
    options = config.optim
    if not 1 <= options.accumulate <= config.train.steps:
        raise InputError(f"config.optim.accumulate is {options.accumulate}: it must be from 1 to train.steps, {config.train.steps}.")
    updates = config.train.steps // options.accumulate
    learning_rate = schedule(options.learning_rate, warmup_steps=options.warmup_steps, cosine=options.cosine, steps=updates)
    optimizer = adamw(
        learning_rate, weight_decay=options.weight_decay, clip_global_norm=options.clip_global_norm, betas=tuple(options.betas),
        eps=options.eps, accumulate=options.accumulate, undecayed=tuple(options.undecayed),
    )  # fmt: skip
    return optimizer, learning_rate


def ema_decay(config: Config, step: Int[Array, ""]) -> Float[Array, ""]:
    """How much of the averages a step keeps: config.optim.ema_decay, less in the first updates, and all of them between two updates."""
    update = step // config.optim.accumulate
    decay = jnp.minimum(config.optim.ema_decay, (1 + update) / (10 + update))
    return jnp.where((step + 1) % config.optim.accumulate == 0, decay, 1.0)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    clip_global_norm: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    accumulate: int = 1,
    undecayed: Collection[str] = UNDECAYED,
) -> optax.GradientTransformation:
    """Decoupled weight decay (arXiv 1711.05101) on gradients whose joint L2 norm is at most `clip_global_norm`.

    Parameters whose last name is in `undecayed` do not decay: scales of norms, biases, tables of scale and shift, and the null table, which
    stands for a condition, are not a factor of a product. PyTorch's AdamW decays all of them (`undecayed=()`).

    With `accumulate` n > 1 only every n-th call updates, by the mean of the gradients since the last one that did; the clip is of that
    mean, and `learning_rate` counts updates.
    """

    def decay(updates: Any, params: Any) -> Any:
        return {
            path: change if path.rpartition(".")[2] in undecayed else change + weight_decay * params[path]
            for path, change in updates.items()
        }

    # As `optax.adamw`, but for its mask, which would make another state of it: runs that began without one could not go on.
    adam = optax.chain(optax.scale_by_adam(*betas, eps=eps), optax.stateless(decay), optax.scale_by_learning_rate(learning_rate))
    optimizer = optax.chain(optax.clip_by_global_norm(clip_global_norm), adam)
    return optimizer if accumulate == 1 else optax.MultiSteps(optimizer, accumulate).gradient_transformation()


def schedule(learning_rate: float, *, warmup_steps: int, cosine: bool, steps: int) -> optax.Schedule:
    """Up from zero over `warmup_steps`, then constant, or down to zero along a cosine (arXiv 1608.03983) until `steps`."""
    if cosine:
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(warmup_steps, steps - 1), steps)
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup_steps), optax.constant_schedule(learning_rate)], [warmup_steps]
    )
