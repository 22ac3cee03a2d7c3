"""Processes that load data survive a signal to the whole job, and end with a run that is killed."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from dim_jax.data.workers import cancelling


def test_a_pool_ends_at_once():
    """Thousands of tasks wait when Ctrl-C comes; only those that were begun are done."""
    done = []

    def work(number: int) -> None:
        time.sleep(0.02)
        done.append(number)

    def interrupted() -> None:
        with cancelling(ThreadPoolExecutor(2)) as pool:
            pool.map(work, range(2000))  # nothing is taken from it yet, so that it does not cancel by itself
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(done) < 100


RUN = """
import sys
from dim_jax.data.pipeline import batches

stream = batches(lambda number: number, start=0, workers=2)
for line in sys.stdin:
    print(*(next(stream) for _ in range(int(line))), flush=True)
"""


def workers_of(run: subprocess.Popen) -> list[psutil.Process]:
    return [child for child in psutil.Process(run.pid).children() if "--multiprocessing-fork" in child.cmdline()]


def test_workers_ignore_signals_and_exit_with_their_parent():
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert run.stdin is not None
    assert run.stdout is not None
    print(4, file=run.stdin, flush=True)
    while not (workers := workers_of(run)):
        time.sleep(0.01)
    workers[0].send_signal(signal.SIGTERM)  # while it starts
    workers[0].send_signal(signal.SIGINT)
    assert run.stdout.readline() == "0 1 2 3\n"
    workers = workers_of(run)
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    print(20, file=run.stdin, flush=True)  # more than were loaded ahead
    assert run.stdout.readline() == " ".join(map(str, range(4, 24))) + "\n"
    children = psutil.Process(run.pid).children()
    run.kill()
    run.communicate()
    _, left = psutil.wait_procs(children, timeout=300)
    assert left == []
