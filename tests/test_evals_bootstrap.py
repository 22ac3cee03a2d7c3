"""Intervals and paired comparisons, against SciPy's bootstrap and against what is known of them."""

import numpy as np
import pytest
from scipy import stats

from dim_jax.errors import InputError
from dim_jax.evals.bootstrap import compare, interval

SCORES = np.random.default_rng(0).normal(3.5, 1, 200).tolist()


def test_an_interval_is_that_of_scipy():
    mean, low, high = interval(SCORES)
    theirs = stats.bootstrap((SCORES,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert mean == pytest.approx(np.mean(SCORES), rel=1e-12)
    # The quantiles of 10,000 and 20,000 means of standard deviation 0.07 scatter by about 0.002 each.
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert interval(SCORES) == (mean, low, high), "the same scores give the same bounds"
    assert interval([2.0]) == (2, 2, 2)


def test_pairs_tell_apart_what_two_intervals_do_not():
    """A difference of 0.1 on every case is sure, though the scores themselves scatter by 1."""
    a = {str(i): score for i, score in enumerate(SCORES)}
    noise = np.random.default_rng(1).normal(0.1, 0.3, 200).tolist()
    b = {str(i): score + noise[i] for i, score in enumerate(SCORES)}
    found = compare(a, b)
    assert interval(list(a.values()))[2] > found.mean_b, "alone, the intervals overlap"
    assert 0 < found.low < found.difference < found.high
    assert found.difference == pytest.approx(found.mean_b - found.mean_a)
    assert found.p <= 0.001
    back = compare(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(2)
    ps = [compare({str(i): 0.0 for i in range(50)}, {str(i): x for i, x in enumerate(rng.normal(0, 1, 50).tolist())}).p for _ in range(40)]
    assert 0.3 < np.mean(ps) < 0.7
    assert compare({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}).p == 1


def test_only_cases_of_both_count():
    found = compare({"a": 1.0, "b": 2.0, "x": 100.0}, {"b": 4.0, "a": 2.0, "y": -5.0})
    assert (found.cases, found.mean_a, found.mean_b) == (2, 1.5, 3)
    with pytest.raises(InputError, match="no case in common"):
        compare({"a": 1.0}, {"b": 1.0})
    with pytest.raises(InputError, match="1 of them not finite"):
        interval([1.0, float("nan")])
    with pytest.raises(InputError, match="0 scores"):
        interval([])
