"""A run under a scheduler: SIGTERM, a watchdog for hanging steps, exit codes.

    0   the run is done                           1   it cannot go on: what the user gave, or a loss that is not finite
    75  stopped by SIGTERM, after a checkpoint   70  no step within `train.watchdog_minutes`

After 75, 70 or a kill the same command continues; after 1 it would fail again.
"""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
HUNG = 70  # EX_SOFTWARE


class TerminatedError(Exception):
    """SIGTERM came while a run waited."""


class Termination:
    """Catches SIGTERM; `requested` says whether it came."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupting = False

    def __enter__(self) -> "Termination":
        self._old_handler = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._old_handler)

    @contextmanager
    def interrupts(self, enabled: bool) -> Iterator[None]:
        """Within, SIGTERM raises `TerminatedError` at once, or when it has come before. It may come after what is waited for, too."""
        self._interrupting = enabled
        try:
            if enabled and self.requested:
                raise TerminatedError
            yield
        finally:
            self._interrupting = False

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        if self._interrupting:
            self._interrupting = False  # a second signal must not disturb what the first one started
            raise TerminatedError


class Watchdog:
    """Ends the process if `alive` is not called for `minutes` (0: never): every thread's stack to stderr, then exit code 70.

    It waits for the first call of `alive`, and after `pause` for the next one: compilation may take longer.
    """

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self._deadline = math.inf
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()

    def alive(self) -> None:
        """A step has finished: restart the clock."""
        self._deadline = time.monotonic() + self._seconds

    def pause(self) -> None:
        """Stop the clock: the next operation may take longer than a step."""
        self._deadline = math.inf

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() > self._deadline:
                print(
                    f"no step in {self._seconds / 60:g} minutes (train.watchdog_minutes); every thread's stack:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                os._exit(HUNG)  # a hanging thread would block a normal exit
