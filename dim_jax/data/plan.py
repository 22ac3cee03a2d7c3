"""The order of training examples: a function of seed and step alone, the same on every process, computed without reading data.

The weights of the mixture may change at given steps. The batches of earlier phases are counted once for each component, so any step is
found without the steps before it, and a component continues its epoch after a change.

Every batch is of one component of the mixture and of one bucket (a size of pictures, a number of tokens). In each epoch of a component
every entry is used once: the entries of a bucket are shuffled and cut into batches, and the batches of all buckets are shuffled. Entries
that do not fill a batch start the bucket's first batch of the next epoch, so nothing is dropped and nothing is repeated.
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

# The purpose of a random order, a part of its seed, so that no two orders are the same.
_ENTRIES, _BATCHES, _SUBSTITUTE = range(3)


@dataclass(frozen=True)
class Component:
    """A component of the mixture.

    Attributes:
        name: of its source, for people.
        weights: step -> weight from there on; its share of the steps is weight / sum of weights. All components have the same steps.
        rows: row of the source of each entry; a row may occur more than once.
        buckets: index of the bucket of each entry.
    """

    name: str
    weights: Mapping[int, float]
    rows: Integer[np.ndarray, " n"]
    buckets: Integer[np.ndarray, " n"]


class Phase(NamedTuple):
    """A phase from step `start` on: the integer shares of the components, and the number of their batches before it."""

    start: int
    shares: list[int]
    before: list[int]

    def counts(self, step: int) -> list[int]:
        """The number of batches of each component before a step of this phase (or its end). Shares are spread evenly: of the n steps that
        earlier components leave, a component with share w gets n w, rounded."""
        steps, shares, counts = step - self.start, sum(self.shares), []
        for share, before in zip(self.shares, self.before, strict=True):
            batches = (steps * share + shares // 2) // shares if share else 0
            counts.append(before + batches)
            steps, shares = steps - batches, shares - share
        return counts


class PlannedBatch(NamedTuple):
    """The batch of a step: indices of its component and of its bucket, and rows of the component's source in order of the batch."""

    component: int
    bucket: int
    rows: Integer[np.ndarray, " b"]


class Plan:
    """`plan.batch_at(step)` for any step from 0 on, in about constant time: the orders of the current epochs are cached.

    Pickles as its arguments. Orders come from raw bits of NumPy's generators, which stay the same from version to version of NumPy
    (its shuffles may change).
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
            before = self._phases[-1].counts(start) if self._phases else [0] * len(components)
            self._phases.append(Phase(start, _integer_weights([component.weights[start] for component in components]), before))
        self._rows_by_bucket: list[dict[int, np.ndarray]] = [
            {int(bucket): part.rows[part.buckets == bucket] for bucket in np.unique(part.buckets)} for part in components
        ]
        self._lock = threading.Lock()  # otherwise each thread of a loader would shuffle a new epoch
        self._entries = lru_cache(2 * sum(map(len, self._rows_by_bucket)))(self._shuffled_entries)
        self._batches = lru_cache(2 * len(components))(self._shuffled_batches)

    def __reduce__(self):
        return Plan, self._arguments

    def batch_at(self, step: int) -> PlannedBatch:
        """The batch of a step, from 0 on."""
        phase = self._phases[bisect_right(self._phases, step, key=lambda phase: phase.start) - 1]
        before, after = phase.counts(step), phase.counts(step + 1)
        component = next(i for i, (now, then) in enumerate(zip(before, after, strict=True)) if then > now)
        number = before[component]
        members = self._rows_by_bucket[component]
        epoch = self._epoch(component, number)
        with self._lock:
            batches = self._batches(component, epoch)
            bucket, batch = batches[number - self._batches_before(component, epoch)]
        entries = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)  # in the endless sequence of this bucket's epochs
        rows = members[int(bucket)]
        epochs, offsets = np.divmod(entries, len(rows))
        chosen = np.empty(self.batch_size, np.int64)
        for bucket_epoch in np.unique(epochs):
            with self._lock:
                order = self._entries(component, int(bucket), int(bucket_epoch))
            in_epoch = epochs == bucket_epoch
            chosen[in_epoch] = rows[order[offsets[in_epoch]]]
        return PlannedBatch(component, int(bucket), chosen)

    def substitute(self, planned: PlannedBatch, row: int, attempt: int) -> int:
        """Another row of the same component and bucket, to replace a bad sample; `attempt` counts from 0."""
        rows = self._rows_by_bucket[planned.component][planned.bucket]
        bits = _bit_generator(self.seed, _SUBSTITUTE, planned.component, row, attempt)
        return int(rows[int(bits.random_raw() % len(rows))])

    def remainder(self, component: int, epoch: int) -> int:
        """How many entries of a component are left at the end of an epoch (from 0 on), for batches of the next."""
        return sum(len(rows) * (epoch + 1) % self.batch_size for rows in self._rows_by_bucket[component].values())

    def batches(self, component: int, epoch: int) -> int:
        """How many batches of a component an epoch has."""
        return self._batches_before(component, epoch + 1) - self._batches_before(component, epoch)

    def _batches_before(self, component: int, epoch: int) -> int:
        """Batches of a component before an epoch."""
        return sum(len(rows) * epoch // self.batch_size for rows in self._rows_by_bucket[component].values())

    def _epoch(self, component: int, number: int) -> int:
        """The epoch of a component's batch."""
        members = self._rows_by_bucket[component].values()
        entries = sum(map(len, members))
        first = number * self.batch_size // entries  # by the number of entries; remainders may put it this many epochs later:
        last = first + len(members) * self.batch_size // entries + 2
        return first + bisect_right(range(first, last), number, key=lambda epoch: self._batches_before(component, epoch)) - 1

    def _shuffled_batches(self, component: int, epoch: int) -> Int[np.ndarray, "batches 2"]:
        """Bucket, and index within the bucket, of each batch of an epoch."""
        batches = [
            (bucket, batch)
            for bucket, rows in self._rows_by_bucket[component].items()
            for batch in range(len(rows) * epoch // self.batch_size, len(rows) * (epoch + 1) // self.batch_size)
        ]
        return np.array(batches, np.int64).reshape(-1, 2)[_permutation(len(batches), self.seed, _BATCHES, component, epoch)]

    def _shuffled_entries(self, component: int, bucket: int, epoch: int) -> Integer[np.ndarray, " n"]:
        return _permutation(len(self._rows_by_bucket[component][bucket]), self.seed, _ENTRIES, component, bucket, epoch)


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Integers in the proportion of the weights, which are rounded to six digits."""
    exact = [Fraction(weight).limit_denominator(10**6) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    return [int(weight * unit) for weight in exact]


def _permutation(count: int, *seed: int) -> Integer[np.ndarray, " n"]:
    """The numbers 0 to count - 1 in a random order, small enough to keep for millions."""
    return np.argsort(_bit_generator(*seed).random_raw(count), kind="stable").astype(np.uint32)


def _bit_generator(*seed: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(seed))
