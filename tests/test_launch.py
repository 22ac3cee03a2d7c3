"""Launch scripts: a dry run shows commands that exist; what is wrong is refused; a run goes on where machines are lost."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dim_jax.training.supervision import HUNG, STOPPED
from tests.painter_fixtures import parse

ROOT = Path(__file__).parents[1]
SCRIPTS = ("first_run.sh", "gpu_node.sh", "nano.sh", "nano_claim.sh", "nano_ladder.sh", "slurm.sbatch", "tpu_pod.sh", "xpk.sh")
RUN = ("--", "--config", "configs/edit_stage2.py", "--workdir", "gs://my-bucket/run", "--set", "data.text=it's 'told' $HOME")
POD = ("--project=p", "--zone=z", "--name=pod", "--type=v5litepod-16", "--runtime=v2-alpha-tpuv5-lite")
GKE = ("--project=p", "--zone=z", "--cluster=c", "--name=run", "--type=v6e-64")
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]

# Programs in place of the real ones: each notes its arguments, and answers with the next line of its file: exit code, what it prints.
FAKE = f"""#!{sys.executable}
import json, pathlib, sys
folder, name = pathlib.Path(__file__).parents[1], pathlib.Path(__file__).name
with (folder / "calls").open("a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
verb = next((word for word in ("describe", "create", "ssh", "scp", "delete") if word in sys.argv), name)
answers = folder / verb
first, *others = answers.read_text().splitlines() if answers.exists() else ["0"]
if others:
    answers.write_text("\\n".join(others))
code, _, text = first.partition(" ")
print(text)
sys.exit(int(code))
"""


def launch(script: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | ({} if path is None else {"PATH": f"{path}:{os.environ['PATH']}", "TMPDIR": str(path.parent)})
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, env=environment, timeout=300
    )


def shown(script: str, *arguments: str) -> list[list[str]]:
    """The commands of a dry run, as a shell reads them."""
    result = launch(script, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    return [words for line in result.stdout.splitlines() if (words := shlex.split(line, comments=True))]


class Programs:
    """Fakes on PATH, what they shall answer, and what they were called with."""

    def __init__(self, folder: Path):
        self._folder, self.path = folder, folder / "bin"
        self.path.mkdir()
        for name in ("gcloud", "xpk", "sbatch", "srun", "scontrol", "dim", "sleep", "git"):
            (self.path / name).write_text(FAKE)
            (self.path / name).chmod(0o755)

    def answer(self, verb: str, *answers: str) -> None:
        (self._folder / verb).write_text("\n".join(answers))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self._folder / "calls").read_text().splitlines()]

    def verbs(self, *of: str) -> list[str]:
        """Which of these words the calls name, in order."""
        return [verb for call in self.calls for verb in of if verb in call]


@pytest.fixture
def programs(tmp_path) -> Programs:
    return Programs(tmp_path)


# All


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None
    command = [program, "--external-sources", *(f"launch/{name}" for name in (*SCRIPTS, "common.sh"))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_how_it_is_used(script):
    result = launch(script, "--help")
    assert result.returncode == 0
    assert f"launch/{script} " in result.stdout
    assert "--dry-run" in result.stdout
    assert "set -euo" not in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_pod.sh", ("run", "--name=pod", *RUN), "missing: --project --zone."),
        ("tpu_pod.sh", ("run", *POD[:3], *RUN), "missing: --type --runtime."),
        ("tpu_pod.sh", ("run", *POD), "give the arguments of dim train after --, with --config and --workdir."),
        ("tpu_pod.sh", ("run", *POD, "--", "--config", "a", "--workdir", "runs/a"), "--workdir runs/a: it must outlive the machines"),
        ("tpu_pod.sh", ("run", *POD, "--spot", "--reserved", *RUN), "--spot and --reserved exclude each other."),
        ("tpu_pod.sh", ("run", *POD, "--slices=two", *RUN), "--slices two: give a number from 1 on."),
        ("tpu_pod.sh", ("rnu", *POD, *RUN), "there is no command rnu: give run, create, install, train or delete."),
        ("tpu_pod.sh", ("run", *POD, "--zones", "z", *RUN), "there is no option --zones."),
        ("tpu_pod.sh", ("run", "--zone"), "--zone needs a value."),
        ("tpu_pod.sh", ("run", "--spot=yes"), "there is no option --spot with a value."),
        ("xpk.sh", ("create", "--cluster=c"), "missing: --project --zone."),
        ("xpk.sh", ("create", *GKE[:3], *RUN), "missing: --type --name."),
        ("xpk.sh", ("create", *GKE, "--", "--config", "a", "--workdir", "runs/a"), "--workdir runs/a: it must outlive the machines"),
        ("gpu_node.sh", ("--config", "a", "--workdir", "b"), "there is no option --config."),
        ("gpu_node.sh", ("--", "--config", "a"), "give the arguments of dim train after --, with --config and --workdir."),
        ("slurm.sbatch", ("--nodes", "2", *RUN), "2: write options of sbatch as --OPTION=VALUE"),
        ("nano_claim.sh", ("--seeds", "0 0", "data", "runs"), "--seeds 0 0: give different whole numbers."),
        ("nano_claim.sh", ("--seeds", "a[$(id)]", "data", "runs"), "--seeds a[$(id)]: give different whole numbers."),
        ("nano_claim.sh", ("--gpus", "x", "data", "runs"), "--gpus x: give a number from 1 on."),
        ("nano_ladder.sh", ("--arms", "adamw muon+mion", "data", "runs"), "--arms: there is no mion."),
        ("nano_ladder.sh", ("--arms", "muon muon", "data", "runs"), "--arms muon muon: name each arm once."),
        ("slurm.sbatch", ("--nodes=2",), "give the arguments of dim train after --, with --config and --workdir."),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(programs, script, arguments, message):
    result = launch(script, *arguments, path=programs.path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert f"launch/{script} --help says more." in result.stderr
    assert not (programs.path.parent / "calls").exists()


# nano.sh


def test_nano_shows_what_it_would_run():
    lines = shown("nano.sh", "data/nowhere", "my runs", "data.workers=2")
    assert {"emoji"} <= {line[2] for line in lines if line[1] == "build-data"} <= {"emoji", "tints", "icons"}  # the others may be there
    others = sorted(line[1] for line in lines if line[1] not in ("build-data", "prepare"))
    assert others == ["convert", "evaluate", "evaluate", *["train"] * 3]
    for line in lines:
        if "--config" in line:
            assert (ROOT / line[line.index("--config") + 1]).is_file()
            assert "data.workers=2" in line
        parse(line)


def test_nano_says_what_it_lacks():
    result = launch("nano.sh")
    assert result.returncode == 2
    assert "launch/nano.sh [--dry-run] DATA RUNS" in result.stderr


# nano_claim.sh (what it runs and writes: test_nano_claim.py)


def test_the_laboratory_shows_what_it_would_run():
    lines = shown("nano_claim.sh", "--written", "--seeds", "0 5", "--steps=9", "data/nowhere", "my runs", "data.shift=2")
    assert [line[1] for line in lines if line[0] == "python"] == ["examples/written_blueprints.py", "benchmarks/nano_claim.py"]
    commands = [line for line in lines if line[0] == "dim"]
    others = sorted(line[1] for line in commands if line[1] not in ("build-data", "prepare"))
    assert others == [*["evaluate"] * 14, *["train"] * 11]
    for line in commands:
        if "--config" in line:
            assert (ROOT / line[line.index("--config") + 1]).is_file()
            assert "data.shift=2" in line
        parse(line)


# first_run.sh


def test_first_run_shows_all_of_it_with_the_training_twice():
    lines = shown("first_run.sh", "data/mine", "my runs", "in.png", "Make it blue.", "data.resolution=256", "train.steps=20")
    assert [line[1] for line in lines] == ["prepare", "cache", "train", "train", "edit"]
    assert lines[2] == lines[3]
    assert lines[4][2:8] == ["--checkpoint", "my runs/run/model", "--image", "in.png", "--prompt", "Make it blue."]
    for line in lines:
        assert ("--config" in line) == ("train.steps=20" in line) == ("data.resolution=256" in line)
        parse(line)


# tpu_pod.sh


def test_a_dry_run_of_a_pod_shows_all_of_it():
    lines = shown("tpu_pod.sh", "run", *POD, "--spot", "--slices", "2", "--service-account=me@p.iam", *RUN)
    create, describe, archive, copy, install, train, delete = lines
    place = ["pod", "--project=p", "--zone=z"]
    options = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--node-count=2", "--node-prefix=pod", "--spot"]
    assert create == [*QUEUED, "create", *place, *options, "--service-account=me@p.iam"]
    assert describe == [*QUEUED, "describe", *place, "--format=value(state.state)"]
    assert archive[:3] == ["git", "-C", str(ROOT)]
    everywhere = ["--project=p", "--zone=z", "--node=all", "--worker=all"]
    assert copy == [*QUEUED, "scp", archive[-2].removeprefix("--output="), "pod:dim_jax.tar.gz", *everywhere]
    assert install[:-1] == train[:-1] == [*QUEUED, "ssh", "pod", *everywhere]
    assert "'./dim_jax[tpu,train,data,gcs]'" in install[-1]
    remote = shlex.split(train[-1].removeprefix("--command="))
    assert remote[:5] == ["cd", "dim_jax", "&&", "flock", "../dim_jax.lock"]
    assert tuple(remote[7:]) == RUN[1:]
    parse(["dim", *remote[6:]])
    assert delete == [*QUEUED, "delete", *place, "--force", "--quiet"]


def test_one_slice_is_asked_for_by_its_name():
    (create, _) = shown("tpu_pod.sh", "create", *POD, "--reserved")
    assert create[-2:] == ["--node-id=pod", "--reserved"]


def test_a_run_on_a_pod_waits_installs_trains_and_gives_back(programs):
    programs.answer("describe", "1", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE")
    result = launch("tpu_pod.sh", "run", *POD, *RUN, path=programs.path)
    assert result.returncode == 0, result.stderr
    assert programs.verbs("create", "scp", "ssh", "delete") == ["create", "scp", "ssh", "ssh", "delete"]


def test_a_slice_that_was_taken_away_is_made_anew_and_the_same_command_goes_on(programs):
    """Twice: while it trained (SSH loses the connection), and while SIGTERM saved (75)."""
    lost = ("0 SUSPENDING", "0 SUSPENDED", "1", "0 PROVISIONING", "0 ACTIVE")
    programs.answer("describe", "0 ACTIVE", "0 ACTIVE", *lost, *lost)
    programs.answer("ssh", "0", "255", "0", str(STOPPED), "0")
    result = launch("tpu_pod.sh", "run", *POD, "--spot", *RUN, path=programs.path)
    assert result.returncode == 0, result.stderr
    anew = ["delete", "create", "scp", "ssh", "ssh"]
    assert programs.verbs("create", "scp", "ssh", "delete") == ["scp", "ssh", "ssh", *anew, *anew, "delete"]
    trained = {call[-1] for call in programs.calls if "ssh" in call and "dim train" in call[-1]}
    assert len(trained) == 1


@pytest.mark.parametrize("code", [HUNG, STOPPED, 137, 255])
def test_a_run_that_asks_for_it_is_started_again_on_the_same_slices(programs, code):
    programs.answer("describe", "0 ACTIVE")
    programs.answer("ssh", "0", str(code), "0")
    result = launch("tpu_pod.sh", "run", *POD, "--keep", *RUN, path=programs.path)
    assert result.returncode == 0, result.stderr
    assert programs.verbs("create", "scp", "ssh", "delete") == ["scp", "ssh", "ssh", "ssh"]


def test_a_run_that_would_only_fail_again_ends_with_its_code_and_keeps_the_slices(programs):
    programs.answer("describe", "0 ACTIVE")
    programs.answer("ssh", "0", "1")
    result = launch("tpu_pod.sh", "run", *POD, *RUN, path=programs.path)
    assert result.returncode == 1
    assert programs.verbs("create", "ssh", "delete") == ["ssh", "ssh"]
    assert "# gcloud compute tpus queued-resources delete pod --project=p --zone=z --force --quiet" in result.stdout


def test_a_run_is_not_started_again_for_ever(programs):
    programs.answer("describe", "0 ACTIVE")
    programs.answer("ssh", "0", str(HUNG))
    result = launch("tpu_pod.sh", "run", *POD, "--max-restarts=3", *RUN, path=programs.path)
    assert result.returncode == HUNG
    assert programs.verbs("ssh") == ["ssh"] * 5


def test_slices_that_cannot_be_had_end_the_script(programs):
    programs.answer("describe", "1")
    programs.answer("create", "3")
    assert launch("tpu_pod.sh", "run", *POD, *RUN, path=programs.path).returncode == 3
    programs.answer("describe", "0 FAILED")
    result = launch("tpu_pod.sh", "run", *POD, *RUN, path=programs.path)
    assert result.returncode == 2
    assert "pod cannot be had (above)" in result.stderr
    assert "ssh" not in programs.verbs("ssh")


# xpk.sh


def test_xpk_is_called_for_each_command(programs):
    place = ["--cluster=c", "--project=p", "--zone=z"]
    for command, *more in (("cluster", "--spot"), ("create", *RUN), ("create", "--image=gcr.io/p/dim", *RUN), ("list",), ("delete",)):
        assert launch("xpk.sh", command, *GKE, *more, path=programs.path).returncode == 0
    cluster, create, imaged, listed, deleted = programs.calls
    assert cluster == ["xpk", "cluster", "create", *place, "--tpu-type=v6e-64", "--num-slices=1", "--spot"]
    assert create[1:6] == ["workload", "create", *place]
    assert "--restart-on-exit-codes=70,75" in create
    assert "--base-docker-image=python:3.12" in create
    assert "--docker-image=gcr.io/p/dim" in imaged
    words = shlex.split(imaged[-1].removeprefix("--command="))
    assert words[0] == "exec"
    assert tuple(words[3:]) == RUN[1:]
    parse(words[1:])
    assert create[-1].endswith(imaged[-1].removeprefix("--command="))
    assert listed == ["xpk", "workload", "list", *place]
    assert deleted == ["xpk", "workload", "delete", *place, "--workload=run", "--force"]


# slurm.sbatch


def test_slurm_submits_itself_and_shows_the_job(programs):
    (submit,) = shown("slurm.sbatch", "--nodes=4", *RUN)
    assert submit == ["sbatch", "--nodes=4", "launch/slurm.sbatch", *RUN[1:]]
    assert launch("slurm.sbatch", "--nodes=4", *RUN, path=programs.path).returncode == 0
    assert programs.calls == [submit]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (STOPPED, True), (HUNG, True), (137, True)])
def test_a_job_goes_back_into_the_queue_where_the_run_asks_for_it(programs, tmp_path, code, requeued):
    job = tmp_path / "slurm_script"
    shutil.copy(ROOT / "launch/slurm.sbatch", job)
    programs.answer("srun", str(code))
    environment = os.environ | {"PATH": f"{programs.path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", str(job), *RUN[1:]], env=environment, capture_output=True, check=False, timeout=300)
    assert done.returncode == code
    assert programs.calls == [["srun", "dim", "train", *RUN[1:]], *([["scontrol", "requeue", "17"]] if requeued else [])]


# gpu_node.sh


@pytest.mark.parametrize(("codes", "started"), [(("0",), 1), (("1",), 1), ((str(HUNG), str(STOPPED), "137", "0"), 4), ((str(HUNG),), 6)])
def test_a_node_starts_the_run_again_where_it_asks_for_it(programs, codes, started):
    programs.answer("dim", *codes)
    result = launch("gpu_node.sh", "--max-restarts=5", *RUN, path=programs.path)
    assert result.returncode == int(codes[-1])
    assert programs.calls == [["dim", "train", *RUN[1:]]] * started
    assert shown("gpu_node.sh", *RUN) == programs.calls[:1]


def test_a_node_that_is_stopped_passes_the_signal_on_and_starts_nothing_again(tmp_path):
    (tmp_path / "dim").write_text(
        f"#!/usr/bin/env bash\ntrap 'exit {STOPPED}' TERM\ntouch {tmp_path}/began.$$\nwhile :; do sleep 0.1; done\n"
    )
    (tmp_path / "dim").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "launch/gpu_node.sh", *RUN]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as node:
        while not list(tmp_path.glob("began.*")):
            assert node.poll() is None
            time.sleep(0.02)
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=300) == STOPPED
    assert len(list(tmp_path.glob("began.*"))) == 1
