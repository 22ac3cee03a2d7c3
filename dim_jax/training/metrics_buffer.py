"""The metrics of the steps since the last line of the log, and the end of a run whose numbers are not finite."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dim_jax import processes
from dim_jax.errors import InputError
from dim_jax.storage.folders import new_file
from dim_jax.storage.paths import AnyPath

Metrics = dict[str, float]


class MetricsBuffer:
    """Steps since the last log line. A checkpoint between two lines carries them along, so that a resumed run writes the same line.

    A step's metrics are fetched when the next one is under way: the host runs one step ahead of the accelerator, and no further.
    """

    def __init__(self, path: AnyPath, before: Sequence[Metrics] = ()):
        """`path` is where the batch is named that is not finite, `before` what a checkpoint brought."""
        self._path = path
        self._settled = list(before)
        self._newest: tuple[int, Mapping[int, str], Mapping[str, Any]] | None = None

    def add(self, step: int, keys: Mapping[int, str], metrics: Mapping[str, Any]) -> None:
        """Take a step that was begun, with the names of this process's examples by their place in the batch, and wait for the one before.

        Raises:
            InputError: as `settle`.
        """
        self.flush()
        self._newest = step, keys, metrics

    def flush(self) -> list[Metrics]:
        """Wait for the newest step; the metrics of each step since the last `means`.

        Raises:
            InputError: a step's loss or gradient is not finite; `path` then names step and examples.
        """
        if self._newest is not None:
            step, keys, metrics = self._newest
            self._newest = None
            found = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
            self._last = step, keys, found
            if not (math.isfinite(found["loss"]) and math.isfinite(found["grad_norm"])):
                raise self.not_finite(f"the loss is {found['loss']}, the gradient's norm {found['grad_norm']}")
            self._settled.append(found)
        return list(self._settled)

    def means(self) -> Metrics:
        """The mean of each metric over the steps since it was last asked for.

        Raises:
            InputError: as `settle`.
        """
        steps, self._settled = self.flush(), []
        return {name: math.fsum(one[name] for one in steps) / len(steps) for name in steps[0]}

    def not_finite(self, what: str) -> InputError:
        """The error for the step that was settled last, whose examples, of all processes, it names in `path`."""
        step, keys, metrics = self._last
        named = {place: key for one in processes.gather([*keys.items()]) for place, key in one}  # some may have been loaded by several
        told = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}  # JSON has no nan
        if processes.is_first():
            found = {"step": step, "keys": [named[place] for place in sorted(named)], "metrics": told}
            with new_file(self._path) as scratch:
                scratch.write_text(json.dumps(found, indent=1) + "\n")
        return InputError(
            f"Step {step}: {what}. {self._path} names its examples. The checkpoints before it are whole: go on from the last one with a "
            "lower optim.learning_rate or optim.clip_global_norm (--allow-changes)."
        )
