"""The optimizer of every stage: AdamW after a clip of the global gradient norm."""

from collections.abc import Collection
from typing import Any

import optax

UNDECAYED = ("scale", "bias", "scale_shift_table", "y_embedding")  # last names of parameters


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
    stands for a condition, are no product's factor. PyTorch's AdamW decays all unless told otherwise (`undecayed=()`).

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
