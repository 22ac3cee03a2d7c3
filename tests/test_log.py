"""The log is cut where a run goes on, keeps every bit, and has its like for TensorBoard."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dim_jax.errors import InputError
from dim_jax.training.log import MetricLog, TensorBoardWriter


def test_log_is_truncated_at_resume_step(tmp_path):
    path, third = tmp_path / "log.jsonl", 1 / 3
    log = MetricLog(path, start_step=0)
    for step in (2, 4, 6):
        log.write(step, {"loss": third + step})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # a kill cut it off
    MetricLog(path, start_step=4).write(6, {"loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "loss": third + 2},
        {"step": 4, "loss": third + 4},
        {"step": 6, "loss": 0.5},
    ]
    path.write_text("what\n" + path.read_text())
    with pytest.raises(InputError, match=r"log\.jsonl, line 1: is not a log line"):
        MetricLog(path, start_step=4)


def test_tensorboard_hides_steps_after_resume(tmp_path):
    with TensorBoardWriter(tmp_path, start_step=0) as board:
        for step in (4, 6, 8):
            board.write(step, {"loss": step / 8, "grad_norm": 2.0})
    with TensorBoardWriter(tmp_path, start_step=4) as board:
        board.write(6, {"loss": 0.25})
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(4, 0.5), (6, 0.25)]
    assert [event.step for event in found.Scalars("grad_norm")] == [4]
