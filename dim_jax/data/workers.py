"""Pools that end at once after an error or Ctrl-C, and worker processes that load data: they ignore signals, and end with the run that
started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

PoolT = TypeVar("PoolT", bound=Executor)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_interrupted: Any = None  # in a worker: the event that its pool sets after an interrupt


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes. After an error waiting tasks are cancelled; after Ctrl-C or SIGTERM those that were begun end as well, at their
    next `check_interrupted`."""
    context = multiprocessing.get_context("spawn")
    interrupted = context.Event()
    with cancelling(ProcessPoolExecutor(workers, context, _initialize, (interrupted,))) as pool:
        with signals_blocked():
            for _ in range(workers):
                pool.submit(int)
        try:
            yield pool
        except KeyboardInterrupt:
            interrupted.set()
            raise


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Threads and processes that are started here begin with SIGTERM and SIGINT blocked. Workers ignore these from `exit_with_parent` on;
    until then one would end them."""
    resource_tracker.ensure_running()  # which the first worker needs: to start it unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_interrupted() -> None:
    """Called between the steps of a long task: ends it in a worker whose pool was interrupted.

    Raises:
        KeyboardInterrupt: the run that started this worker ends.
    """
    if _interrupted is not None and _interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def cancelling(pool: PoolT) -> Iterator[PoolT]:
    """A pool whose waiting tasks are cancelled after an error: by itself it would first do them all."""
    with pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _initialize(interrupted: Any) -> None:
    global _interrupted
    _interrupted = interrupted
    exit_with_parent(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def exit_with_parent(worker: int, workers: int) -> None:
    """Called in a new worker process, with its number and how many there are.

    Signals that go to all processes of a job are ignored, since the run needs data until it has saved. A killed run cannot end its
    workers, so they wait for its end.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(0)  # the main thread may wait for somebody to take its batch
