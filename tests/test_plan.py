"""The plan: every entry once a round, a function of seed and step alone, in about constant time."""

import itertools
import pickle
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_jax.data.plan import Component, Plan

COUNTS = st.lists(st.lists(st.integers(0, 13), min_size=1, max_size=4).filter(any), min_size=1, max_size=3)
STEADY = (1.0, 1.0, 1.0)
WEIGHTS = st.lists(st.sampled_from([0.05, 0.1, 1 / 3, 1.0, 7.0]), min_size=3, max_size=3)

PINNED = [(0, 1, [11, 7, 9]), (1, 0, [0, 5, 3]), (0, 0, [8, 12, 2]), (1, 0, [5, 1, 0])]


def plan(counts: list[list[int]], batch_size: int, seed: int = 0, weights=STEADY, later: dict[int, list[float]] | None = None) -> Plan:
    """A plan of components with so many entries in each bucket; their rows are scattered numbers, one of them twice. `later` are other
    weights from steps on."""
    components, phases = [], {0: weights} | (later or {})
    for number, in_bucket in enumerate(counts):
        buckets = np.repeat(np.arange(len(in_bucket)), in_bucket)
        order = np.random.default_rng(number).permutation(len(buckets))
        rows = np.arange(len(buckets)) * 3 + 5
        rows[-1] = rows[0]
        components.append(Component(f"part {number}", {step: of[number] for step, of in phases.items()}, rows[order], buckets[order]))
    return Plan(components, batch_size, seed)


@settings(max_examples=40)
@given(COUNTS, st.integers(1, 9), st.integers(0, 2**63), WEIGHTS, st.dictionaries(st.integers(1, 70), WEIGHTS, max_size=3))
def test_epoch_has_every_entry_once(counts, batch_size, seed, weights, later):
    """At the end of each round, every entry has been seen once for each round, but for those counted as carried into the next; also where
    the weights change in between."""
    found = plan(counts, batch_size, seed, weights, later)
    steps = [found.batch_at(step) for step in range(80)]
    for number, component in enumerate(found.components):
        mine = iter([planned for planned in steps if planned.component == number])
        sizes, entries = Counter(component.buckets.tolist()), Counter(zip(component.buckets.tolist(), component.rows.tolist(), strict=True))
        total = Counter()
        for epoch in range(20):
            batches = list(itertools.islice(mine, found.batches(number, epoch)))
            if len(batches) < found.batches(number, epoch):
                break
            for planned in batches:
                assert len(planned.rows) == batch_size
                total.update((planned.bucket, row) for row in planned.rows.tolist())
            assert total.keys() <= entries.keys()
            waiting = Counter({entry: times * (epoch + 1) - total[entry] for entry, times in entries.items()})
            assert waiting.total() == found.remainder(number, epoch)
            assert all(0 <= count <= entries[entry] * -(-batch_size // sizes[entry[0]]) for entry, count in waiting.items())


@given(COUNTS, st.integers(1, 9), st.integers(0, 2**63))
def test_remainder_is_zero_after_batch_size_epochs(counts, batch_size, seed):
    found = plan(counts[:1], batch_size, seed)
    (component,) = found.components
    seen = Counter(row for step in range(len(component.rows)) for row in found.batch_at(step).rows.tolist())
    assert seen == {row: times * batch_size for row, times in Counter(component.rows.tolist()).items()}


@given(COUNTS, st.integers(0, 10**9), st.integers(0, 2**63), st.dictionaries(st.integers(1, 10**9), WEIGHTS, max_size=3))
def test_plan_steps_are_random_access(counts, step, seed, later):
    """Without the steps before it, in any order, and from a copy that travelled."""
    found = plan(counts, 4, seed, later=later)
    there = [found.batch_at(step + ahead) for ahead in (3, 0)]
    again = pickle.loads(pickle.dumps(plan(counts, 4, seed, later=later)))
    for one, ahead in zip(there, (3, 0), strict=True):
        other = again.batch_at(step + ahead)
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one.rows, other.rows)


@settings(max_examples=20)
@given(WEIGHTS, st.integers(1, 300))
def test_mixture_weights_hold_at_every_step(weights, steps):
    found = plan([[5], [5], [5]], 2, weights=weights)
    taken = Counter(found.batch_at(step).component for step in range(steps))
    for number, weight in enumerate(weights):
        assert abs(taken[number] - steps * weight / sum(weights)) < 3


def test_weights_change_at_their_steps():
    """Of three parts one comes later and one goes; before the first change nothing is another than without."""
    later = {10: [1.0, 1.0, 2.0], 18: [0.0, 0.0, 1.0]}
    found, steady = plan([[5], [5], [5]], 2, weights=[3.0, 1.0, 0.0], later=later), plan([[5], [5], [5]], 2, weights=[3.0, 1.0, 0.0])
    taken = [[found.batch_at(step).component for step in range(*phase)] for phase in ((0, 10), (10, 18), (18, 30))]
    assert [Counter(phase) for phase in taken] == [{0: 8, 1: 2}, {0: 2, 1: 2, 2: 4}, {2: 12}]
    for step in range(10):
        np.testing.assert_array_equal(found.batch_at(step).rows, steady.batch_at(step).rows)
    # Each part goes on where it stopped: the whole is as many batches of each part as it took, in its own order.
    for part in range(3):
        mine = [found.batch_at(step).rows.tolist() for step in range(30) if found.batch_at(step).component == part]
        alone = plan([[5], [5], [5]], 2, weights=[float(one == part) for one in range(3)])
        assert mine == [alone.batch_at(step).rows.tolist() for step in range(len(mine))]


def test_component_weight_from_step_zero_is_required():
    parts = [Component("a", {0: 1.0}, np.arange(3), np.zeros(3, int)), Component("b", {0: 1.0, 4: 2.0}, np.arange(3), np.zeros(3, int))]
    with pytest.raises(ValueError, match="a weight from step 0 on"):
        Plan(parts, 2, 0)


def test_seeds_rounds_and_parts_have_orders_of_their_own():
    orders = [plan([[50], [50]], 50, seed).batch_at(step).rows.tolist() for seed in (0, 1) for step in range(4)]
    assert len({tuple(order) for order in orders}) == 8


def test_batches_of_buckets_are_mixed():
    found = plan([[40, 40, 40]], 4)
    first = [found.batch_at(step).bucket for step in range(30)]
    assert sorted(first) == [0] * 10 + [1] * 10 + [2] * 10
    assert sum(one != other for one, other in itertools.pairwise(first)) > 10


@given(st.integers(0, 99), st.integers(0, 5))
def test_a_substitute_is_of_the_same_bucket(row, attempt):
    found = plan([[7, 9], [8]], 4)
    planned = found.batch_at(row)
    component = found.components[planned.component]
    other = found.substitute(planned, row, attempt)
    assert other in component.rows[component.buckets == planned.bucket]
    assert other == plan([[7, 9], [8]], 4).substitute(planned, row, attempt)


def test_plan_order_is_stable_across_versions():
    """A run goes on after an update of this package or of NumPy as it would have gone on before."""
    parts = [Component("a", {0: 2.0}, np.arange(13), np.arange(13) % 2), Component("b", {0: 1.0}, np.arange(6), np.zeros(6, int))]
    found = Plan(parts, 3, 1)
    assert [(one.component, one.bucket, one.rows.tolist()) for one in map(found.batch_at, (0, 1, 2, 1000))] == PINNED


def test_far_step_is_computed_in_constant_time():
    """Millions of rows are shuffled once a round; within it a step costs microseconds."""
    rows = np.arange(1_000_000)
    found = Plan([Component("large", {0: 1.0, 10**7: 2.0}, rows, rows % 3)], 256, 0)
    found.batch_at(10**8)
    before = time.process_time()
    for step in range(10**8 + 1, 10**8 + 101):
        found.batch_at(step)
    assert time.process_time() - before < 2  # 100 steps; a shuffle of each would take 10 s


def test_empty_plan_is_refused():
    for components in ([], [Component("none", {0: 1.0}, np.arange(0), np.arange(0))]):
        with pytest.raises(ValueError, match="at least one"):
            Plan(components, 2, 0)
