"""A disk that is full, or may no longer be written to, while a run goes on: one line, nothing lost, and the same command goes on later."""

import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from dim_jax.data import pipeline
from dim_jax.errors import InputError
from dim_jax.storage.folders import append
from dim_jax.training.log import TensorBoardWriter
from dim_jax.training.resume import latest_step
from tests.full_disk import files_of_at_most
from tests.started import started
from tests.test_train import arguments, log, train

LIMITED = """
import resource, sys
from dim_jax.cli.main import main
from dim_jax.training.resume import TrainingStates

save = TrainingStates.save
def limited(self, *arguments):  # as if the disk were full from here on
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(self, *arguments)

TrainingStates.save = limited
main()
"""
CHANGES = {"train__save_every": "2"}


def test_full_disk_while_saving_state(tmp_path):
    workdir = tmp_path / "run"
    assert train("nano_encoder", workdir, 2, **CHANGES)[0] == 0
    command = [sys.executable, "-c", LIMITED, *arguments("nano_encoder", workdir, 8, **CHANGES)]
    with started(tmp_path / "said", command) as run:
        code, said = run.ended()
    assert code == 1, said
    lines = [line for line in said.splitlines() if not line.startswith(("step ", "encoder: ", "counting ", "going on "))]
    (message,) = lines
    assert message.startswith(f"error: {workdir / 'checkpoints'}: a state cannot be written (File too large; a state takes ")
    assert latest_step(workdir / "checkpoints") == 2
    assert train("nano_encoder", workdir, 8, **CHANGES)[0] == 0
    assert [line["step"] for line in log(workdir)] == [*range(1, 9)]


def test_a_line_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.jsonl"
    append(path, "one\n")
    with files_of_at_most(8), pytest.raises(InputError, match=r"log\.jsonl: cannot be written \(.*\)\. Free some space there"):
        append(path, "two and more\n")
    assert path.read_text() == "one\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_log_for_tensorboard_that_fails(tmp_path, monkeypatch, code):
    """Nothing waits for a thread that has died."""
    with TensorBoardWriter(tmp_path / "board", start_step=0) as board:
        board.write(1, {"loss": 1.0})

        def fail() -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(board._events, "flush", fail)
            with pytest.raises(InputError, match=rf"board: cannot be written \({os.strerror(code)}"):
                board.write(2, {"loss": 1.0})


def end_as_where_shared_memory_is_full(step: int) -> int:
    if step == 2:
        os.kill(os.getpid(), signal.SIGBUS)
    return step


def test_worker_killed_by_full_shared_memory():
    stream = pipeline.batches(end_as_where_shared_memory_is_full, start=0, workers=1)
    with pytest.raises(InputError, match=r"/dev/shm: too small \(.* free\) for the batches of 1 processes .* set data\.workers to 0"):
        for _ in stream:
            pass


def test_shared_memory_that_is_full_from_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("dim_jax.storage.disk.free_bytes", lambda place: 16384 if place == Path(tmp_path) else 2**40)
    with pytest.raises(InputError, match=r"no space in .* \(1 MiB are needed, 16 KiB are free\).* set data\.workers to 0"):
        next(pipeline.batches(end_as_where_shared_memory_is_full, start=0, workers=1))
