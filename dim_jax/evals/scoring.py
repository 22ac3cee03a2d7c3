"""Means of what judges said, with all that one must know beside them: intervals, failures, bounds, agreement."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dim_jax.evals import bootstrap
from dim_jax.evals.benchmark import Case
from dim_jax.evals.judge import Judged, Judgement
from dim_jax.evals.protocols import Protocol, Recorded
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
    found = {
        "models": dict(sorted(judgement.models.items())),
        "tokens_in": judgement.tokens_in,
        "tokens_out": judgement.tokens_out,
        **scored(cases, protocol),
        "categories": {name: scored(group, protocol) for name, group in categories(cases).items()},
        "subsets": {name: scored([one for one in cases if belongs(one.case)], protocol) for name, belongs in subsets.items()},
    }
    if official_seed is not None:
        recorded = [Recorded(one.case, {name: verdict.texts for name, verdict in one.verdicts.items()}) for one in cases if asked(one)]
        official = protocol.official(recorded, official_seed)
        found["official"] = {
            "overall": dict(official.overall),
            "categories": {name: dict(row) for name, row in official.categories.items()},
            "notes": list(official.notes),
        }
    return found


def asked(judged: Judged) -> bool:
    """Whether all its questions were asked."""
    return judged.metrics is not None or judged.failed


def categories(cases: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The cases by category, in the order in which they occur."""
    found: dict[str, list[Judged]] = {}
    for one in cases:
        found.setdefault(one.case.category, []).append(one)
    return found


def scored(cases: Sequence[Judged], protocol: Protocol) -> dict[str, Any]:
    """Counts, and for each metric mean, interval and bounds; none where nothing was judged."""
    failed = sum(one.failed for one in cases)
    judged = [one for one in cases if one.metrics is not None]
    return {
        "cases": len(cases),
        "judged": len(judged),
        "failed": failed,
        "failed_share": failed / (len(judged) + failed) if judged or failed else None,
        "not_asked": len(cases) - len(judged) - failed,
        "metrics": {name: row for name in protocol.metrics if (row := _metric(cases, protocol, name))},
    }


def _metric(cases: Sequence[Judged], protocol: Protocol, name: str) -> dict[str, float] | None:
    """Mean, interval and bounds of one metric."""
    groups = list(categories(cases).values()) if protocol.average == "categories" else [list(cases)]
    values = [[one.metrics[name] for one in group if one.metrics is not None and name in one.metrics] for group in groups]
    failures = [sum(one.failed for one in group) for group in groups]
    known = [group for group in values if group]
    if not known:
        return None
    mean, low, high = bootstrap.stratified(known)
    scale = protocol.metrics[name]

    def bound(value: float) -> float:
        filled = [[*group, *[value] * failed] for group, failed in zip(values, failures, strict=True)]
        return plain_mean([plain_mean(group) for group in filled if group])

    return {"mean": mean, "low": low, "high": high, "worst": bound(scale.low), "best": bound(scale.high), "cases": sum(map(len, known))}


def agreement(a: Judgement, b: Judgement, protocol: Protocol) -> dict[str, Any]:
    """How far two judges agree on the cases that both have judged: correlations of Pearson and of Spearman (None where one of the two
    always gives the same score), and the share of equal scores."""
    first, second = ({one.case.id: one.metrics for one in found.cases if one.metrics is not None} for found in (a, b))
    found: dict[str, Any] = {"judges": [a.judge, b.judge], "metrics": {}}
    for name in protocol.metrics:
        ids = [one for one in first if one in second and name in first[one] and name in second[one]]
        if ids:
            pairs = [first[one][name] for one in ids], [second[one][name] for one in ids]
            found["metrics"][name] = {"cases": len(ids), **_correlations(*pairs)}
    return found


def _correlations(a: Sequence[float], b: Sequence[float]) -> dict[str, float | None]:
    from scipy import stats  # takes half a second

    pearsonr: Any = stats.pearsonr
    spearmanr: Any = stats.spearmanr
    equal = plain_mean([float(math.isclose(one, other, abs_tol=1e-9)) for one, other in zip(a, b, strict=True)])
    constant = len(set(a)) < 2 or len(set(b)) < 2
    pearson, spearman = (None, None) if constant else (float(pearsonr(a, b).statistic), float(spearmanr(a, b).statistic))
    return {"pearson": pearson, "spearman": spearman, "equal": equal}
