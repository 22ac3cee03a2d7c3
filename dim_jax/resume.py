"""Training states on disk, to go on from: Orbax writes them while training goes on, whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import orbax.checkpoint.experimental.v1 as ocp

from dim_jax.checkpoint import hushed
from dim_jax.errors import InputError

State = TypeVar("State")


class TrainingStates:
    """The numbered states of one run; the step is the state's name."""

    def __init__(self, folder: Path, checkpointer: ocp.training.Checkpointer):
        self._folder, self._checkpointer = folder, checkpointer

    def restore(self, like: State) -> State | None:
        """The latest state, in the shape, dtype and sharding of `like` (abstract arrays), whatever mesh it was saved from; or None.

        Raises:
            InputError: the latest state is damaged, or of another model.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return None
        try:
            with hushed():
                return self._checkpointer.load(latest, like)
        except (ValueError, OSError, KeyError, ocp.errors.InvalidLayoutError) as error:
            raise InputError(
                f"{self._folder / str(latest.step)}: is damaged, or of another model. Remove it to go on from the one "
                "before, or use another workdir."
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Copy the state and write it while training goes on; waits for the state before it."""
        self._checkpointer.save_async(step, state)


@contextmanager
def training_states(folder: Path, *, keep: int) -> Iterator[TrainingStates]:
    """Open (or begin) the states in `folder`, of which the latest `keep` stay; the last write is finished at the end."""
    every: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)  # whenever it is called
    latest: Any = ocp.training.preservation_policies.LatestN(keep)
    with ocp.training.Checkpointer(
        os.path.abspath(folder),
        save_decision_policy=every,
        preservation_policy=latest,
        cleanup_tmp_directories=True,
    ) as checkpointer:
        yield TrainingStates(folder, checkpointer)
