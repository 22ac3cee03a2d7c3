"""A run and the scheduler that watches over it: the signal that asks it to stop, the clock that ends one that hangs, exit codes.

    0   the run is done                           1   it cannot go on: what the user gave, or a loss that is not finite
    75  stopped by SIGTERM, after a checkpoint   70  no step within `train.watchdog_minutes`

After 75, 70 or a kill the same command goes on; after 1 it would only fail again.
"""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from typing import Any

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
STUCK = 70  # EX_SOFTWARE


class Termination:
    """Within it SIGTERM ends nothing; `asked` says whether it came."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Termination":
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True


class Watchdog:
    """Ends the process where `alive` is not called for `minutes` (0: never): every thread's stack to stderr, then exit code 70.

    It sleeps until `alive` is called for the first time, and after `pause` until it is called again: compiling takes as long as it takes.
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
        """A step is done: from now on the next one has its time."""
        self._deadline = time.monotonic() + self._seconds

    def pause(self) -> None:
        """What comes next may take longer than a step."""
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
                os._exit(STUCK)  # a thread that hangs would not let the interpreter end
