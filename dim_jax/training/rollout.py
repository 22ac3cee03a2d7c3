"""A step of a run with rewards, before it learns: the policy paints, the pictures get their rewards on the host, and go back with them.

Both kinds of rewards take this one way. So a step is two programs, between which the host waits for the pictures.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from dim_jax.config import Config
from dim_jax.data.batches import PaintBatch
from dim_jax.models.module import with_parameters
from dim_jax.processes import make_global_array, to_host
from dim_jax.rng import key_seed
from dim_jax.sharding import Sharding
from dim_jax.storage.paths import AnyPath
from dim_jax.training.judged import open_judge
from dim_jax.training.objectives import Objective
from dim_jax.training.reward import PaintedBatch, target_rewards
from dim_jax.training.state import Params, State

Groups = UInt8[np.ndarray, "b k h w 3"]


# Gives a reward to each picture that the policy painted for a step, NaN where there is none: (step, batch, pictures) -> (b, k). All
# processes call it, with the same arrays, and get the same.
Score = Callable[[int, PaintBatch, Groups], Float[np.ndarray, "b k"]]


def score_by_target(step: int, batch: PaintBatch, painted: Groups) -> Float[np.ndarray, "b k"]:
    """`target_rewards`, against the pictures of the batch."""
    target, source = (np.asarray(to_host(pixels)) for pixels in (batch.target, batch.source))
    return target_rewards(target, source, painted)


class Rollout:
    """Paints the pictures of a batch by the averaged parameters of a state, and gives them rewards."""

    def __init__(self, config: Config, objective: Objective, sharding: Sharding, score: Score):
        """`objective` is one that paints; `score` as above."""
        assert objective.paint is not None
        paint_groups, self._sharding, self._score = objective.paint, sharding, score

        def paint(ema: Params, frozen: Params, step: Any, batch: PaintBatch) -> tuple[PaintedBatch, Any]:
            key = jax.random.fold_in(jax.random.key(key_seed(config.seed, "pictures")), step)
            with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
                return paint_groups(with_parameters(objective.model, ema | frozen), batch, key)

        self._paint = jax.jit(paint, compiler_options=sharding.compiler_options)

    def __call__(self, step: int, state: State, frozen: Params, batch: PaintBatch) -> PaintedBatch:
        """What `step` learns from. Errors as in the score."""
        painted, pixels = self._paint(state.ema, frozen, state.step, batch)
        rewards = self._score(step, batch, np.asarray(to_host(pixels)))
        return replace(painted, rewards=self._sharding.shard(rewards, make_global_array))


@contextmanager
def open_rollout(config: Config, objective: Objective, sharding: Sharding, workdir: AnyPath) -> Iterator[Rollout | None]:
    """The rollouts of a run; None: it learns from its data.

    Raises:
        InputError: as `open_judge`.
    """
    if objective.paint is None:
        yield None
    elif config.reward.method == "target":
        yield Rollout(config, objective, sharding, score_by_target)
    else:
        with open_judge(config, objective.processor.tokenizer, workdir) as judge:
            yield Rollout(config, objective, sharding, judge)
