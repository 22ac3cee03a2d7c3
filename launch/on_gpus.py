#!/usr/bin/env python3
"""Run the commands of standard input on the GPUs of this machine, so many at once on each, each as soon as what it needs is there.

    jobs | python launch/on_gpus.py --per-gpu 2 --time-limit 900 -- COMMAND

A line is `OUTPUT [NEED ...] -- COMMAND ...`, quoted as a shell reads it. A command makes the file or folder OUTPUT; where that is there,
it is not run, so a second call goes on where the first one stopped. It starts once every NEED is there; of those that may start, the one
that comes first in the list. What it says goes to OUTPUT.log. After a failure what needs it is left out and the rest goes on.

COMMAND is run at the end, whatever failed. SIGTERM and Ctrl-C are passed on, and so is the end of the time limit, as SIGTERM; after a
signal COMMAND is left out. The exit code is 0, or 1 if something is missing; after a signal 128 and its number.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

GRACE = 60.0  # seconds that a command has to end after SIGTERM: a training run saves its step


class Job(NamedTuple):
    """A command, the path that it makes, and those that must be there before."""

    output: Path
    needs: tuple[Path, ...]
    command: list[str]

    @classmethod
    def read(cls, line: str) -> "Job":
        """A line of standard input. Raises SystemExit if it is no job."""
        try:
            paths, dashes, command = _split(shlex.split(line))
        except ValueError:  # a quotation that does not end
            paths, dashes, command = [], [], []
        if not paths or not dashes or not command or not Path(paths[0]).name or "\0" in line:
            sys.exit(f"error: {line.strip()}: write OUTPUT [NEED ...] -- COMMAND.")
        output, *needs = map(Path, paths)
        return cls(output, tuple(needs), command)

    @property
    def log(self) -> Path:
        return self.output.with_name(f"{self.output.name}.log")

    def start(self, gpu: str, per_gpu: int) -> subprocess.Popen:
        """Begin, on one GPU. Its memory is shared in equal parts."""
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        if per_gpu > 1:
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / per_gpu:.3f}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # Of its own session, or Ctrl-C would reach it twice.
            return subprocess.Popen(self.command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


class Running(NamedTuple):
    job: Job
    gpu: str
    start: float


class Runner:
    """Runs jobs until none is left, a signal comes, or the time is over."""

    def __init__(self, gpus: list[str], per_gpu: int, time_limit: float):
        self._gpus, self._per_gpu = gpus, per_gpu
        self._start, self._time_limit = time.monotonic(), time_limit
        self._running: dict[subprocess.Popen, Running] = {}
        self.signal = 0

    def run(self, jobs: list[Job]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        waiting = [job for job in jobs if not job.output.exists()]
        try:
            while (waiting or self._running) and not self._stopped():
                self._report()
                gpu = min(self._gpus, key=self._load)
                job = next((job for job in waiting if self._may_start(job)), None)
                if job and self._load(gpu) < self._per_gpu:
                    waiting.remove(job)
                    self._say(f"GPU {gpu}: {shlex.join(job.command)}")
                    try:
                        self._running[job.start(gpu, self._per_gpu)] = Running(job, gpu, time.monotonic())
                    except OSError as error:
                        self._say(f"GPU {gpu}: {job.output} cannot be made: {error}")
                elif self._running:
                    time.sleep(0.1)
                else:
                    break  # what is left needs what failed
        finally:
            self._end()

    def _stopped(self) -> bool:
        return bool(self.signal) or time.monotonic() - self._start > self._time_limit

    def _may_start(self, job: Job) -> bool:
        made = [running.job.output for running in self._running.values()]  # which may be there, and not whole
        return all(need.exists() and need not in made for need in job.needs)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signal = number

    def _load(self, gpu: str) -> int:
        return sum(running.gpu == gpu for running in self._running.values())

    def _report(self) -> None:
        """Take out what has ended."""
        for process in [process for process in self._running if process.poll() is not None]:
            job, gpu, start = self._running.pop(process)
            seconds = f"after {time.monotonic() - start:.0f} s"
            if process.returncode == 0 and job.output.exists():
                self._say(f"GPU {gpu}: made {job.output} {seconds}")
            else:
                last = job.log.read_text(errors="replace").strip().rpartition("\n")[2]
                self._say(f"GPU {gpu}: exit code {process.returncode} {seconds}, without {job.output}; {job.log} ends: {last}")

    def _end(self) -> None:
        """Stop what still runs."""
        for process in self._running:
            process.terminate()
        deadline = time.monotonic() + GRACE
        while self._running and time.monotonic() < deadline:
            self._report()
            time.sleep(0.1)
        for process in self._running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._report()

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.0f} s] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=_positive, metavar="N", help="use so many; default: all of the machine, or of CUDA_VISIBLE_DEVICES")
    parser.add_argument("--per-gpu", type=_positive, default=1, metavar="M", help="commands at once on each (1)")
    parser.add_argument("--time-limit", type=_positive, metavar="SECONDS", help="stop what still runs then")
    parser.add_argument("--dry-run", action="store_true", help="only show the commands")
    options, _, then = _split(sys.argv[1:])
    args = parser.parse_args(options)
    jobs = [Job.read(line) for line in sys.stdin or () if line.strip()]
    outputs = [job.output for job in jobs]
    if twice := sorted({str(output) for output in outputs if outputs.count(output) > 1}):
        sys.exit(f"error: {', '.join(twice)}: more than one command makes it.")
    if args.dry_run:
        for command in (*(job.command for job in jobs), *([then] if then else [])):
            print(shlex.join(command))
        return 0
    if absent := {words[0] for words in (*(job.command for job in jobs), then) if words and shutil.which(words[0]) is None}:
        sys.exit(f"error: {', '.join(sorted(absent))}: no such program on PATH.")
    runner = Runner(_gpus()[: args.gpus], args.per_gpu, args.time_limit or float("inf"))
    runner.run(jobs)
    if runner.signal:
        return 128 + runner.signal
    missing = [job.output for job in jobs if not job.output.exists()]
    if missing:
        print(f"missing: {', '.join(map(str, missing))}. The same command goes on.", flush=True)
    code = subprocess.run(then, check=False).returncode if then else 0
    return code or int(bool(missing))


def _gpus() -> list[str]:
    """Names as CUDA_VISIBLE_DEVICES takes them; without GPUs one, so that the commands run on the CPU."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1)]


def _split(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The words before a "--", that, and those after it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at : at + 1], words[at + 1 :]


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: write a number from 1 on")
    return int(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # while the lines are read
        sys.exit(128 + signal.SIGINT)
