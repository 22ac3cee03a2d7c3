"""Logs of a run: one JSON object a line, which a resumed run continues seamlessly, and the same for TensorBoard."""

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
from dim_jax.storage.folders import append, upload_on_exit, write_errors, write_text
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import AnyPath, is_remote, upload
from dim_jax.training.progress import ProgressBar


class MetricWriter:
    """Writes a run's metrics to log.jsonl and speed.jsonl in `workdir`, to TensorBoard and the console. Only the first process writes."""

    def __init__(self, workdir: AnyPath, console: Console, *, total: int, start_step: int):
        """The run continues after step `start_step`."""
        self._workdir, self._console, self._total, self._start_step = workdir, console, total, start_step
        self._writes, self._open = processes.is_first(), ExitStack()

    def __enter__(self) -> "MetricWriter":
        if self._writes:
            self._log, self._speed = (MetricLog(self._workdir / name, start_step=self._start_step) for name in ("log.jsonl", "speed.jsonl"))
            self._board = self._open.enter_context(TensorBoardWriter(self._workdir / "tensorboard", start_step=self._start_step))
            self._progress = self._open.enter_context(ProgressBar(self._console, total=self._total, start_step=self._start_step))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def write(self, step: int, means: Mapping[str, float], pace: Mapping[str, float]) -> None:
        """Log the metrics' means since the last line, and the speed."""
        if self._writes:
            self._log.write(step, means)
            self._speed.write(step, pace)
            self._board.write(step, {**means, **pace})
            self._progress.update(step, means, pace)


class MetricLog:
    """Appends to `path`; lines after `start_step` (of a run that was killed after its last checkpoint) are dropped."""

    def __init__(self, path: AnyPath, *, start_step: int):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept_lines = [line for number, line in enumerate(lines, 1) if _step(path, number, line, len(lines)) <= start_step]
        write_text(path, "".join(line + "\n" for line in kept_lines))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step with full precision."""
        append(self.path, json.dumps({"step": step, **values}) + "\n")


class TensorBoardWriter:
    """Scalars for TensorBoard, in `folder`; it hides steps after `start_step` of an earlier run."""

    def __init__(self, folder: AnyPath, *, start_step: int):
        self._folder, self._start_step = folder, start_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""
        for name, value in values.items():
            self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))
        self._add()
        if is_remote(self._folder):
            upload(self._local_folder, self._folder)

    def __enter__(self) -> "TensorBoardWriter":
        with ExitStack() as opened:
            self._local_folder = opened.enter_context(upload_on_exit(self._folder))
            with write_errors(self._folder):
                name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"  # TensorBoard reads them in this order
                self._events = RecordWriter((self._local_folder / name).open("wb"))  # not its EventFileWriter, whose thread hides errors
            opened.callback(self._events.close)
            self._add(Event(file_version="brain.Event:2"))
            self._add(Event(step=self._start_step + 1, session_log=SessionLog(status=SessionLog.START)))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with write_errors(self._folder):
            self._opened.close()

    def _add(self, *events: Event) -> None:
        """Write events; without any, flush."""
        with write_errors(self._folder):
            for event in events:
                event.wall_time = time.time()
                self._events.write(event.SerializeToString())
            if not events:
                self._events.flush()


def _step(path: AnyPath, number: int, line: str, lines: int) -> float:
    """The step of a line; a last line that a kill has torn counts as later than all."""
    try:
        return float(json_loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        if number == lines:
            return float("inf")
        raise InputError(f"{path}, line {number}: is not a log line ({error}). Remove the line, or use another workdir.") from error
