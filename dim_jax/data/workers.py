"""Pools that end at once after an error or Ctrl-C, and worker processes that load data: they ignore signals, and end with the run that
started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

PoolT = TypeVar("PoolT", bound=Executor)


def process_pool(
    workers: int, initializer: Callable[..., None] | None = None, *arguments: Any
) -> AbstractContextManager[ProcessPoolExecutor]:
    """Worker processes that first call `initializer(*arguments)`; after an error, waiting tasks are cancelled."""
    return cancelling(ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _initialize, (initializer, arguments)))


@contextmanager
def cancelling(pool: PoolT) -> Iterator[PoolT]:
    """A pool whose waiting tasks are cancelled after an error: by itself it would first do them all."""
    with pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _initialize(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    exit_with_parent(0, 0)
    if initializer is not None:
        initializer(*arguments)


def exit_with_parent(worker: int, workers: int) -> None:
    """Called in a new worker process, with its number and how many there are.

    Signals that go to all processes of a job are ignored, since the run needs data until it has saved. A killed run cannot end its
    workers, so they wait for its end.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(0)  # the main thread may wait for somebody to take its batch
