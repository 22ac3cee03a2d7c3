"""benchmarks/several_devices.py: what fails or takes too long is noted, what is there is kept, and the table says it."""

import time
from pathlib import Path

import pytest

from benchmarks import several_devices as script
from benchmarks.several_devices import Machine, Sizes, Step, plan
from benchmarks.several_devices_table import table


@pytest.mark.parametrize(("counts", "simulated"), [([1, 2], False), ([1, 2, 4], False), ([1, 8], False), ([1, 8], True)])
def test_every_step_has_a_name_and_devices_that_are_there(counts, simulated):
    steps = plan(Sizes(), counts, simulated=simulated)
    assert len({step.name for step in steps}) == len(steps)
    assert max(step.devices for step in steps) == max(counts)


@pytest.fixture
def machine() -> Machine:
    machine = Machine(simulated=True, limit=1)
    machine.deadline = time.monotonic() + 60
    return machine


def test_a_failure_says_why_and_ends_the_others(machine, tmp_path):
    code = "import os, sys, time; sys.exit('no such thing') if os.environ['JAX_PROCESS_ID'] == '0' else time.sleep(600)"
    running = machine.start(["-c", code], tmp_path / "log", 4, 2)
    with pytest.raises(RuntimeError, match="exit code 1: no such thing"):
        machine.wait(running, tmp_path / "log")
    assert all(process.poll() is not None for process in running)


def test_step_timeout_ends_processes(machine, tmp_path):
    machine.deadline = 0.0
    running = machine.start(["-c", "import time; time.sleep(600)"], tmp_path / "log", 1)
    with pytest.raises(RuntimeError, match="took longer than 1 s"):
        machine.wait(running, tmp_path / "log")
    assert running[0].poll() is not None


def test_each_process_sees_its_own_devices():
    assert [env["CUDA_VISIBLE_DEVICES"] for env in Machine(simulated=False, limit=1).environments(4, 2)] == ["0,1", "2,3"]
    simulated = Machine(simulated=True, limit=1).environments(4, 2)
    assert [env["XLA_FLAGS"].split()[-1] for env in simulated] == ["--xla_force_host_platform_device_count=2"] * 2
    assert [env["JAX_PROCESS_ID"] for env in simulated] == ["0", "1"]


def test_a_failed_step_ends_nothing_and_is_tried_again(tmp_path, monkeypatch, capsys):
    calls: list[str] = []

    def step(name: str) -> Step:
        def run(machine, folder: Path):
            calls.append(name)
            yield {"kind": "kill", "processes": 2, "saved": 3, "steps": 6, "difference": 1e-7}
            if calls == ["first"]:
                raise RuntimeError("exit code 9: it broke")

        return Step(name, 2, run)

    monkeypatch.setattr(script, "plan", lambda sizes, counts, **options: [step("first"), step("second")])
    output = tmp_path / "table.md"
    script.main(["-o", str(output)])
    assert "- failed: first: exit code 9: it broke" in output.read_text()
    assert output.read_text().count("SIGKILL of one of 2 processes: one process went on after step 3; 6 losses, at most 1.0e-07") == 1
    script.main(["-o", str(output)])
    assert calls == ["first", "second", "first"]
    assert "failed" not in output.read_text()
    script.main(["-o", str(output), "--minutes", "0"])
    assert calls == ["first", "second", "first"]
    assert "no time left" not in capsys.readouterr().out  # nothing is missing
    with pytest.raises(SystemExit):
        script.main(["-o", str(output), "--devices", "1"])


def test_the_table_compares_with_one_device():
    common = {"step": "x", "peak_gib": 0.0, "device": "chip", "version": "jax 1", "compile_s": 9.0}
    paint = [{"kind": "paint", "mesh": mesh, "batch": batch, "ms": ms} for mesh, batch, ms in (
        ({}, 1, 600.0), ({}, 4, 2000.0), ({"data": 2}, 1, 300.0), ({"data": 2}, 8, 2500.0),
    )]  # fmt: skip
    train = [
        {"kind": "train", "part": "cached", "processes": 1, "mesh": mesh, "batch": batch, "ms": ms, "losses": losses}
        for mesh, batch, ms, losses in (
            ({}, 8, 190.0, [1.0, 2.0]), ({}, 4, 96.0, [5.0, 6.0]), ({"fsdp": 2}, 8, 100.0, [1.0, 2.002]),
        )
    ]  # fmt: skip
    text = table([row | common for row in (*paint, *train)])
    assert text.startswith("chip, jax 1; ")
    assert "| data=2 | 1 | 0.300 | 3.33 | 2.00 |" in text
    assert "| data=2 | 8 | 2.500 | 3.20 | 1.60 |" in text
    assert "| cached | fsdp=2 | 1 | 8 | 0.100 | 80.00 | 96% | 1.0e-03 |" in text
