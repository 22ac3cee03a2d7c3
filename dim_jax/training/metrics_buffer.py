"""Buffers metrics between log lines, and ends a run whose loss or gradient is not finite."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dim_jax import processes
from dim_jax.errors import InputError
from dim_jax.storage.folders import write_json
from dim_jax.storage.paths import AnyPath

Metrics = dict[str, float]


class MetricsBuffer:
    """Metrics of the steps since the last log line. A checkpoint saves them, so that a resumed run writes the same line.

    A step's metrics are fetched after the next step starts: the host runs at most one step ahead of the accelerator.
    """

    def __init__(self, path: AnyPath, restored: Sequence[Metrics] = ()):
        """`path`: where a batch that is not finite is reported; `restored`: metrics from a checkpoint."""
        self._path = path
        self._flushed = list(restored)
        self._pending: tuple[int, Mapping[int, str], Mapping[str, Any]] | None = None

    def add(self, step: int, keys: Mapping[int, str], metrics: Mapping[str, Any]) -> None:
        """Add a step that has started, with the keys of this process's examples by their index in the batch, and wait for the last one.

        Raises:
            InputError: as `flush`.
        """
        self.flush()
        self._pending = step, keys, metrics

    def flush(self) -> list[Metrics]:
        """Wait for the latest step; returns the metrics of each step since the last `means`.

        Raises:
            InputError: a step's loss or gradient is not finite; `path` then names step and examples.
        """
        if self._pending is not None:
            step, keys, metrics = self._pending
            self._pending = None
            values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
            self._last = step, keys, values
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                raise self.not_finite(f"the loss is {values['loss']}, the gradient's norm {values['grad_norm']}")
            self._flushed.append(values)
        return list(self._flushed)

    def means(self) -> Metrics:
        """The mean of each metric over the steps since the last call.

        Raises:
            InputError: as `flush`.
        """
        steps, self._flushed = self.flush(), []
        return {name: math.fsum(metrics[name] for metrics in steps) / len(steps) for name in steps[0]}

    def not_finite(self, reason: str) -> InputError:
        """The error for the latest step; writes the keys of its examples, of all processes, to `path`."""
        step, keys, metrics = self._last
        gathered = processes.gather([*keys.items()])  # several processes may load the same rows
        names = {index: key for process_keys in gathered for index, key in process_keys}
        json_metrics = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}  # JSON has no nan
        if processes.is_first():
            record = {"step": step, "keys": [names[index] for index in sorted(names)], "metrics": json_metrics}
            write_json(self._path, record)
        return InputError(
            f"Step {step}: {reason}. {self._path} names its examples. Earlier checkpoints are complete: continue from the last one with a "
            "lower optim.learning_rate or optim.clip_global_norm (--allow-changes)."
        )
