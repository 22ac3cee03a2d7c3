"""Who writes to a folder keeps other runs out, until it ends or is killed: on this machine by flock, in a bucket by a lease."""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from dim_jax.errors import InputError
from dim_jax.storage import locks
from dim_jax.storage.folders import new_folder
from dim_jax.storage.locks import lock_folder, lock_output
from dim_jax.storage.paths import as_path
from tests.painter_fixtures import dim, tiny_checkpoint
from tests.started import Started, started

HOLDS = """
import sys, time
from dim_jax.storage import locks
from dim_jax.storage.paths import as_path
locks.REFRESH = 0.3
with locks.lock_folder(as_path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def holding(folder: str, output: Path, stack: ExitStack) -> Started:
    """A process that has the lock of a folder."""
    run = stack.enter_context(started(output, [sys.executable, "-c", HOLDS, folder]))
    run.wait_until(lambda: "held" in run.said())
    return run


def test_one_at_a_time_and_after_a_kill_at_once(tmp_path):
    folder = tmp_path / "run"
    with ExitStack() as stack:
        run = holding(str(folder), tmp_path / "said", stack)
        (tmp_path / "link").symlink_to(folder)
        for path in (folder, tmp_path / "link"):
            with (
                pytest.raises(InputError, match=rf"{path.name}: process {run.process.pid} on .* is writing to it\.") as caught,
                lock_folder(path),
            ):
                pass
            assert "\n" not in str(caught.value)
        with lock_folder(tmp_path / "other"):
            pass
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        with lock_folder(folder):
            assert os.listdir(folder) == [".lock"]
        assert os.listdir(folder) == []


def test_never_two_at_once(tmp_path):
    """The lock's file is removed and made again all the time, also by those who take it for one that a killed process left."""
    inside, failures, barrier = [], [], threading.Barrier(10)

    def enter():
        barrier.wait()
        for _ in range(100):
            try:
                with lock_output(tmp_path / "out"):
                    inside.append(1)
                    if len(inside) > 1:
                        failures.append("two at once")
                    time.sleep(1e-4)
                    inside.pop()
            except InputError:
                time.sleep(1e-4)

    def leave_and_clear():
        barrier.wait()
        while any(thread.is_alive() for thread in threads[:8]):
            (tmp_path / ".left.lock").write_bytes(locks._Holder.current().text())
            locks.remove_stale.__wrapped__(tmp_path)

    threads = [threading.Thread(target=work) for work in [enter] * 8 + [leave_and_clear] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_killed_run_is_removed_by_the_next_one_beside_it(tmp_path):
    """While it runs, its lock stays, and nobody is refused for looking."""
    with ExitStack() as stack:
        run = holding(str(tmp_path / "run"), tmp_path / "said", stack)
        for _ in range(2):
            locks.remove_stale.cache_clear()  # as in a process of its own
            with lock_output(tmp_path / "run/other"):
                pass
            assert os.listdir(tmp_path / "run") == ([".lock"] if run.process.poll() is None else [])
            run.process.send_signal(signal.SIGKILL)
            run.process.wait()


def test_a_folder_that_two_make(tmp_path):
    """The second is refused before anything is written, and the first one's stays."""
    with new_folder(tmp_path / "out") as scratch:
        (scratch / "mine").write_text("1")
        thread_errors = []

        def second():
            try:
                with new_folder(tmp_path / "out"):
                    pass
            except InputError as error:
                thread_errors.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert "is writing to it" in thread_errors[0]
    assert (tmp_path / "out/mine").read_text() == "1"
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_held_may_be_asked_for_again(tmp_path):
    with lock_output(tmp_path / "out"), lock_output(tmp_path / "out"), new_folder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_may_not_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out: cannot be made \(File exists\)"), lock_output(tmp_path / "file/out"):
        pass


COMMANDS = {
    "train": (lock_folder, "train --config {configs}/nano_autoencoder.py --workdir {out} --set data.source=synthetic"),
    "cache": (lock_folder, "cache --config {configs}/nano_edit.py --into {out}"),
    "convert": (lock_output, "convert {tiny} {out} --to dim"),
    "edit": (lock_output, "build-data dim-edit {out} --source pairs:{out}.jsonl --until keep"),
    "text": (lock_output, "build-data text {out} --scenes 10"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_twice_at_once(tmp_path, command):
    lock, text = COMMANDS[command]
    tiny_checkpoint(tmp_path / "tiny")
    (tmp_path / "out.jsonl").write_text("")
    arguments = text.format(configs=Path(__file__).parents[1] / "configs", out=tmp_path / "out", tiny=tmp_path / "tiny").split()
    held, done = threading.Event(), threading.Event()

    def hold():
        with lock(tmp_path / "out"):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    before = sorted(tmp_path.rglob("*"))
    try:
        code, said = dim(*arguments)
    finally:
        done.set()
        thread.join()
    assert code == 1
    assert said.startswith(f"error: {tmp_path / 'out'}: process {os.getpid()} on ")
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == [path for path in before if ".lock" not in path.name]


def test_a_bucket_has_leases(bucket, tmp_path, monkeypatch, capsys):
    folder = as_path(f"{bucket}/locks/run")
    with ExitStack() as stack:
        run = holding(str(folder), tmp_path / "said", stack)
        with pytest.raises(InputError, match=rf"process {run.process.pid} on .* is writing to it"), lock_folder(folder):
            pass
        with lock_folder(as_path(f"{bucket}/locks/other")):
            pass
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        with lock_folder(folder):  # a process of this machine, which is known to be gone
            pass
        run = holding(str(folder), tmp_path / "said", stack)
        begun = time.monotonic()
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        monkeypatch.setattr(locks._Holder, "has_exited", lambda self: False)  # as of another machine
        monkeypatch.setattr(locks, "STALE", 3.0)
        capsys.readouterr()
        with lock_folder(folder):
            assert time.monotonic() - begun >= 2.5  # it was last renewed up to 0.3 seconds before
            waited, went_on = capsys.readouterr().err.splitlines()
            assert f"held by process {run.process.pid}" in waited
            assert f"process {run.process.pid} on " in went_on
            assert went_on.endswith("was killed while it wrote here; going on in its place")
    assert not (folder / ".lock").exists()


def test_the_lease_of_a_killed_run_goes_with_the_next_lock_beside_it(bucket, tmp_path, monkeypatch):
    """What is older than any holder's renewal, and no other file."""
    folder, killed = as_path(f"{bucket}/stale"), [".lock", ".out.lock"]
    for name in (*killed, ".lock.txt", "data"):
        (folder / name).write_text("{}")
    (folder / "below").mkdir(parents=True)
    (folder / "below/.lock").write_text("{}")
    with lock_output(folder / "other"):
        assert all((folder / name).exists() for name in killed), "a run may have written it just now"
    monkeypatch.setattr(locks, "STALE", 1.0)
    time.sleep(2.1)
    with lock_output(folder / "other"):
        assert sorted(path.name for path in folder.iterdir()) == [".lock.txt", ".other.lock", "below", "data"]
    assert (folder / "below/.lock").exists()


def test_who_loses_a_lease_ends(bucket, tmp_path):
    """As after a pause of the whole machine, in which another run took its place."""
    folder = as_path(f"{bucket}/lost/run")
    with ExitStack() as stack:
        run = holding(str(folder), tmp_path / "said", stack)
        (folder / ".lock").write_text("somebody else")
        code, said = run.ended()
    assert code == 1
    assert said.splitlines()[1].startswith(f"error: {folder}: another run is writing to it.")
