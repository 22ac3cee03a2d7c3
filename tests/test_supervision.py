"""A hanging process ends with its own code and shows where it hung; SIGTERM is noted and ends nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from dim_jax.training.supervision import HUNG, STOPPED, Termination
from tests.test_train import arguments

ROOT = Path(__file__).parents[1]
PAUSES = """
import threading, time
from dim_jax.training.supervision import Watchdog

def hang():
    threading.Event().wait()

with Watchdog(0.03) as watchdog:
    time.sleep(4)  # nothing was alive yet
    watchdog.alive()
    watchdog.pause()
    time.sleep(4)
    print("still here", flush=True)
    watchdog.alive()
    hang()
"""
# A run whose data never comes after the first examples (eight are shown on sheets, few more are loaded ahead).
HANGS = """
import threading
from dim_jax.cli.main import main
from dim_jax.data.synthetic import Synthetic

read, count = Synthetic.__getitem__, 0

def hanging_data(self, index):
    global count
    count += 1
    if count > 60:
        threading.Event().wait()
    return read(self, index)

Synthetic.__getitem__ = hanging_data
main()
"""


def ended(program: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def test_watchdog_fires_after_pause():
    process = ended(PAUSES)
    assert process.returncode == HUNG, process.stderr
    assert process.stdout == "still here\n"
    assert "no step in 0.03 minutes" in process.stderr
    assert "in hang\n" in process.stderr


def test_watchdog_ends_run_with_hanging_data(tmp_path):
    """Compiling takes longer than the watchdog waits, and is not taken for hanging."""
    changes = {"train__watchdog_minutes": "0.2"}
    process = ended(HANGS, *arguments("nano_encoder", tmp_path / "run", 100_000, **changes))
    assert process.returncode == HUNG, process.stderr
    assert (tmp_path / "run/log.jsonl").read_text().startswith('{"step": 1, ')
    assert "in hanging_data\n" in process.stderr
    assert "in main\n" in process.stderr


def test_watchdog_stops_with_the_run():
    text = "import time\nfrom dim_jax.training.supervision import Watchdog\n"
    text += "with Watchdog(0.02) as watchdog: watchdog.alive()\ntime.sleep(2)"
    assert ended(text).returncode == 0


def test_sigterm_sets_requested():
    before = signal.getsignal(signal.SIGTERM)
    with Termination() as termination:
        assert not termination.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.requested
    assert signal.getsignal(signal.SIGTERM) is before
    assert len({0, 1, 2, STOPPED, HUNG}) == 5
