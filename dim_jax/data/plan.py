"""Which examples a step trains on: a function of seed and step alone, the same on every process, without reading any data.

The weights of the mixture may change at given steps. How many batches of each component the phases before took is counted once, so any
step is found without those before it, and a component goes on in its round where it stopped.

Every batch is of one component of the mixture and of one bucket (a size of pictures, a number of tokens). In each round of a component
every entry stands once: the entries of a bucket are shuffled, cut into batches, and the batches of all buckets are shuffled. What does
not fill a batch is the beginning of the bucket's first batch of the next round, so nothing is dropped and nothing repeated.
"""

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer

# What a random order is of; it enters the seed, so that no two orders are the same.
_ENTRIES, _BATCHES, _SUBSTITUTE = range(3)


@dataclass(frozen=True)
class Component:
    """A part of the mixture.

    Attributes:
        name: of its source, for people.
        weights: from each of these steps on, its part of the steps is weight / sum of weights; all components name the same ones.
        rows: row of the source of each entry; a row may stand more than once.
        buckets: number of the bucket of each entry.
    """

    name: str
    weights: Mapping[int, float]
    rows: Integer[np.ndarray, " n"]
    buckets: Integer[np.ndarray, " n"]


class Phase(NamedTuple):
    """From a step on, the components have these shares, in integers; of each, so many batches were before it."""

    start: int
    shares: list[int]
    before: list[int]

    def taken(self, step: int) -> list[int]:
        """How many batches of each component are before a step of this phase, or before its end. The shares are spread evenly: of the n
        steps that the components before it leave, a component of share w has n w, rounded."""
        left, rest, found = step - self.start, sum(self.shares), []
        for share, before in zip(self.shares, self.before, strict=True):
            mine = (left * share + rest // 2) // rest if share else 0
            found.append(before + mine)
            left, rest = left - mine, rest - share
        return found


class Planned(NamedTuple):
    """The batch of a step: numbers of its component and of its bucket, rows of the component's source by place in the global batch."""

    component: int
    bucket: int
    rows: Integer[np.ndarray, " b"]


class Plan:
    """`plan.at(step)` for any step from 0 on, in about constant time: the orders of the current rounds are kept.

    Pickles as its arguments. Orders come from raw bits of NumPy's generators, which NumPy promises to keep from version to version
    (its shuffles it does not).
    """

    def __init__(self, components: Sequence[Component], batch_size: int, seed: int):
        if not components or any(len(component.rows) == 0 for component in components):
            raise ValueError("A plan needs at least one component, and each at least one entry.")
        starts = sorted(components[0].weights)
        if starts[:1] != [0] or any(sorted(component.weights) != starts for component in components):
            raise ValueError("Every component needs a weight from step 0 on, and from each step where another one has a new weight.")
        self._arguments = (components, batch_size, seed)
        self.components, self.batch_size, self.seed = components, batch_size, seed
        self._phases: list[Phase] = []
        for start in starts:
            before = self._phases[-1].taken(start) if self._phases else [0] * len(components)
            self._phases.append(Phase(start, _shares([component.weights[start] for component in components]), before))
        self._members = [_by_bucket(component) for component in components]
        self._lock = threading.Lock()  # threads of a loader that enter a round together would each shuffle it
        self._entries = lru_cache(2 * sum(map(len, self._members)))(self._shuffled_entries)
        self._batches = lru_cache(2 * len(components))(self._shuffled_batches)

    def __reduce__(self):
        return Plan, self._arguments

    def at(self, step: int) -> Planned:
        """The batch of a step, from 0 on."""
        phase = self._phases[bisect_right(self._phases, step, key=lambda phase: phase.start) - 1]
        before, after = phase.taken(step), phase.taken(step + 1)
        component = next(one for one, (now, then) in enumerate(zip(before, after, strict=True)) if then > now)
        number = before[component]
        members = self._members[component]
        round_ = self._round(component, number)
        with self._lock:
            batches = self._batches(component, round_)
            bucket, batch = batches[number - self._begun(component, round_)]
        places = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)  # in the endless row of this bucket's rounds
        rows = members[int(bucket)]
        rounds, offsets = np.divmod(places, len(rows))
        chosen = np.empty(self.batch_size, np.int64)
        for one in np.unique(rounds):
            with self._lock:
                order = self._entries(component, int(bucket), int(one))
            here = rounds == one
            chosen[here] = rows[order[offsets[here]]]
        return Planned(component, int(bucket), chosen)

    def substitute(self, planned: Planned, row: int, attempt: int) -> int:
        """A row of the same component and bucket, in place of one that cannot be used; `attempt` counts from 0."""
        rows = self._members[planned.component][planned.bucket]
        bits = _bits(self.seed, _SUBSTITUTE, planned.component, row, attempt)
        return int(rows[int(bits.random_raw() % len(rows))])

    def remainder(self, component: int, round_: int) -> int:
        """How many entries of a component wait at the end of a round (from 0 on) for the next to fill their batch."""
        return sum(len(rows) * (round_ + 1) % self.batch_size for rows in self._members[component].values())

    def batches(self, component: int, round_: int) -> int:
        """How many batches of a component a round has."""
        return self._begun(component, round_ + 1) - self._begun(component, round_)

    def _begun(self, component: int, round_: int) -> int:
        """Batches of a component before a round."""
        return sum(len(rows) * round_ // self.batch_size for rows in self._members[component].values())

    def _round(self, component: int, number: int) -> int:
        """The round that a component's batch is of."""
        members = self._members[component].values()
        entries = sum(map(len, members))
        first = number * self.batch_size // entries  # of as many entries; carried ones may move it back by so many rounds:
        last = first + len(members) * self.batch_size // entries + 2
        return first + bisect_right(range(first, last), number, key=lambda round_: self._begun(component, round_)) - 1

    def _shuffled_batches(self, component: int, round_: int) -> Int[np.ndarray, "batches 2"]:
        """Bucket and number within it of each batch of a round."""
        found = [
            (bucket, batch)
            for bucket, rows in self._members[component].items()
            for batch in range(len(rows) * round_ // self.batch_size, len(rows) * (round_ + 1) // self.batch_size)
        ]
        return np.array(found, np.int64).reshape(-1, 2)[_order(len(found), self.seed, _BATCHES, component, round_)]

    def _shuffled_entries(self, component: int, bucket: int, round_: int) -> Integer[np.ndarray, " n"]:
        return _order(len(self._members[component][bucket]), self.seed, _ENTRIES, component, bucket, round_)


def _shares(weights: Sequence[float]) -> list[int]:
    """Integers in the proportion of the weights, of which each is taken to six digits."""
    exact = [Fraction(weight).limit_denominator(10**6) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    return [int(weight * unit) for weight in exact]


def _by_bucket(component: Component) -> dict[int, np.ndarray]:
    """Rows of the entries of each bucket."""
    return {int(bucket): component.rows[component.buckets == bucket] for bucket in np.unique(component.buckets)}


def _order(count: int, *seed: int) -> Integer[np.ndarray, " n"]:
    """The numbers 0 to count - 1 in a random order, small enough to keep for millions."""
    return np.argsort(_bits(*seed).random_raw(count), kind="stable").astype(np.uint32)


def _bits(*seed: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(seed))
