"""Means of what judges said, with all that one must know beside them: intervals, failures, bounds, agreement."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dim_jax.evals import bootstrap
from dim_jax.evals.benchmark import Case, group_by
from dim_jax.evals.judge import JudgedCase, Judgement
from dim_jax.evals.protocols import Protocol, RecordedAnswers
from dim_jax.evals.protocols import mean as plain_mean


def summary(
    judgement: Judgement, protocol: Protocol, subsets: Mapping[str, Callable[[Case], bool]], *, official_seed: int | None = None
) -> dict[str, Any]:
    """What a judge found of a track, as it stands in report.json.

    The overall mean is over cases or over the categories' means, as `Protocol.average` says; so are its interval (95 %, by bootstrap, of
    each category by itself) and its bounds: if every failed case had the worst score, or the best. A category's and a subset's are over
    their cases, but that a subset's mean is taken as the overall one. With `official_seed` the makers' arithmetic stands beside it.
    """
    cases = judgement.cases
    row = {
        "models": dict(sorted(judgement.models.items())),
        "tokens_in": judgement.tokens_in,
        "tokens_out": judgement.tokens_out,
        **score_summary(cases, protocol),
        "categories": {name: score_summary(group, protocol) for name, group in categories(cases).items()},
        "subsets": {name: score_summary([item for item in cases if belongs(item.case)], protocol) for name, belongs in subsets.items()},
    }
    if official_seed is not None:
        recorded = [
            RecordedAnswers(item.case, {name: verdict.texts for name, verdict in item.verdicts.items()})
            for item in cases
            if was_asked(item)
        ]
        official = protocol.official(recorded, official_seed)
        row["official"] = {
            "overall": dict(official.overall),
            "categories": {name: dict(row) for name, row in official.categories.items()},
            "notes": list(official.notes),
        }
    return row


def was_asked(judged: JudgedCase) -> bool:
    """Whether all its questions were asked."""
    return judged.metrics is not None or judged.failed


def categories(cases: Sequence[JudgedCase]) -> dict[str, list[JudgedCase]]:
    """The cases by category, in the order in which they occur."""
    return group_by(cases, lambda item: item.case.category)


def score_summary(cases: Sequence[JudgedCase], protocol: Protocol) -> dict[str, Any]:
    """Counts, and for each metric mean, interval and bounds; none where nothing was judged."""
    failed = sum(item.failed for item in cases)
    judged = [item for item in cases if item.metrics is not None]
    return {
        "cases": len(cases),
        "judged": len(judged),
        "failed": failed,
        "failed_share": failed / (len(judged) + failed) if judged or failed else None,
        "not_asked": len(cases) - len(judged) - failed,
        "metrics": {name: row for name in protocol.metrics if (row := _metric(cases, protocol, name))},
    }


def _metric(cases: Sequence[JudgedCase], protocol: Protocol, name: str) -> dict[str, float] | None:
    """Mean, interval and bounds of one metric."""
    groups = list(categories(cases).values()) if protocol.average == "categories" else [list(cases)]
    values = [[item.metrics[name] for item in group if item.metrics is not None and name in item.metrics] for group in groups]
    failures = [sum(item.failed for item in group) for group in groups]
    judged_groups = [group for group in values if group]
    if not judged_groups:
        return None
    mean, low, high = bootstrap.stratified(judged_groups)
    scale = protocol.metrics[name]

    def bound(value: float) -> float:
        filled = [[*group, *[value] * failed] for group, failed in zip(values, failures, strict=True)]
        return plain_mean([plain_mean(group) for group in filled if group])

    count = sum(map(len, judged_groups))
    return {"mean": mean, "low": low, "high": high, "worst": bound(scale.low), "best": bound(scale.high), "cases": count}


def agreement(a: Judgement, b: Judgement, protocol: Protocol) -> dict[str, Any]:
    """How far two judges agree on the cases that both have judged: correlations of Pearson and of Spearman (None where one of the two
    always gives the same score), and the share of equal scores."""
    first, second = ({item.case.id: item.metrics for item in judgement.cases if item.metrics is not None} for judgement in (a, b))
    row: dict[str, Any] = {"judges": [a.judge, b.judge], "metrics": {}}
    for name in protocol.metrics:
        ids = [case_id for case_id in first if case_id in second and name in first[case_id] and name in second[case_id]]
        if ids:
            pairs = [first[case_id][name] for case_id in ids], [second[case_id][name] for case_id in ids]
            row["metrics"][name] = {"cases": len(ids), **_correlations(*pairs)}
    return row


def _correlations(a: Sequence[float], b: Sequence[float]) -> dict[str, float | None]:
    from scipy import stats  # takes half a second

    pearsonr: Any = stats.pearsonr
    spearmanr: Any = stats.spearmanr
    equal = plain_mean([float(math.isclose(first, second, abs_tol=1e-9)) for first, second in zip(a, b, strict=True)])
    constant = len(set(a)) < 2 or len(set(b)) < 2
    pearson, spearman = (None, None) if constant else (float(pearsonr(a, b).statistic), float(spearmanr(a, b).statistic))
    return {"pearson": pearson, "spearman": spearman, "equal": equal}
