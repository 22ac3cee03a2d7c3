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
import grain
from absl import flags
from dim_jax.data.workers import exit_with_parent

flags.FLAGS.mark_as_parsed()
options = grain.MultiprocessingOptions(num_workers=2, per_worker_buffer_size=1)
stream = iter(grain.MapDataset.range(1000).to_iter_dataset().mp_prefetch(options, exit_with_parent))
for line in sys.stdin:
    print(*(next(stream) for _ in range(int(line))), flush=True)
"""


def test_workers_exit_with_parent():
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert run.stdin is not None
    assert run.stdout is not None
    print(4, file=run.stdin, flush=True)
    assert run.stdout.readline() == "0 1 2 3\n"
    children = psutil.Process(run.pid).children()
    workers = [child for child in children if "--multiprocessing-fork" in child.cmdline()]
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    print(6, file=run.stdin, flush=True)  # more than were loaded ahead
    assert run.stdout.readline() == "4 5 6 7 8 9\n"
    run.kill()
    run.communicate()
    _, left = psutil.wait_procs(children, timeout=300)
    assert left == []
