"""launch/nano_ladder.sh from its options to the table, with a program in place of `dim` that makes what it would make."""

import json
from pathlib import Path

import pytest

from benchmarks import nano_ladder
from dim_jax.config import read_config
from dim_jax.errors import InputError
from dim_jax.training.config_guard import check_config
from tests.test_nano_claim import calls, cells, home, keys, laboratory

__all__ = ["home"]  # a fixture
LADDER = ("--steps", "10", "--every", "5", "--seeds", "0 1", "--arms", "adamw muon contrastive")


def test_from_the_options_to_the_table(home):
    (home / "failing").write_text("seed1/contrastive")
    result = laboratory(home, *LADDER, "--pairs", "3", script="nano_ladder")
    assert result.returncode == 1, "a run failed"
    trained = {tuple(Path(words[words.index("--workdir") + 1]).parts[-2:]): keys(words) for words in calls(home) if words[0] == "train"}
    assert trained.keys() == {(f"seed{seed}", arm) for seed in (0, 1) for arm in ("adamw", "muon", "contrastive")}
    assert [trained["seed1", arm]["optim.name"] for arm in ("adamw", "muon")] == ["adamw", "muon"]
    assert trained["seed0", "contrastive"].items() >= {"flow.contrastive": "0.05", "seed": "0", "data.shift": "2"}.items()
    assert all(
        "--holdout" in words and words[words.index("--pairs-per-rule") + 1] == "3" for words in calls(home) if words[0] == "evaluate"
    )

    text, numbers = (home / "runs/ladder.md").read_text(), json.loads((home / "runs/ladder.json").read_text())
    assert text in result.stdout
    assert (numbers["steps"], numbers["pairs"], numbers["share"]) == (10, 10, 0.4)
    table = text.partition("##")[0]
    assert cells(table, "adamw")[1:] == ["", "50", "2", "40.0 ± 0.0", cells(table, "adamw")[5], "10", "0"]
    assert cells(table, "muon")[1:5] == ["`optim.name = muon`", "100", "2", "60.0 ± 0.0"]
    assert cells(table, "muon")[6:] == ["5", "0"], "half a second"
    assert cells(table, "contrastive")[3:5] + cells(table, "contrastive")[6:] == ["1", "20.0", "not", "not"]
    assert {(row["a"], row["b"]): row["difference"] for row in numbers["differences"] if row["metric"] == "nearer"} == {
        ("adamw", "contrastive"): pytest.approx(-0.2), ("adamw", "muon"): pytest.approx(0.2),
    }  # fmt: skip
    by_step = text.partition("## nearer to target, by step")[2].partition("##")[0]
    assert cells(by_step, "muon")[1:] == ["40.0 ± 0.0", "60.0 ± 0.0"]

    (home / "failing").write_text("")
    assert laboratory(home, *LADDER, script="nano_ladder").returncode == 0
    assert sum(words[0] == "train" for words in calls(home)) == 7, "what is there is not made again"
    assert nano_ladder.summary(home / "runs", 0.2)["arms"][1]["reached"] == {
        0: {"step": 10, "seconds": 0.5},
        1: {"step": 10, "seconds": 0.5},
    }
    (home / "runs/seed0/muon/speed.jsonl").write_text(json.dumps({"step": 11, "steps_per_second": 1.0}))
    with pytest.raises(InputError, match=r"several lengths, \[10, 11\]"):
        nano_ladder.read_points(home / "runs")


def test_tricks_join_and_are_configs_that_hold_together(home):
    """One by one, and all in one arm; their keys come after those of the command line."""
    tricks = [
        "muon", "contrastive", "repa", "uniform", "narrow", "wide", "noisy", "moments", "ema", "small", "large", "slow", "fast", "batch",
    ]  # fmt: skip
    joined = "+".join(trick for trick in tricks if trick not in ("wide", "large", "fast"))  # which exclude narrow, small and slow
    options = ("--every", "3000", "--seeds", "0", "--arms", " ".join(["adamw", *tricks, joined, "large+mup"]))
    assert laboratory(home, *options, script="nano_ladder").returncode == 0
    runs = {Path(words[words.index("--workdir") + 1]).name: keys(words) for words in calls(home) if words[0] == "train"}
    assert len(runs) == 1 + len(tricks) + 2
    for changes in runs.values():
        check_config(read_config(Path("nano_ladder"), changes))
    for trick in tricks:
        own = runs[trick].items() - runs["adamw"].items()
        assert own
        assert trick not in joined.split("+") or own <= runs[joined].items()
    assert runs["large+mup"].items() - runs["adamw"].items() == {("model.width", "512"), ("optim.mup_base_width", "256")}
