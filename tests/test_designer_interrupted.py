"""Many questions, interrupted: killed, asked to stop, and where no signal is heard."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.chat_server import ChatServer, Turnstile, good
from tests.designer_runs import OUT, go, job, prepare, rows


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch)


SCRIPT = """
import sys
from pathlib import Path
from dim_jax.designer.choice import DesignerSpec
from dim_jax.designer.journal import Journal
from dim_jax.designer.limits import Limits
from dim_jax.designer.runner import Job, run
url, number = sys.argv[1], int(sys.argv[2])
jobs = (Job((Path("a.png"),), f"Edit number {i}.", {"id": str(i)}) for i in range(number))
with Journal(Path("out.jsonl")) as journal:
    print(run(jobs, DesignerSpec.parse("openai:m").open(base_url=url), journal, Limits(concurrency=4)))
assert "jax" not in sys.modules and "flax" not in sys.modules
"""


def start(server: ChatServer, number: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines_reach(process: subprocess.Popen, number: int) -> None:
    end = time.monotonic() + 300
    while not OUT.exists() or OUT.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)


def test_resume_after_sigkill_asks_nothing_twice():
    """Only what was under way when it was killed is asked again: one call for each that was allowed at once."""
    turnstile = Turnstile(good(), 0)
    with ChatServer(turnstile) as server:
        for reached, turnstile.opened in ((15, 20), (40, 54)):
            process = start(server, 60)
            lines_reach(process, reached)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert OUT.read_bytes().count(b"\n") < 60
        turnstile.opened = 1000
        process = start(server, 60)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert sorted(int(row["id"]) for row in rows()) == list(range(60))
    assert 60 <= len(server.requests) <= 60 + 2 * 4
    assert "answered=" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sigint_and_sigterm_finish_requests_in_flight(number):
    with ChatServer(good(after=0.1)) as server:
        process = start(server, 10_000)
        lines_reach(process, 3)
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert ("Ctrl-C" if number == signal.SIGINT else "SIGTERM") in output
    assert len(rows()) == len(server.requests)  # what was paid for is kept


def test_run_outside_main_thread():
    """Where signals cannot be heard, such as in a notebook."""
    with ChatServer() as server:
        thread = threading.Thread(target=go, args=(server, [job(0)]))
        thread.start()
        thread.join()
    assert len(rows()) == 1


def test_signal_handlers_are_restored():
    heard = []
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ChatServer(good()) as server:
            assert go(server, [job(0)]).answered == 1
        for number in before:
            signal.raise_signal(number)
        assert heard == list(before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
