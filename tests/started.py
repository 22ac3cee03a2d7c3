"""Processes that a test starts, watches and never leaves behind."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process that has so many devices on its CPU: their number is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags.strip()}


class Started(NamedTuple):
    """A process, and the file with what it and its children write: a pipe that nobody reads would stop them once it is full."""

    process: subprocess.Popen
    output: Path

    def said(self) -> str:
        return self.output.read_text()

    def ended(self, timeout: float = 600) -> tuple[int, str]:
        """Exit code and what all wrote."""
        return self.process.wait(timeout), self.said()

    def wait_until(self, condition: Callable[[], bool], timeout: float = 600) -> None:
        """Raises AssertionError, with what was written, where the process ends before or time is over."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)


@contextmanager
def started(output: Path, command: Sequence[str], env: Mapping[str, str] | None = None, *, cwd: Path = ROOT) -> Iterator[Started]:
    """A command, in the project's root if no other folder is named; whatever still runs of it at the end is killed."""
    with output.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, env=env) as process:
        try:
            yield Started(process, output)
        finally:
            left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for one in [process, *left]:
                one.kill()
