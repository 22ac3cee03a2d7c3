"""Traces a few steps for the profiler."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import jax

from dim_jax import processes
from dim_jax.errors import InputError
from dim_jax.storage.folders import upload_on_exit
from dim_jax.storage.paths import AnyPath


class Profile:
    """Writes a trace of the first process's steps `first` to `last`, both included, into `folder` (formats of TensorBoard and Perfetto)."""

    def __init__(self, folder: AnyPath, steps: tuple[int, int] | None, *, start_step: int, total: int):
        """The run goes from step `start_step` + 1 to `total`.

        Raises:
            InputError: `steps` (None: no trace) are outside of the run.
        """
        if steps is not None and not start_step < steps[0] <= steps[1] <= total:
            raise InputError(f"--profile {steps[0]}:{steps[1]}: give two steps in order, from {start_step + 1} to {total}.")
        self._folder = folder
        self._first, self._last = steps or (0, 0)
        self._open = ExitStack()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @contextmanager
    def step(self, number: int, wait: Callable[[], object]) -> Iterator[None]:
        """Wraps a step; `wait` returns when it has finished, which only the last step of a trace waits for."""
        if number == self._first and processes.is_first():
            jax.profiler.start_trace(str(self._open.enter_context(upload_on_exit(self._folder))))
            self._open.callback(jax.profiler.stop_trace)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self._last:
            wait()
            self._open.close()
