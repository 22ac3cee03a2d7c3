"""The log is cut where a run goes on, keeps every bit, and has its like for TensorBoard."""

import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dim_jax.errors import InputError
from dim_jax.training.log import Board, Log


def test_the_log_is_cut_where_a_run_goes_on(tmp_path):
    path, third = tmp_path / "log.jsonl", 1 / 3
    log = Log(path, after=0)
    for step in (2, 4, 6):
        log.write(step, {"loss": third + step})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # a kill cut it off
    Log(path, after=4).write(6, {"loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "loss": third + 2},
        {"step": 4, "loss": third + 4},
        {"step": 6, "loss": 0.5},
    ]
    path.write_text("what\n" + path.read_text())
    with pytest.raises(InputError, match=r"log\.jsonl, line 1: is no log line"):
        Log(path, after=4)


def events(folder: Path) -> list[Event]:
    """Of the one file there: records of length, checksum, bytes, checksum."""
    (path,) = folder.iterdir()
    found, data = [], path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_tensorboard_shows_the_same_and_hides_what_was_cut(tmp_path):
    with Board(tmp_path / "board", after=4) as board:
        board.write(6, {"loss": 0.5, "grad_norm": 2.0})
        board.write(8, {"loss": 0.25, "grad_norm": 1.0})
    found = events(tmp_path / "board")
    assert [event.step for event in found if event.session_log.status == SessionLog.START] == [5]
    scalars = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert scalars == [(6, "loss", 0.5), (6, "grad_norm", 2.0), (8, "loss", 0.25), (8, "grad_norm", 1.0)]
