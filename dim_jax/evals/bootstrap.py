"""How sure a mean is, and a difference of two: resampling cases with replacement.

Source: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993: the percentile interval; for two systems on the same cases,
P. Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dim_jax.errors import InputError, check

RESAMPLES = 10_000
CONFIDENCE = 0.95
CHUNK = 2**22  # drawn numbers in memory


class Comparison(NamedTuple):
    """Two systems on the cases that both have.

    Attributes:
        mean_a, mean_b: over those cases.
        difference: mean_b - mean_a; low and high bound its 95 % interval.
        cases: how many both have.
        p: the two-sided p-value of no difference: twice the share of resampled differences on the other side of zero (ties count half), at
            least 1 / resamples.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    cases: int
    p: float


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """The mean of scores, and the bounds of its 95 % interval; the same values in the same order give the same bounds.

    Raises:
        InputError: there is none, or one is not finite.
    """
    sample = _finite(values)
    means = _resampled(sample, seed)
    low, high = _bounds(means)
    return float(sample.mean()), low, high


def compare(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Comparison:
    """The paired bootstrap of two systems: each resample draws the same cases of both. Cases of only one are left out.

    Raises:
        InputError: they have no case in common, or a score is not finite.
    """
    ids = sorted(a.keys() & b.keys())
    check(ids, "The two have no case in common, so they cannot be compared. Give two runs of one benchmark.")
    first, second = _finite([a[case_id] for case_id in ids]), _finite([b[case_id] for case_id in ids])
    differences = _resampled(second - first, seed)
    low, high = _bounds(differences)
    beyond = np.mean(differences < 0) + np.mean(differences == 0) / 2
    p = min(1.0, max(2 * float(min(beyond, 1 - beyond)), 1 / RESAMPLES))
    return Comparison(float(first.mean()), float(second.mean()), float((second - first).mean()), low, high, len(ids), p)


def _finite(values: Sequence[float]) -> Float[np.ndarray, " n"]:
    sample = np.asarray(values, np.float64)
    if not sample.size or not np.isfinite(sample).all():
        raise InputError(
            f"{sample.size} scores, {int((~np.isfinite(sample)).sum())} of them not finite: there must be one, and all finite."
        )
    return sample


def _resampled(sample: Float[np.ndarray, " n"], seed: int) -> Float[np.ndarray, " resamples"]:
    """Means of resamples."""
    rng, means = np.random.default_rng(seed), []
    rows = max(1, CHUNK // len(sample))
    for start in range(0, RESAMPLES, rows):
        means.append(sample[rng.integers(0, len(sample), (min(rows, RESAMPLES - start), len(sample)))].mean(1))
    return np.concatenate(means)


def _bounds(means: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def stratified(groups: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float, float, float]:
    """The mean of the groups' means, and the bounds of its 95 % interval: each resample draws from every group as many as it has. One group
    is `interval`.

    Raises:
        InputError: there is no group, a group is empty, or a score is not finite.
    """
    samples = [_finite(values) for values in groups] or [_finite([])]
    means = np.mean([_resampled(sample, seed + i) for i, sample in enumerate(samples)], axis=0)
    low, high = _bounds(means)
    return float(np.mean([sample.mean() for sample in samples])), low, high
