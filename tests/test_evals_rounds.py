"""Editing in rounds with a judge, and the best of several results: what is painted, what counts, and what the report says of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dim_jax.designer.local import DONE, NOT_DONE, LocalDesigner
from dim_jax.errors import InputError
from dim_jax.evals import emoji
from dim_jax.evals.rounds import edit_in_rounds
from dim_jax.models.qwen import Qwen
from dim_jax.processing.chat import IM_END
from dim_jax.sampling import Sampler
from tests.painter_fixtures import QUICK, dim, one_error, painter, picture
from tests.test_evals_emoji import CAPTIONS, PAIRS, evaluate


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(painter(), "settings", QUICK)


def judge(**changes) -> LocalDesigner:
    return replace(LocalDesigner.from_sampler(painter(), 64), prompt_mode="instruction", **changes)


def judging(monkeypatch, done: set[tuple[str, int]]) -> list[list[str]]:
    """A judge that takes some results for done, by instruction and round; others are worse in each round. What it was asked."""
    asked: list[list[str]] = []
    seen: dict[str, list[bytes]] = {pair.texts[0]: [] for pair in PAIRS}

    def score(source, result, instruction):
        assert source is next(pair.source for pair in PAIRS if pair.texts[0] == instruction)
        if result.tobytes() not in seen[instruction]:
            seen[instruction].append(result.tobytes())
        number = seen[instruction].index(result.tobytes()) + 1
        return 1.0 if (instruction, number) in done else -float(number)

    def scores(self, sources, results, instructions):
        asked.append(list(instructions))
        return np.array([*map(score, sources, results, instructions)])

    monkeypatch.setattr(LocalDesigner, "judge", scores)
    return asked


# Rounds


def test_a_pair_is_tried_until_it_is_done_and_the_best_result_counts():
    scores = {0: [2.0], 1: [-3.0, -1.0, -2.0], 2: [-1.0, 0.5], 3: [-1.0, -2.0, -3.0]}
    states = edit_in_rounds(4, 3, lambda number, pairs: np.array([scores[i][number] for i in pairs]))
    assert [state.painted.tolist() for state in states] == [[0, 1, 2, 3], [1, 2, 3], [1, 3]]
    assert [state.best.tolist() for state in states] == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    assert states[-1].best_scores.tolist() == [2.0, -1.0, 0.5, -1.0]


def test_rounds_end_where_all_is_done():
    states = edit_in_rounds(2, 3, lambda number, pairs: np.full(len(pairs), 1.0 - (number == 0)))
    assert [len(state.painted) for state in states] == [2, 2, 0]
    assert states[-1].best.tolist() == [1, 1]


def test_the_report_of_rounds(monkeypatch):
    plain = evaluate(pairs_per_rule=3)
    asked = judging(monkeypatch, {("change 0", 1), ("change 1", 2), ("change 2", 3)})
    report = evaluate(pairs_per_rule=3, rounds=3, judge=judge(), overwrite=True)
    assert [row["painted"] for row in report["rounds"]] == [5, 4, 3]
    assert [row["done"] for row in report["rounds"]] == pytest.approx([0.2, 0.4, 0.6])
    assert sorted({text for batch in asked[-2:] for text in batch}) == ["change 2", "change 3", "change 4"]
    # The first round is what a run without a judge paints; later rounds have the noise of later seeds.
    assert {name: report["rounds"][0][name] for name in plain["overall"]} == plain["overall"]
    assert report["overall"].items() <= report["rounds"][-1].items()
    later = {number: {row["key"]: row for row in evaluate(pairs_per_rule=3, seed=number, overwrite=True)["pairs"]} for number in (0, 1, 2)}
    chosen = {"change 0": 0, "change 1": 1, "change 2": 2, "change 3": 0, "change 4": 0}
    for row in report["pairs"]:
        same = later[chosen[row["instruction"]]][row["key"]]
        assert row | {"scores": []} == same
    assert {row["instruction"]: row["scores"] for row in report["pairs"]} == {
        "change 0": [1.0], "change 1": [-1.0, 1.0], "change 2": [-1.0, -2.0, 1.0],
        "change 3": [-1.0, -2.0, -3.0], "change 4": [-1.0, -2.0, -3.0],
    }  # fmt: skip


def test_the_best_of_several_by_prompt_by_the_exact_error_and_at_random(monkeypatch):
    alone = [{row["key"]: row for row in evaluate(seed=seed, pairs_per_rule=3, overwrite=True)["pairs"]} for seed in (0, 1, 2)]
    compared = iter(([0.1, 0.9, 0.2, 0.3, 0.1], [0.2, 0.1, 0.3, 0.1, 0.5], [0.3, 0.2, 0.1, 0.4, 0.2]))
    monkeypatch.setattr(Sampler, "prompt_alignment", lambda self, requests, latents, settings: np.array(next(compared)))
    report = evaluate(best_of=3, pairs_per_rule=3, overwrite=True)
    assert report["pairs"] == [alone[number][key] for key, number in zip(alone[0], (2, 0, 1, 2, 1), strict=True)]
    by_pair = [[rows[key] for rows in alone] for key in alone[0]]
    nearest = [min(rows, key=lambda row: (row["mse_target"] >= row["mse_source"], row["mse_target"])) for rows in by_pair]
    best = report["best_of"]
    assert best["oracle"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in nearest]))
    assert best["random"]["psnr"] == pytest.approx(np.mean([row["psnr"] for rows in by_pair for row in rows]))
    assert best["results"] == 3
    assert evaluate(overwrite=True)["best_of"]["results"] == 1


def test_a_distilled_model_that_cannot_choose_paints_nothing(monkeypatch):
    monkeypatch.setattr(painter(), "settings", replace(QUICK, distilled="steps", guidance_scale=1.0))
    with pytest.raises(InputError, match="not best_of 2: it has one branch"):
        evaluate(best_of=2)
    assert not Path("out.pictures").exists()


def test_rounds_and_best_of_share_pictures(monkeypatch):
    judging(monkeypatch, set())
    report = evaluate(rounds=2, judge=judge(), best_of=2)
    before = {file: file.stat().st_mtime_ns for file in Path("out.pictures").rglob("*.png")}
    assert len(before) == 8
    again = evaluate(rounds=2, judge=judge(), best_of=2, overwrite=True)
    assert {file: file.stat().st_mtime_ns for file in Path("out.pictures").rglob("*.png")} == before
    assert again["best_of"] == report["best_of"]


def test_the_table_of_rounds(monkeypatch):
    judging(monkeypatch, {("change 0", 1)})
    report = evaluate(rounds=2, judge=judge(), best_of=2)
    written = io.StringIO()
    (table,) = emoji.rounds_table(report)
    Console(width=120, file=written).print(table)
    text = written.getvalue()
    for name, row in (("round 2", report["rounds"][1]), ("best of 2, oracle", report["best_of"]["oracle"])):
        (line,) = (line for line in text.splitlines() if name in line)
        assert f"{row['nearer']:.1%}" in line
        assert f"{row['psnr']:.2f}" in line
    assert emoji.rounds_table(evaluate(overwrite=True)) == []


# The judge


def test_the_score_is_the_difference_of_the_log_probabilities_of_both_answers(monkeypatch):
    model, processor = painter().dim.encoder, replace(painter().processor, condition_length=4096, resolution=64)
    sources, results, texts = [picture(64, 64, 1), picture(64, 64, 2)], [picture(64, 64, 3), picture(64, 64, 4)], ["red", "make it blue"]
    scores = judge().judge(sources, results, texts)
    for i, text in enumerate(texts):
        expected = []
        for answer in (DONE, NOT_DONE):
            turn = processor([text], [[sources[i], results[i]]], generation_prompt=True)
            ids = [*processor.tokenizer.encode(answer), processor.tokenizer.ids[IM_END]]
            whole, _ = processor.with_answers([text], [[sources[i], results[i]]], [answer])
            logits = np.asarray(Qwen.logits(model, model(whole)), np.float64)[0]
            begin = turn.input_ids.shape[1]
            assert whole.input_ids[0, begin:].tolist() == ids
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected.append(sum(log_probs[begin + k - 1, token] for k, token in enumerate(ids)))
        assert scores[i] == pytest.approx(expected[0] - expected[1], abs=1e-4)
    assert judge().judge(results[:1], sources[:1], texts[:1])[0] != pytest.approx(scores[0], abs=1e-6), "the order of the pictures counts"


def test_an_encoder_of_prompts_does_not_judge():
    with pytest.raises(InputError, match="cannot judge"):
        replace(judge(), prompt_mode="prompt").judge([picture(64, 64)], [picture(64, 64)], ["red"])


# What is refused


@pytest.mark.parametrize(("options", "says"), [({"rounds": 2}, "without a judge"), ({"rounds": 0}, "at least 1")])
def test_rounds_that_cannot_be(options, says):
    with pytest.raises(InputError, match=says):
        evaluate(**options)
    assert not Path("out.pictures").exists()


def test_the_command(loaded, monkeypatch):
    monkeypatch.setattr("dim_jax.datasets.layouts.pairs.Pairs", lambda *args: PAIRS if args[2] == "edit" else CAPTIONS)
    monkeypatch.setattr(painter(), "prompt_mode", "instruction")
    monkeypatch.setattr(LocalDesigner, "from_pretrained", lambda path, **options: replace(judge(), name=f"local:{path}"))
    judging(monkeypatch, {("change 0", 1)})
    command = ("evaluate", "emoji", "--checkpoint", "C", "--data", "emoji", "-o", "out.json", "--pairs-per-rule", "2", "--batch-size", "2")
    for more in (("--rounds", "2"), ("--judge", "local:J"), ("--rounds", "2", "--judge", "openai:gpt-4o")):
        assert dim(*command, *more)[0] == 2
    code, text = dim(*command, "--rounds", "2", "--judge", "local:J", "--best-of", "3")
    assert code == 0, text
    report = json.loads(Path("out.json").read_text())
    assert (len(report["rounds"]), report["best_of"]["results"], report["judge"]) == (2, 3, "local:J")
    assert "out.json exists" in one_error(dim(*command))
