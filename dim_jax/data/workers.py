"""The life of a process that loads data: as long as the run that started it, no shorter and no longer."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def process_pool(workers: int, begin: Callable[..., None] | None = None, *options: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that each call `begin(*options)` first; where anything goes wrong, nothing new is begun."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (begin, options)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin(begin: Callable[..., None] | None, options: tuple[Any, ...]) -> None:
    live_as_long_as_the_run(0, 0)
    if begin is not None:
        begin(*options)


def live_as_long_as_the_run(worker: int, workers: int) -> None:
    """Called in a new worker process, with its number and how many there are.

    A signal that goes to all processes of a job is for the run to answer: it needs its data until it has saved. A run that is killed
    cannot end its workers, so they watch it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(0)  # the main thread may wait for somebody to take its batch
