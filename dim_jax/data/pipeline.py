"""Loads the batches of a plan by threads or worker processes (Grain). Batch n depends on the seed and n alone.

Each process loads only its own rows of a batch, and finds them without the other processes.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int
from rich.console import Console

from dim_jax import processes
from dim_jax.data.batches import Batch
from dim_jax.data.dataset import Source, open_source
from dim_jax.data.example import Example, Kind, Split, as_kind
from dim_jax.data.plan import Component, Plan, PlannedBatch
from dim_jax.data.readers import Augment, Reader, buckets
from dim_jax.data.row_stats import RowStats, count_rows
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.data.workers import exit_with_parent, signals_blocked
from dim_jax.errors import InputError, check, listed
from dim_jax.processing.buckets import nearest_bucket
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.rng import stream as random_stream
from dim_jax.storage.disk import NO_SPACE, check_space, format_bytes
from dim_jax.storage.folders import append
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import AnyPath

# As written in a config; `schedule` checks them.
Mix = Mapping[str, Any]  # {PART: WEIGHT, ...}
Curriculum = Sequence[Any]  # ((STEP, {PART: WEIGHT, ...}), ...)
SHARED_MEMORY = Path("/dev/shm")
MAX_SUBSTITUTES = 100  # substitutes that are tried for a bad sample; if all of them are bad, something else is wrong


class MixtureComponent(NamedTuple):
    """A component of the mixture: rows of one kind. From each key of `weights` (a step) on, weight / sum of weights of the steps use it."""

    name: str
    kind: Kind
    source: Source
    weights: Mapping[int, float]


def open_mixture(source: str, mix: Mix, *, curriculum: Curriculum = (), split: Split, side: int) -> list[MixtureComponent]:
    """The components of a mixture, sorted by name; those whose weight is always 0 are left out.

    `mix` has weights by KIND ("edit" or "caption", of `source`) or by KIND:SOURCE. From each step in `curriculum` on, its weights replace
    them. Sources are as in `open_source`; if `source` is synthetic, all are.

    Raises:
        InputError: as `schedule` and `open_source`.
    """
    mixture = []
    for spelling, weights in schedule(mix, curriculum).items():
        kind_name, _, own_source = spelling.partition(":")
        kind, name = as_kind(kind_name), own_source or source
        opened = open_source(SYNTHETIC if source == SYNTHETIC else name, kind, split=split, side=side)
        mixture.append(MixtureComponent(f"{kind}:{name}", kind, opened, weights))
    return mixture


def schedule(mix: Mix, curriculum: Curriculum = ()) -> dict[str, dict[int, float]]:
    """Name of each component, sorted -> step -> its weight from that step on; without components whose weight is always 0.

    Raises:
        InputError: `curriculum` has another form, its steps do not increase, or it names components that are not in `mix`; or at some
            step a weight is negative or all are 0.
    """
    phases = {0: mix}
    for phase in curriculum:
        if not isinstance(phase, tuple | list) or list(map(type, phase)) != [int, dict]:
            raise InputError(f"data.curriculum has {phase!r}: write ((STEP, {{PART: WEIGHT, ...}}), ...).")
        step, weights = phase
        check(step > max(phases), f"data.curriculum has step {step} after step {max(phases)}: steps must increase.")
        if unknown := [name for name in weights if name not in mix]:
            raise InputError(
                f"data.curriculum, step {step}: {', '.join(unknown)}: data.mix has {', '.join(sorted(mix))}. Add every part there; "
                "those that start later get weight 0."
            )
        phases[step] = weights
    for step, weights in phases.items():
        numbers = all(isinstance(weight, int | float) for weight in weights.values())
        if not numbers or not any(weights.values()) or min(weights.values()) < 0:
            where = f"data.curriculum, step {step}," if step else "data.mix"
            raise InputError(f"{where} is {dict(weights)}: give at least one part a positive weight, and none a negative one.")
    scheduled = {name: {step: float(weights.get(name, 0)) for step, weights in phases.items()} for name in sorted(mix)}
    return {name: weights for name, weights in scheduled.items() if any(weights.values())}


def evenly_spaced_examples(mixture: Sequence[MixtureComponent], count: int, bad: "list[BadSample] | None" = None) -> Iterator[Example]:
    """At most `count` examples, evenly from all components. Bad samples are added to `bad`; without it they raise."""
    rows = [(member, row) for member in mixture for row in evenly_spaced(len(member.source), -(-count // len(mixture)))]
    for member, row in rows[:count]:
        try:
            yield member.source[row]
        except InputError as error:
            if bad is None:
                raise
            bad.append(BadSample(f"{member.name}, held out", row + 1, str(error)))


def evenly_spaced(rows: int, count: int) -> list[int]:
    """At most `count` evenly spaced numbers below `rows`, with the first and the last."""
    return np.linspace(0, rows - 1, min(count, rows)).astype(int).tolist()


def make_plan(
    mixture: Sequence[MixtureComponent],
    reader: Reader,
    tokenizer: ChatTokenizer | None,
    *,
    batch_size: int,
    seed: int,
    balance: float = 0.0,
    max_bad_rows: int = 0,
    console: Console | None = None,
) -> Plan:
    """The order of a mixture. If a reader has several buckets, rows that `dim prepare` did not count are counted now.

    `balance` repeats each row of a rule (most / count)^balance times, rounded; `most` is the count of the largest rule. Up to
    `max_bad_rows` rows that cannot be read are planned all the same; the loader lists them.

    Raises:
        InputError: rows have more tokens than any bucket, or more than `max_bad_rows` rows cannot be read.
    """
    components = []
    for member in mixture:
        if not len(member.source):
            raise InputError(f"{member.name}: has no rows to train on. Prepare another data set, or set its weight in data.mix to 0.")
        rows = np.arange(len(member.source))
        if balance:
            rows = np.repeat(rows, repeats_per_row(member.source.rules(), balance))
        numbers = np.zeros(len(member.source), np.int64)
        if len(buckets(reader)) > 1:
            numbers = _bucket_numbers(member, reader, _stats(member, tokenizer, max_bad_rows, console))
        # Small dtypes: every worker gets a copy, and there may be millions of rows.
        components.append(Component(member.name, member.weights, rows.astype(np.int32), numbers[rows].astype(np.int16)))
    return Plan(components, batch_size, seed)


def repeats_per_row(rules: Sequence[str], balance: float) -> list[int]:
    """How often each row is in an epoch, from its rule."""
    counts = Counter(rules)
    most = max(counts.values())
    return [round((most / counts[rule]) ** balance) for rule in rules]


def _stats(member: MixtureComponent, tokenizer: ChatTokenizer | None, max_bad_rows: int, console: Console | None) -> RowStats:
    stats = member.source.stats(tokenizer)
    if stats is not None:
        return stats
    if console is not None:
        message = (
            f"counting the tokens of {len(member.source):,} rows of {member.name}; `dim prepare --tokenizer` does it once for all runs"
        )
        console.out(message, highlight=False)
    return count_rows(member.source, tokenizer, max_bad_rows=max_bad_rows)


def _bucket_numbers(member: MixtureComponent, reader: Reader, stats: RowStats) -> Int[np.ndarray, " n"]:
    """Index of each row's bucket in `buckets(reader)`."""
    lengths = sorted(reader.lengths)
    tokens = reader.tokens(stats, kind=member.kind)
    numbers = np.searchsorted(lengths, tokens)
    if len(long := np.flatnonzero(numbers == len(lengths))):
        raise InputError(
            f"{member.name}: {len(long):,} of {len(tokens):,} rows have more tokens than the longest bucket {lengths[-1]:,}, such as row "
            f"{long[0] + 1} with {tokens[long[0]]:,}; the longest has {tokens.max():,}. Add a longer bucket to data.lengths."
        )
    if len(reader.sizes) > 1:
        sizes, inverse = np.unique(np.stack([stats.width, stats.height], 1), axis=0, return_inverse=True)
        nearest = [reader.sizes.index(nearest_bucket(w, h, reader.sizes)) if w else 0 for w, h in sizes.tolist()]
        numbers = np.array(nearest)[inverse.reshape(-1)] * len(lengths) + numbers
    return numbers


class BadSample(NamedTuple):
    """A row that cannot be used: its source, its number from 1 on, and the reason."""

    source: str
    row: int
    error: str


class LoadedBatch(NamedTuple):
    """This process's rows of a batch, the keys of their examples, and the bad samples that were replaced."""

    keys: tuple[str, ...]
    batch: Batch
    bad: tuple[BadSample, ...]


class BadSamples:
    """The list of the samples that cannot be used, in a jsonl file to which later runs add. All processes share a budget; a run stops when
    there are more.

    Args:
        path: the file; the first bad sample creates it.
        budget: how many rows may be bad, over all epochs and with held-out rows.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, path: AnyPath, budget: int):
        self.path, self._budget = path, budget
        self._listed = set(_read_bad_samples(path)) if path.exists() else set()
        self.new: list[BadSample] = []

    def __len__(self) -> int:
        return len(self._listed)

    def watch(self, stream: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
        """The same batches; their bad samples are collected for `flush`."""
        for loaded in stream:
            self.new += loaded.bad
            yield loaded

    def flush(self) -> None:
        """List the bad samples of all processes since the last call. All processes must call it at the same step.

        Raises:
            InputError: there are more than `budget`; names the last of them.
        """
        new = [BadSample(*fields) for samples in processes.gather(self.new) for fields in samples]
        self.new.clear()
        for sample in new:
            self._add(sample)
        if len(self) > self._budget:
            message = f"{len(self)} rows cannot be used, but data.bad_samples allows {self._budget}"
            raise InputError(f"{message}.{f' The last: {new[-1].error}' if new else ''} All are listed in {self.path}.")

    def _add(self, sample: BadSample) -> None:
        name = (sample.source, sample.row)
        if name in self._listed:
            return
        self._listed.add(name)
        if processes.is_first():
            append(self.path, json.dumps(sample._asdict(), ensure_ascii=False) + "\n")


def _read_bad_samples(path: AnyPath) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json_loads(line)
            yield fields["source"], fields["row"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: is not a bad sample ({error}). Remove the line.") from error


@dataclass(frozen=True)
class Loader:
    """Loads the batch of a step (from 0 on); workers get a copy.

    Attributes:
        batch_indices: the rows of the global batch that this process loads, in order.
        augment: changes examples; None: no change.
        replace_bad_samples: replace a bad sample by another row of its bucket instead of raising its error.
    """

    mixture: Sequence[MixtureComponent]
    plan: Plan
    reader: Reader
    batch_indices: Int[np.ndarray, " b"]
    augment: Augment | None = None
    replace_bad_samples: bool = False

    def __call__(self, step: int) -> LoadedBatch:
        planned = self.plan.batch_at(step)
        bad: list[BadSample] = []
        self.mixture[planned.component].source.prefetch(planned.rows[self.batch_indices])
        samples: list[Any] = [self._sample(step, index, planned, bad) for index in self.batch_indices.tolist()]
        bucket, keys = buckets(self.reader)[planned.bucket], tuple(sample.key for sample in samples)
        try:
            return LoadedBatch(keys, self.reader.collate(samples, bucket, self.batch_indices), tuple(bad))
        except InputError as error:  # such as a row that is longer than its data set says
            raise InputError(f"{self.mixture[planned.component].name}, one of {listed(keys, limit=3)}: {error}") from error

    def _sample(self, step: int, index: int, planned: PlannedBatch, bad: list[BadSample]) -> Any:
        """The sample at an index of the global batch; its random numbers depend on seed, step and index."""
        member = self.mixture[planned.component]
        first = row = int(planned.rows[index])
        for attempt in range(MAX_SUBSTITUTES):
            rng = np.random.default_rng(random_stream(self.plan.seed, "samples", step, index))
            try:
                example: Any = member.source[row]
                if self.augment is not None:
                    example = self.augment(example, rng)
                return self.reader.make_sample(example, rng)
            except InputError as error:
                if not self.replace_bad_samples:
                    raise
                bad.append(BadSample(member.name, row + 1, str(error)))
                row = self.plan.substitute(planned, first, attempt)
        raise InputError(f"{member.name}: {MAX_SUBSTITUTES} rows one after the other cannot be used. The last: {bad[-1].error}")


def batches(loader: Callable[[int], Any], *, start: int, workers: int, stop: int = sys.maxsize) -> Iterator[Any]:
    """Batches number `start` up to `stop`, by default without end; `loader` loads the batch of a number.

    They are the same for any number of `workers` (processes; 0: threads).
    """
    steps = grain.MapDataset.range(start, stop).map(loader)
    stream = steps.to_iter_dataset(grain.ReadOptions(num_threads=0 if workers else 4, prefetch_buffer_size=0 if workers else 8))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which only an absl program parses
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4), exit_with_parent)
        # Unpack what workers send while a training step runs, not between two steps.
        stream = grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=2)
    return _shared_memory_errors(stream, workers) if workers else iter(stream)


def _shared_memory_errors(stream: Iterable[Any], workers: int) -> Iterator[Any]:
    """The same batches; raises InputError if shared memory is too small for what workers send (a write past its end kills a worker)."""
    remedy = "Give it more (docker run --shm-size=8g; on Kubernetes an emptyDir with medium: Memory there), or set data.workers to 0."
    if SHARED_MEMORY.exists():
        check_space(SHARED_MEMORY, workers * 2**20, purpose=f"{workers} processes that load data", remedy=remedy)
    sys.warnoptions.append("ignore:resource_tracker")  # Python's process that cleans up after a killed worker warns
    try:
        with signals_blocked():
            iterator: Any = iter(stream)
            iterator.start_prefetch()  # by a thread, which starts the workers
        yield from iterator
    except (OSError, RuntimeError) as error:
        if "exit code -7" not in str(error) and getattr(error, "errno", 0) not in NO_SPACE:
            raise
        free = shutil.disk_usage(SHARED_MEMORY)
        raise InputError(
            f"{SHARED_MEMORY}: too small ({format_bytes(free.total)}, {format_bytes(free.free)} of it free) for the batches of {workers} "
            f"processes that load data. {remedy}"
        ) from error
