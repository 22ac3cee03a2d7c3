"""Progress of a run: a bar on a terminal, lines in a file."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Speed:
    """Measures steps, in wall-clock time."""

    def __init__(self, rows: int, peak: float | None = None):
        """`rows`: examples in a batch; `peak`: FLOP/s of all devices together, if known."""
        self._rows, self._peak = rows, peak
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited, self._steps, self._flops = time.perf_counter(), 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wraps a step's wait for its batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self._steps += 1

    def add_flops(self, flops: int) -> None:
        """Add the model FLOPs of the current step."""
        self._flops += flops

    def rates(self) -> dict[str, float]:
        """Steps and examples per second, the share of time spent waiting for data, and if the peak is known the model FLOPs utilisation
        (`mfu`: FLOP/s as a share of the peak), since the last call."""
        seconds = time.perf_counter() - self._since
        speed = self._steps / seconds
        rates = {"steps_per_second": speed, "samples_per_second": speed * self._rows, "waiting_for_data": self._waited / seconds}
        if self._peak is not None:
            rates["mfu"] = self._flops / seconds / self._peak
        self._reset()
        return rates


class ProgressBar:
    """A run's progress on a console."""

    def __init__(self, console: Console, *, total: int, start_step: int):
        self._console, self._total = console, total
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=start_step)

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, step: int, means: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Show loss, mean reward if there is one, learning rate and gradient norm; examples per second, MFU if known, share of time waiting
        for data, and the remaining time."""
        remaining = timedelta(seconds=round((self._total - step) / speed["steps_per_second"]))
        utilisation = f"{speed['mfu']:.1%} MFU, " if "mfu" in speed else ""
        reward = f"reward {means['reward']:.4f}, " if "reward" in means else ""
        text = (
            f"loss {means['loss']:.4f}, {reward}lr {means['learning_rate']:.2e}, gradient {means['grad_norm']:.3g}, "
            f"{speed['samples_per_second']:.1f} samples/s, {utilisation}{speed['waiting_for_data']:.0%} waiting for data, {remaining} left"
        )
        self._bar.update(self._task, completed=step, description=text)
        if self._bar.disable:
            self._console.out(f"step {step}/{self._total}: {text}", highlight=False)
