"""launch/nano_claim.sh from its options to the table, with a program in place of `dim` that makes what it would make."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import nano_claim
from dim_jax.errors import InputError

ROOT = Path(__file__).parents[1]
GAINS = {
    "stage1": 0, "stage1_long": 1, "stage2_instruction": 2, "stage2_blueprint.internal": 1, "stage2_blueprint.instruction": 1,
    "adamw@5": 1, "adamw": 2, "muon@5": 2, "muon": 3, "contrastive@5": 0, "contrastive": 1,
}  # fmt: skip
FAKE = f"""#!{sys.executable}
import json, pathlib, sys
words, home = sys.argv[1:], pathlib.Path(__file__).parents[1]
value = lambda option: words[words.index(option) + 1]
with (home / "calls").open("a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "train":
    run = pathlib.Path(value("--workdir"))
    if str(run.relative_to(home / "runs")) in (home / "failing").read_text().split():
        sys.exit("out of memory")
    (run / "model").mkdir(parents=True)
    keys = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")
    (run / "config.json").write_text(json.dumps(keys))
    (run / "checkpoints" / keys.get("train.save_every", "1")).mkdir(parents=True)
    (run / "log.jsonl").write_text(json.dumps({{"step": int(value("--steps")), "loss": 1.0}}))
    steps = dict.fromkeys((int(keys.get("train.save_every", 1)), int(value("--steps"))))
    speed = {{"steps_per_second": 10 if "blueprint" in run.name or "muon" in run.name else 20, "mfu": 0.1}}
    (run / "speed.jsonl").write_text("".join(json.dumps({{"step": step, **speed}}) + "\\n" for step in steps))
elif words[0] == "convert":
    pathlib.Path(words[2]).mkdir()
elif words[0] == "evaluate":
    report = pathlib.Path(value("-o"))
    seed, gain = int(report.parent.name.removeprefix("seed")), {GAINS}.get(report.stem, 5)
    pairs = [
        {{"rule": rule, "key": str(i), "mse_target": i, "mse_source": gain - 0.5, "psnr": i + gain + seed * (0.6 if gain == 5 else 0.5)}}
        for rule in ("hair", "moon") for i in range(5)
    ]
    mean = lambda rows: {{
        "pairs": len(rows), "nearer": sum(row["mse_target"] < row["mse_source"] for row in rows) / len(rows),
        "psnr": sum(row["psnr"] for row in rows) / len(rows),
    }}
    rules = {{rule: mean([row for row in pairs if row["rule"] == rule]) for rule in ("hair", "moon")}}
    failures = {{"moon/3": "cut off"}} if "--designer" in words else {{}}
    whole = {{"data": "d (test)", "seed": 0, "overall": mean(pairs), "rules": rules, "pairs": pairs, "failures": failures}}
    report.write_text(json.dumps(whole))
"""


@pytest.fixture
def home(tmp_path):
    """A folder with programs for PATH."""
    (tmp_path / "bin").mkdir()
    for name, text in (("dim", FAKE), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "failing").write_text("")
    (tmp_path / "emoji").mkdir()
    return tmp_path


def laboratory(home: Path, *options: str, script: str = "nano_claim") -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1", "PYTHONPATH": str(ROOT)}
    command = [
        "bash",
        f"launch/{script}.sh",
        "--gpus",
        "2",
        "--per-gpu",
        "3",
        *options,
        str(home / "emoji"),
        str(home / "runs"),
        "data.shift=2",
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment, timeout=300)


def calls(home: Path) -> list[list[str]]:
    return [json.loads(line) for line in (home / "calls").read_text().splitlines()]


def keys(words: list[str]) -> dict[str, str]:
    return dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")


def cells(text: str, start: str) -> list[str]:
    """Of the row of a table that begins so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_from_the_options_to_the_table(home):
    result = laboratory(home, "--steps", "7")
    assert result.returncode == 0, result.stdout + result.stderr
    runs = {Path(words[words.index("--workdir") + 1]).relative_to(home / "runs"): words for words in calls(home) if words[0] == "train"}
    assert len(runs) == 1 + 3 * 4
    for path, words in runs.items():
        changes, name = keys(words), path.name
        assert changes["data.shift"] == "2"
        if name != "t2i":
            begun = Path(changes["init.sana"]).relative_to(home / "runs")
            assert begun == (Path("t2i/model") if name.startswith("stage1") else path.parent / "stage1/model")
            assert changes["init.sana"] == changes["init.connector"]
            assert changes["data.text"] == ("blueprint" if name == "stage2_blueprint" else "instruction")
            assert words[words.index("--steps") + 1] == ("14" if name == "stage1_long" else "7")
            seed = int(path.parent.name.removeprefix("seed"))
            assert int(changes["seed"]) == (seed if name.startswith("stage1") else 1000 + seed), "a second stage sees other batches"
    text, numbers = (home / "runs/claim.md").read_text(), json.loads((home / "runs/claim.json").read_text())
    assert text in result.stdout
    nano_claim.plot(numbers, home / "claim.png")
    with Image.open(home / "claim.png") as figure:
        assert figure.width > figure.height > 200
    arms = {arm["name"]: arm for arm in numbers["arms"]}
    assert arms["stage2_blueprint.oracle"]["steps"] == [7, 7]
    assert (arms["stage1"]["flops"], arms["stage2_blueprint.oracle"]["flops"]) == (1, 2)
    assert cells(text, "stage I: instructions")[1:] == ["instruction", "7", "50", "x 1.00", "3", "0.0 ± 0.0", "2.5 ± 0.5", ""]
    oracle, internal = (line for line in text.splitlines() if line.startswith("| stage II: blueprints by rule | blueprint"))
    assert oracle.endswith("| 7 + 7 | 100 | x 2.00 | 3 | 100.0 ± 0.0 | 7.6 ± 0.6 |  |")
    assert internal.endswith("| 1, 1, 1 |")
    rows = [cells(line, "stage2 blueprint, oracle") for line in text.splitlines() if line.startswith("| stage2 blueprint, oracle | ")]
    assert [row[1:] for row in rows[2:]] == [
        ["stage2 instruction", "nearer to target", "+60.0 ± 0.0", rows[2][4], rows[2][5], "+60.0, +60.0, +60.0"],
        ["stage2 instruction", "PSNR", "+3.10 ± 0.10", "+3.10 to +3.10", "0.0001", "+3.00, +3.10, +3.20"],
    ]
    assert cells(text.partition("## PSNR")[2], "moon")[1:3] == ["5", "2.5 ± 0.5"]

    before = len(calls(home))
    assert laboratory(home, "--steps", "7").returncode == 0
    assert {words[0] for words in calls(home)[before:]} <= {"prepare"}, "what is there is not made again"


def test_what_fails_is_missing_in_the_table_and_made_by_the_next_call(home):
    (home / "failing").write_text("seed1/stage1 seed0/stage1_long")
    base = str(home / "mine")
    assert laboratory(home, "--base", base).stderr.startswith(f"error: --base {base}: there is no such checkpoint.")
    Path(base).mkdir()
    result = laboratory(home, "--seeds", "0 1", "--base", base)
    assert result.returncode == 1
    assert "exit code 1" in result.stdout
    assert "stage1/model.log ends: out of memory" in result.stdout
    arms = {arm["name"]: arm for arm in json.loads((home / "runs/claim.json").read_text())["arms"]}
    assert {name: "".join(arm["psnr"]) for name, arm in arms.items()} == {
        "stage1": "0", "stage1_long": "1", "stage2_instruction": "0", "stage2_blueprint.oracle": "0", "stage2_blueprint.internal": "0",
        "stage2_blueprint.instruction": "0",
    }  # fmt: skip
    assert not [row for row in json.loads((home / "runs/claim.json").read_text())["differences"] if row["a"] == "stage1_long"]
    (home / "failing").write_text("")
    assert laboratory(home, "--seeds", "0 1", "--base", base).returncode == 0
    trained = Counter(words[words.index("--workdir") + 1] for words in calls(home) if words[0] == "train")
    assert {Path(run).name: count for run, count in trained.items() if count > 1} == {"stage1": 2, "stage1_long": 2}


def test_reports_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(InputError, match="no report of an arm"):
        nano_claim.read_arms(tmp_path)
    for seed, steps in ((0, 3), (1, 4)):
        run = tmp_path / f"seed{seed}/stage1"
        run.mkdir(parents=True)
        (run / "log.jsonl").write_text(json.dumps({"step": steps}))
        (run / "speed.jsonl").write_text(json.dumps({"step": 1, "steps_per_second": 5.0}))
        run.with_suffix(".json").write_text(json.dumps({"data": "d", "seed": 0, "pairs": []}))
    with pytest.raises(InputError, match="stage1 have several lengths"):
        nano_claim.read_arms(tmp_path)
    (tmp_path / "seed1/stage1.json").write_text(json.dumps({"data": "another", "seed": 0, "pairs": []}))
    with pytest.raises(InputError, match="several data sets or samples"):
        nano_claim.read_arms(tmp_path)
