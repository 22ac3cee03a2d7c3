"""What a run logs: one JSON object a line, which a resumed run continues as if it had never stopped, and the same for TensorBoard."""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack

from rich.console import Console
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from dim_jax import processes
from dim_jax.errors import InputError
from dim_jax.storage.folders import append, filled, new_file, writing
from dim_jax.storage.paths import AnyPath, is_remote, upload
from dim_jax.training.progress import ProgressBar


class MetricWriter:
    """The numbers of a run wherever they are kept or shown: log.jsonl and speed.jsonl in `workdir`, TensorBoard, the console.

    Of several processes the first one alone writes, what all have alike.
    """

    def __init__(self, workdir: AnyPath, console: Console, *, total: int, done: int):
        """The run goes on after step `done`."""
        self._workdir, self._console, self._total, self._done = workdir, console, total, done
        self._writes, self._open = processes.is_first(), ExitStack()

    def __enter__(self) -> "MetricWriter":
        if self._writes:
            self._log, self._speed = (Log(self._workdir / name, after=self._done) for name in ("log.jsonl", "speed.jsonl"))
            self._board = self._open.enter_context(Board(self._workdir / "tensorboard", after=self._done))
            self._shown = self._open.enter_context(ProgressBar(self._console, total=self._total, done=self._done))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def write(self, step: int, means: Mapping[str, float], pace: Mapping[str, float]) -> None:
        """The metrics' means since the last line, and how fast it was."""
        if self._writes:
            self._log.write(step, means)
            self._speed.write(step, pace)
            self._board.write(step, {**means, **pace})
            self._shown.update(step, means, pace)


class Log:
    """Appends to `path`; what was logged after step `after` (by a run that was killed after its last checkpoint) is dropped."""

    def __init__(self, path: AnyPath, *, after: int):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for number, line in enumerate(lines, 1) if _step(path, number, line, len(lines)) <= after]
        with new_file(path) as scratch:
            scratch.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step, to their last bit."""
        append(self.path, json.dumps({"step": step, **values}) + "\n")


class Board:
    """Scalars for TensorBoard, in `folder`; it hides what was logged after step `after`."""

    def __init__(self, folder: AnyPath, *, after: int):
        self._folder, self._after = folder, after

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""
        for name, value in values.items():
            self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))
        self._add()
        if is_remote(self._folder):
            upload(self._place, self._folder)

    def __enter__(self) -> "Board":
        with ExitStack() as opened:
            self._place = opened.enter_context(filled(self._folder))
            with writing(self._folder):
                name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"  # TensorBoard reads them in this order
                self._events = RecordWriter((self._place / name).open("wb"))  # not its EventFileWriter, whose thread fails unheard
            opened.callback(self._events.close)
            self._add(Event(file_version="brain.Event:2"))
            self._add(Event(step=self._after + 1, session_log=SessionLog(status=SessionLog.START)))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with writing(self._folder):
            self._opened.close()

    def _add(self, *events: Event) -> None:
        """Write events; without any, wait until the disk has those before."""
        with writing(self._folder):
            for event in events:
                event.wall_time = time.time()
                self._events.write(event.SerializeToString())
            if not events:
                self._events.flush()


def _step(path: AnyPath, number: int, line: str, lines: int) -> float:
    """The step of a line; a last line that was cut off by a kill counts as later than all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        if number == lines:
            return float("inf")
        raise InputError(f"{path}, line {number}: is not a log line ({error}). Remove the line, or use another workdir.") from error
