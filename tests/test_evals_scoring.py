"""Means, bounds and agreement of judgements, counted by hand."""

from pathlib import Path

import pytest

from dim_jax.evals import bootstrap
from dim_jax.evals.benchmark import Case
from dim_jax.evals.judge import JudgedCase, Judgement, Verdict
from dim_jax.evals.protocols import protocol
from dim_jax.evals.scoring import agreement, score_summary, summary

IMGEDIT, RISE = protocol("imgedit"), protocol("risebench")


def judged(name: str, category: str, score: float | None, *, asked: bool = True) -> JudgedCase:
    case = Case(name, category, "red", Path("source.png"))
    if score is not None:
        return JudgedCase(case, {"edit": Verdict(("4",), {"compliance": score})}, {"score": score, "accuracy": score})
    return JudgedCase(case, {"edit": Verdict(("Hm.",), None, "no score") if asked else Verdict()}, None)


CASES = [
    judged("1", "add", 4.0), judged("2", "add", 2.0), judged("3", "add", None), judged("4", "style", 5.0),
    judged("5", "style", None, asked=False),
]  # fmt: skip


def test_means_failures_and_bounds():
    found = score_summary(CASES, IMGEDIT)
    assert {name: found[name] for name in ("cases", "judged", "failed", "failed_share", "not_asked")} == {
        "cases": 5, "judged": 3, "failed": 1, "failed_share": 1 / 4, "not_asked": 1,
    }  # fmt: skip
    row = found["metrics"]["score"]
    assert row["mean"] == pytest.approx((3 + 5) / 2), "the mean of the types' means"
    assert row["worst"] == pytest.approx(((4 + 2 + 1) / 3 + 5) / 2)
    assert row["best"] == pytest.approx(((4 + 2 + 5) / 3 + 5) / 2)
    assert row["low"] <= row["mean"] <= row["high"]
    assert row["cases"] == 3
    over_cases = score_summary(CASES, RISE)["metrics"]["accuracy"]
    assert over_cases["mean"] == pytest.approx(11 / 3)
    assert (over_cases["worst"], over_cases["best"]) == (pytest.approx(11 / 4), pytest.approx(111 / 4))
    assert score_summary(CASES[2:3], IMGEDIT)["metrics"] == {}
    assert score_summary(CASES[2:3], IMGEDIT)["failed_share"] == 1
    assert score_summary([], IMGEDIT)["failed_share"] is None


def test_a_type_that_only_failed_counts_in_the_bounds():
    row = score_summary([judged("1", "add", 4.0), judged("2", "style", None)], IMGEDIT)["metrics"]["score"]
    assert (row["mean"], row["worst"], row["best"]) == (4, (4 + 1) / 2, (4 + 5) / 2)


def test_the_interval_of_groups():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 2.0, 3.0]
    assert bootstrap.stratified([values], seed=3) == bootstrap.interval(values, seed=3)
    mean, low, high = bootstrap.stratified([[1.0] * 9, [5.0] * 2])
    assert (mean, low, high) == (3, 3, 3), "each group is drawn by itself"
    few, many = bootstrap.stratified([values, values]), bootstrap.stratified([values * 20, values * 20])
    assert many[2] - many[1] < few[2] - few[1]


def test_a_summary():
    judgement = Judgement("openai:m", CASES, tokens_in=10, tokens_out=5)
    judgement.models.update(["m-2026", "m-2026", "m-2025"])
    found = summary(judgement, IMGEDIT, {"few": lambda case: case.id == "1"}, official_seed=0)
    assert found["models"] == {"m-2025": 1, "m-2026": 2}
    assert found["categories"]["style"]["metrics"]["score"]["mean"] == 5
    assert found["subsets"]["few"]["metrics"]["score"]["mean"] == 4
    assert found["official"]["notes"]
    assert "official" not in summary(judgement, IMGEDIT, {})


def test_agreement_of_judges():
    scores = [(1.0, 2.0), (2.0, 2.0), (3.0, 5.0), (4.0, 4.0)]
    first, second = (
        Judgement(name, [judged(str(i), "add", pair[which]) for i, pair in enumerate(scores)] + [judged("x", "add", left)])
        for which, (name, left) in enumerate((("a", 3.0), ("b", None)))
    )
    found = agreement(first, second, IMGEDIT)
    assert found["judges"] == ["a", "b"]
    row = found["metrics"]["score"]
    assert row["cases"] == 4
    assert row["equal"] == 0.5
    # By hand: deviations (-1.5, -.5, .5, 1.5) and (-1.25, -1.25, 1.75, .75); ranks of the second are 1.5, 1.5, 4, 3.
    assert row["pearson"] == pytest.approx(4.5 / (5 * 6.75) ** 0.5)
    assert row["spearman"] == pytest.approx(3.5 / (5 * 4.5) ** 0.5)
    same = Judgement("c", [judged(str(i), "add", 3.0) for i in range(4)])
    assert agreement(first, same, IMGEDIT)["metrics"]["score"]["pearson"] is None
    assert agreement(first, Judgement("d", []), IMGEDIT)["metrics"] == {}
