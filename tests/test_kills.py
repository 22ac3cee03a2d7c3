"""Runs that are stopped again and again, by SIGTERM and by SIGKILL at random times, log what an uninterrupted one does, bit for bit.

`make soak` does it more often: DIM_KILLS is the number of kills.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from dim_jax.training.resume import latest_step
from dim_jax.training.supervision import STOPPED
from tests.started import Started, started, with_devices
from tests.test_train import CONFIGS, arguments, log, train

KILLS = int(os.environ.get("DIM_KILLS", "2"))
EVERY = 3  # steps between saves; there are two between lines of the log, so that most saves are between lines
HOW = {"train__save_every": str(EVERY), "train__log_every": "2"}


def running(workdir: Path, config: str = "nano_encoder", **changes: str) -> AbstractContextManager[Started]:
    """A run in a process of its own, which would go on for long and is killed at the end."""
    command = [sys.executable, "-m", "dim_jax.cli", *arguments(config, workdir, 100_000, **HOW | changes)]
    return started(workdir.with_suffix(".output"), command)


def lines(workdir: Path) -> int:
    path = workdir / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_lines(run: Started, workdir: Path, count: int) -> None:
    """Until so many lines were logged since now, or since the log was last cut."""
    least = lines(workdir)

    def logged() -> bool:
        nonlocal least
        now = lines(workdir)
        least = min(least, now)
        return now >= least + count

    run.wait_until(logged)


def last_logged(workdir: Path) -> int:
    """The last step of a whole line; 0 without one."""
    steps = [json.loads(line)["step"] for line in (workdir / "log.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return max(steps, default=0)


def exact(workdir: Path) -> list[dict[str, str]]:
    return [{name: float(value).hex() for name, value in line.items()} for line in log(workdir)]


def test_a_run_that_is_stopped_again_and_again(tmp_path):
    """Once by SIGTERM, which loses no step, then by SIGKILL, which loses those after the last checkpoint that was whole."""
    workdir, saves, rng = tmp_path / "stopped", tmp_path / "stopped/checkpoints", np.random.default_rng(KILLS)
    with running(workdir) as run:
        wait_for_lines(run, workdir, 2)
        time.sleep(rng.uniform(0, 0.5))
        run.process.send_signal(signal.SIGTERM)
        code, said = run.ended()
    assert code == STOPPED, said
    saved = latest_step(saves)
    assert f"SIGTERM: the same command goes on after step {saved}\n" in said
    assert last_logged(workdir) <= saved <= last_logged(workdir) + 1

    kills = []
    for _ in range(KILLS):
        with running(workdir) as run:
            if rng.random() < 0.8:
                wait_for_lines(run, workdir, int(rng.integers(1, 8)))
                time.sleep(rng.uniform(0, 0.3))
            else:
                time.sleep(rng.uniform(0, 5))  # perhaps while it starts
        logged, before, saved = last_logged(workdir), saved, latest_step(saves)
        begun = (logged - 1) // EVERY * EVERY  # the last save that was surely begun, and so the one before it was surely whole
        assert saved >= max(before, begun - EVERY)
        kills.append((logged, saved, any(not path.name.isdecimal() for path in saves.iterdir())))
        with (workdir / "log.jsonl").open("a") as file:
            file.write('{"step"')  # as a kill may cut off a line

    total = 2 * (saved // 2) + 4  # where a line is due
    code, said = train("nano_encoder", workdir, total, **HOW)
    assert code == 0, said
    assert f"going on after step {saved}\n" in said
    assert train("nano_encoder", tmp_path / "whole", total, **HOW | {"train__save_every": str(total)})[0] == 0
    assert exact(workdir) == exact(tmp_path / "whole")
    assert len(exact(workdir)) == total // 2
    print(f"\n{KILLS} kills, {sum(during for *_, during in kills)} of them during a save; (logged, saved) steps: {kills}")


FLOAT32 = {"data__batch_size": "8", "model__dtype": "float32", "optim__learning_rate": "2e-4"}
FLOAT32 |= {"train__save_every": "3"}


def on_eight_devices(workdir: Path, steps: int) -> None:
    """Train with every parameter cut into eight, in a process of its own: the number of devices is fixed when JAX starts."""
    command = [sys.executable, "-m", "dim_jax.cli", *arguments("nano_encoder", workdir, steps, sharding__fsdp="8", **FLOAT32)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent, env=with_devices(8), check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif("DIM_KILLS" not in os.environ, reason="compiles for minutes: make soak; test_sharding.py tests the same in one process")
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    """From one to eight and from eight to one: the losses are those of a run that stayed on one, but for rounding."""
    one, fewer, more = (tmp_path / name for name in ("one", "fewer", "more"))
    assert train("nano_encoder", one, 6, **FLOAT32)[0] == 0
    shutil.copytree(one, more)
    shutil.rmtree(more / "checkpoints/6")
    on_eight_devices(more, 6)
    on_eight_devices(fewer, 3)
    code, text = train("nano_encoder", fewer, 6, **FLOAT32)
    assert code == 0, text
    assert "going on after step 3" in text
    wanted = [line["loss"] for line in log(one)]
    assert len(set(wanted)) == 6
    for run in (more, fewer):
        found = [line["loss"] for line in log(run)]
        assert found != wanted  # it was another program
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        print(f"\n{run.name} devices: {max(abs(np.divide(found, wanted) - 1)):.1e} of the losses")
