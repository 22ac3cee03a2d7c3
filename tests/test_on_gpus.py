"""launch/on_gpus.py: commands run on the GPUs as soon as what they need is there; failures, signals and bad lines are named."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def on_gpus(folder: Path, lines: list[str], *options: str) -> subprocess.CompletedProcess:
    """Run lines on two GPUs, of which there are none, with a command at the end."""
    return subprocess.run(
        [str(ROOT / "launch/on_gpus.py"), *options, "--", "touch", "table"], input="\n".join(lines), cwd=folder, capture_output=True,
        text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": "4,6"}, timeout=60,
    )  # fmt: skip


def test_commands_run_beside_each_other_and_after_what_they_need(tmp_path):
    (tmp_path / "there").touch()
    alone = "mkdir busy.$CUDA_VISIBLE_DEVICES; sleep 0.3; rmdir busy.$CUDA_VISIBLE_DEVICES"
    lines = [f"sub/{name} -- sh -ec {shlex.quote(f'{alone}; echo $CUDA_VISIBLE_DEVICES > sub/{name}')}" for name in "abcd"]
    # It makes its file at once, and is not through: what needs it waits.
    early = "sh -ec 'touch early; sleep 0.3; echo whole > early'"
    lines = ["last early there -- cp early last", "there -- false", *lines, f"early sub/a -- {early}", "never nothing -- touch never"]
    result = on_gpus(tmp_path, lines)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "missing: never. The same command goes on."
    assert sorted((tmp_path / f"sub/{name}").read_text() for name in "abcd") == ["4\n", "4\n", "6\n", "6\n"]
    assert (tmp_path / "last").read_text() == "whole\n"
    assert (tmp_path / "table").exists()
    assert on_gpus(tmp_path, lines[:-1]).stdout == ""


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path):
    result = on_gpus(tmp_path, ["a -- sh -c 'echo no memory; exit 3'", "b a -- touch b", "c -- touch c", "d -- true"], "--per-gpu=2")
    assert result.returncode == 1
    assert re.search("exit code 3 after [0-9]+ s, without a; a.log ends: no memory", result.stdout)
    assert re.search("exit code 0 after [0-9]+ s, without d", result.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {"a.log", "c", "c.log", "d.log", "table"}
    for line in ("a touch a", "a -- sh -c 'touch a", ". -- touch a", "a\0 -- touch a"):
        assert on_gpus(tmp_path, [line]).stderr == f"error: {line}: write OUTPUT [NEED ...] -- COMMAND.\n"
    assert on_gpus(tmp_path, ["a -- touch a", "./a -- touch a"]).stderr == "error: a: more than one command makes it.\n"
    result = on_gpus(tmp_path, ["/proc/none/a -- touch a", "e -- touch e"])
    assert "/proc/none/a cannot be made: " in result.stdout
    assert (result.returncode, result.stderr, (tmp_path / "e").exists()) == (1, "", True)
    assert on_gpus(tmp_path, ["a -- no-such-program"]).stderr == "error: no-such-program: no such program on PATH.\n"


def test_at_the_time_limit_what_runs_is_stopped_and_the_table_made(tmp_path):
    saving = "trap 'touch saved; exit 75' TERM; touch began; while :; do sleep 0.1; done"
    result = on_gpus(tmp_path, [f"a -- sh -c {shlex.quote(saving)}", "b a -- touch b"], "--time-limit=1")
    assert result.returncode == 1
    assert "exit code 75" in result.stdout
    assert {"saved", "table"} <= {path.name for path in tmp_path.iterdir()}

    command = [str(ROOT / "launch/on_gpus.py"), "--", "touch", "after"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        for name in ("began", "saved"):
            (tmp_path / name).unlink()
        assert running.stdin is not None
        running.stdin.write(f"a -- sh -c {shlex.quote(saving)}\n")
        running.stdin.close()
        while not (tmp_path / "began").exists():
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "after").exists()
