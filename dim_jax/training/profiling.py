"""A trace of a few steps for the profiler: what each device and thread did when."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import jax

from dim_jax import processes
from dim_jax.errors import InputError
from dim_jax.storage.folders import filled
from dim_jax.storage.paths import AnyPath


class Profile:
    """Writes a trace of the first process's steps `first` to `last`, both included, into `folder` (formats of TensorBoard and Perfetto)."""

    def __init__(self, folder: AnyPath, steps: tuple[int, int] | None, *, done: int, total: int):
        """Between `done` and `total` steps are left to run.

        Raises:
            InputError: `steps` (None: no trace) are not among those.
        """
        if steps is not None and not done < steps[0] <= steps[1] <= total:
            raise InputError(f"--profile {steps[0]}:{steps[1]}: name two steps in order, of those from {done + 1} to {total}.")
        self._folder = folder
        self._first, self._last = steps or (0, 0)
        self._open = ExitStack()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @contextmanager
    def step(self, number: int, wait: Callable[[], object]) -> Iterator[None]:
        """Around a step; `wait` returns when it is done, which only the last one of a trace has to."""
        if number == self._first and processes.is_first():
            jax.profiler.start_trace(str(self._open.enter_context(filled(self._folder))))
            self._open.callback(jax.profiler.stop_trace)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self._last:
            wait()
            self._open.close()
