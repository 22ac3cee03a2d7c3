"""Painting and training on several devices of one machine: equal results, speed and memory beside one device, a stop and a kill.

    python benchmarks/several_devices.py -o build/several_devices.md --devices 1,2,4      full-size model, random weights, synthetic data
    python benchmarks/several_devices.py -o build/rehearsal.md --rehearse                 eight simulated CPU devices and a tiny model

Every step is a process of its own (or several) with a time limit; one that fails is noted and the next one begins. Steps that compare
results run side by side, then steps that measure time one by one. Results are kept in
OUTPUT.jsonl as they come, and the table OUTPUT is written anew after each. No step begins that may not end within `--minutes`; the same
call goes on with those that are missing. Numbers of simulated devices say whether the script works, and nothing about speed.
"""

import argparse
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.several_devices_table import mesh_name, table  # noqa: E402

Row = dict[str, Any]
GRACE = 10.0  # seconds that other processes have to end when one is killed
EACH = 3  # steps of training between two stops
# `dim train` on random pictures: what goes on with other devices than it was saved on.
RUN = {
    "data.source": "synthetic", "data.batch_size": "8", "data.shift": "0", "data.workers": "0", "optim.warmup_steps": "0",
    "optim.cosine": "False", "optim.learning_rate": "2e-5", "train.log_every": "1", "train.save_every": str(EACH), "train.show_every": "0",
    "model.dtype": "float32",
}  # fmt: skip
NANO = {"data.resolution": "64"}
TINY = {"data.resolution": "32", "model.autoencoder": "tiny"}


@dataclass(frozen=True)
class Sizes:
    """What is measured: of the model, the pictures, the sampler and the batches."""

    size: str = "full"
    side: int = 1024
    text_tokens: int = 330
    num_steps: int = 30  # of the sampler
    rows: int = 4  # painted on a device at once
    batch: int = 16  # of a training step, over all devices
    remat: str = "products"
    repeats: int = 10
    config: str = "nano_edit"  # of the runs that are stopped
    limit: int = 240  # seconds of a step


REHEARSAL = Sizes("tiny", 64, 20, 2, 1, 8, "none", 8, "nano_autoencoder", 240)


@dataclass(frozen=True)
class Step:
    """A name for people and for what is there already, how many devices, what runs, and whether its speed matters."""

    name: str
    devices: int
    run: Callable[["Machine", Path], Iterator[Row]]
    timed: bool = True


class Machine:
    """Starts the processes of a step, which see so many of the devices, and ends what does not end within `limit` seconds.

    Where `timed` is False they share the devices with others and compile quickly, to slower programs.
    """

    def __init__(self, *, simulated: bool, limit: float, timed: bool = True):
        self.simulated, self.limit, self.timed = simulated, limit, timed
        self.deadline = time.monotonic() + limit

    def environments(self, devices: int, count: int) -> list[dict[str, str]]:
        """Of `count` processes that share the first `devices` devices."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        base = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        environments, each = [], devices // count
        for i in range(count):
            env = base | {"JAX_NUM_PROCESSES": str(count), "JAX_TRACEBACK_FILTERING": "off"}  # the last line names the error
            if count > 1:
                env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_PROCESS_ID": str(i)}
            if self.simulated:
                flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={each}"
                env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles twice as fast
            else:
                env |= {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(i * each, (i + 1) * each)))}
                if not self.timed:
                    env |= {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()}
                    env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            environments.append(env)
        return environments

    def start(self, command: list[str], log: Path, devices: int, count: int = 1) -> list[subprocess.Popen]:
        """`command` in `count` processes; the first one's output goes to `log`, the errors of all to `log`.err."""
        with log.open("w") as out, log.with_suffix(".err").open("w") as errors:
            return [
                subprocess.Popen(
                    [sys.executable, *command], stdout=subprocess.DEVNULL if i else out, stderr=errors, env=env, start_new_session=True
                )
                for i, env in enumerate(self.environments(devices, count))
            ]  # fmt: skip

    def wait(self, running: list[subprocess.Popen], log: Path) -> None:
        """Until all have ended. Raises RuntimeError where one fails or takes too long; none is left then."""
        try:
            for process in running:
                if process.wait(max(1.0, self.deadline - time.monotonic())):
                    raise RuntimeError(f"exit code {process.returncode}: {last_line(log.with_suffix('.err'))}")
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"took longer than {self.limit:.0f} s") from error
        finally:
            end(running)

    def results(self, work: Row, folder: Path, devices: int, count: int = 1) -> Iterator[Row]:
        """The rows of a step of several_devices_steps.py; those that came before a failure too."""
        log = folder / "output"
        running = self.start([str(ROOT / "benchmarks/several_devices_steps.py"), json.dumps(work)], log, devices, count)
        try:
            self.wait(running, log)
        finally:
            yield from (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))


def end(running: list[subprocess.Popen]) -> None:
    """Kill what still runs of processes that we started, with all that they started."""
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss, as a run logged it."""
    log = workdir / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def difference(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """The largest relative difference of two curves, which must be as long."""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"one run logged the steps {sorted(ours)}, the other {sorted(theirs)}")
    return max(abs(ours[step] - loss) / abs(loss) for step, loss in theirs.items())


def command_of(sizes: Sizes, workdir: Path, steps: int, **mesh: int) -> list[str]:
    """`dim train` up to a step on a mesh."""
    values = RUN | (NANO if sizes.config == "nano_edit" else TINY) | {f"sharding.{axis}": str(size) for axis, size in mesh.items()}
    options = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["-m", "dim_jax.cli", "train", "--config", sizes.config, "--workdir", str(workdir), "--steps", str(steps), *options]


def resumed(sizes: Sizes, counts: list[int]) -> Step:
    """A run that is saved on one number of devices and goes on with another beside one that nothing interrupts."""
    way = [*sorted(counts, reverse=True), max(counts)]

    def run(machine: Machine, folder: Path) -> Iterator[Row]:
        for i, devices in enumerate(way, 1):
            log = folder / f"{i}"
            machine.wait(machine.start(command_of(sizes, folder / "parts", i * EACH, fsdp=devices), log, devices), log)
        machine.wait(machine.start(command_of(sizes, folder / "whole", len(way) * EACH), log := folder / "one", 1), log)
        off = difference(losses(folder / "parts"), losses(folder / "whole"))
        yield {"kind": "resume", "way": way, "steps": len(way) * EACH, "difference": off}

    return Step(f"resume {way}", max(way), run, timed=False)


def killed(sizes: Sizes, devices: int) -> Step:
    """A run of one process a device, of which one is killed, and which one process goes on with."""

    def run(machine: Machine, folder: Path) -> Iterator[Row]:
        parts, log = folder / "parts", folder / "several"
        running = machine.start(command_of(sizes, parts, 100_000, data=devices), log, devices, devices)
        try:
            while len(losses(parts)) <= EACH + 1 and time.monotonic() < machine.deadline:
                if codes := [process.returncode for process in running if process.poll() is not None]:
                    raise RuntimeError(f"exit code {codes[0]}: {last_line(log.with_suffix('.err'))}")
                time.sleep(0.01)
            os.kill(running[-1].pid, signal.SIGKILL)
            since = time.monotonic()
            while any(process.poll() is None for process in running) and time.monotonic() < since + GRACE:
                time.sleep(0.1)
        finally:
            end(running)
        saved = max((int(path.name) for path in (parts / "checkpoints").iterdir() if path.name.isdecimal()), default=0)
        for workdir, name in ((parts, "on"), (folder / "whole", "one")):
            machine.wait(machine.start(command_of(sizes, workdir, saved + EACH), folder / name, 1), folder / name)
        off = difference(losses(parts), losses(folder / "whole"))
        yield {"kind": "kill", "processes": devices, "saved": saved, "steps": saved + EACH, "difference": off}

    return Step(f"kill one of {devices} processes", devices, run, timed=False)


def child(name: str, work: Row, devices: int, count: int = 1, *, timed: bool = True) -> Step:
    return Step(name, devices, lambda machine, folder: machine.results(work, folder, devices, count), timed)


def plan(sizes: Sizes, counts: list[int], *, simulated: bool) -> list[Step]:
    """The steps, what matters most first."""
    most, several = max(counts), [count for count in counts if count > 1]
    common = {"size": sizes.size, "side": sizes.side, "text_tokens": sizes.text_tokens, "repeats": sizes.repeats}

    def paint(mesh: Row) -> Step:
        work = {"kind": "paint", "mesh": mesh, "num_steps": sizes.num_steps, "rows": sizes.rows} | common
        return child(f"paint {mesh_name(mesh)}", work, math.prod(mesh.values()))

    def train(mesh: Row, part: str = "cached", batch: int = sizes.batch, count: int = 1) -> Step:
        work = {"kind": "train", "part": part, "mesh": mesh, "batch": batch, "remat": sizes.remat, "processes": count} | common
        return child(f"train {part} {mesh_name(mesh)}, {batch} rows, {count} processes", work, math.prod(mesh.values()), count)

    def equal(mesh: Row, dtype: str) -> Step:
        work = {"kind": "equal", "mesh": mesh, "dtype": dtype, "num_steps": 2 if simulated else 30}
        return child(f"equal {mesh_name(mesh)} {dtype}", work, math.prod(mesh.values()), timed=False)

    first = [paint({}), paint({"data": most}), train({}), train({"fsdp": most}), train({}, batch=sizes.batch // most)]
    first += [resumed(sizes, [1, 2] if simulated else counts), killed(sizes, 2)]
    if simulated:
        return [*first, train({"fsdp": 2}, count=2), equal({"data": 2, "fsdp": 2, "tensor": 2}, "float32")]
    first += [train({"fsdp": most}, count=most), equal({"fsdp": most}, "float32"), equal({"fsdp": most}, "bfloat16")]
    more = [train({"data": most}), train({"tensor": 2}), paint({"fsdp": most}), paint({"tensor": 2})]
    more += [train({}, "online"), train({"fsdp": most}, "online"), train({}, "online", sizes.batch // most)]
    for count in several:
        if count != most:
            more += [paint({"data": count}), train({"fsdp": count}), train({}, batch=sizes.batch // count)]
    return first + more + [equal({axis: 2}, dtype) for axis in ("data", "tensor") for dtype in ("float32", "bfloat16")]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown to write")
    parser.add_argument("--devices", default="1,2", help="numbers of devices, each a multiple of the one before")
    parser.add_argument("--rehearse", action="store_true", help="simulated devices, a tiny model")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all steps together")
    parser.add_argument("--only", default="", help="steps whose names begin with this, such as train")
    args = parser.parse_args(arguments)
    sizes, counts = (REHEARSAL, [1, 8]) if args.rehearse else (Sizes(), sorted({1, *map(int, args.devices.split(","))}))
    if max(counts) < 2:
        parser.error("name at least two devices: --devices 1,2")
    results, work = args.output.with_suffix(".jsonl"), args.output.with_suffix(".work")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {row["step"] for row in rows if "failed" not in row}
    rows = [row for row in rows if row["step"] in done]  # what failed is tried again
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((work / "compiled").resolve()))
    end_time, writing = time.monotonic() + 60 * args.minutes, threading.Lock()

    def execute(step: Step) -> None:
        """Run a step, if there is time for it, and write down what it measured or why it failed."""
        left = end_time - time.monotonic()
        if left < sizes.limit / 4:
            print(f"no time left for: {step.name}", flush=True)
            return
        since, folder = time.monotonic(), work / step.name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        failed: Row = {}
        measured: list[Row] = []
        try:
            measured += step.run(Machine(simulated=args.rehearse, limit=min(sizes.limit, left), timed=step.timed), folder)
        except (RuntimeError, OSError) as error:
            failed = {"failed": str(error)}
        seconds = round(time.monotonic() - since, 1)
        with writing:
            rows.extend(row | {"step": step.name, "devices": step.devices, "seconds": seconds} | failed for row in measured or [{}])
            results.write_text("".join(json.dumps(row) + "\n" for row in rows))
            args.output.write_text(table(rows) + "\n")
            print(f"{step.name}: {failed.get('failed', 'done')} ({seconds} s)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)

    missing = [step for step in plan(sizes, counts, simulated=args.rehearse) if step.name not in done and step.name.startswith(args.only)]
    for timed, at_once in ((False, 1 if args.rehearse else len(missing)), (True, 1)):
        with ThreadPoolExecutor(max(1, at_once)) as pool:
            list(pool.map(execute, [step for step in missing if step.timed == timed]))
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
