"""Batches as the plan says, loaded by threads or worker processes (Grain): the n-th depends on the seed and n alone.

A process loads only its own rows of each batch, and needs no other process to know which they are.
"""

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

from dim_jax.data.augment import Augment
from dim_jax.data.batches import Batch
from dim_jax.data.buckets import nearest_bucket
from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.dataset import Source, open_source
from dim_jax.data.example import Example, Kind, Split, as_kind
from dim_jax.data.plan import Component, Plan, Planned
from dim_jax.data.readers import Reader, buckets
from dim_jax.data.row_stats import RowStats, count
from dim_jax.data.synthetic import SYNTHETIC
from dim_jax.data.workers import live_as_long_as_the_run
from dim_jax.errors import InputError
from dim_jax.rng import stream as random_stream
from dim_jax.storage.disk import NO_SPACE, check_space, format_bytes

# As people write them in a config, so `schedule` checks them.
Mix = Mapping[str, Any]  # {PART: WEIGHT, ...}
Curriculum = Sequence[Any]  # ((STEP, {PART: WEIGHT, ...}), ...)
SHARED = Path("/dev/shm")
ATTEMPTS = 100  # substitutes that are tried for one bad sample: where all are bad, it is not the samples


class MixtureComponent(NamedTuple):
    """A part of the mixture: from each of these steps on, weight / sum of weights of the steps are on these rows of one kind."""

    name: str
    kind: Kind
    source: Source
    weights: Mapping[int, float]


def open_mixture(source: str, mix: Mix, *, curriculum: Curriculum = (), split: Split, side: int) -> list[MixtureComponent]:
    """The parts of a mixture, in order of their names; those that never have a weight are left out.

    `mix` has weights by KIND ("edit" or "caption"), which is of `source`, or by KIND:SOURCE; after each number of steps that `curriculum`
    names, the weights there take their place. Sources are as in `open_source`; where `source` is synthetic, all are.

    Raises:
        InputError: as `schedule` and `open_source`.
    """
    parts = []
    for part, weights in schedule(mix, curriculum).items():
        said, _, other = part.partition(":")
        kind, name = as_kind(said), other or source
        opened = open_source(SYNTHETIC if source == SYNTHETIC else name, kind, split=split, side=side)
        parts.append(MixtureComponent(f"{kind}:{name}", kind, opened, weights))
    return parts


def schedule(mix: Mix, curriculum: Curriculum = ()) -> dict[str, dict[int, float]]:
    """Name of each part that ever has a weight, in order -> after how many steps -> its weight from there on.

    Raises:
        InputError: `curriculum` has another form, its steps do not rise, or it names parts that `mix` does not; or at some time no weight
            is positive, or one is negative.
    """
    phases = {0: mix}
    for phase in curriculum:
        if not isinstance(phase, tuple | list) or list(map(type, phase)) != [int, dict]:
            raise InputError(f"data.curriculum has {phase!r}: write ((STEP, {{PART: WEIGHT, ...}}), ...).")
        step, weights = phase
        if step <= max(phases):
            raise InputError(f"data.curriculum has step {step} after step {max(phases)}: steps must rise.")
        if unknown := [name for name in weights if name not in mix]:
            raise InputError(
                f"data.curriculum, step {step}: {', '.join(unknown)}: data.mix has {', '.join(sorted(mix))}. Name every part there, those "
                "that come later with weight 0."
            )
        phases[step] = weights
    for step, weights in phases.items():
        numbers = all(isinstance(weight, int | float) for weight in weights.values())
        if not numbers or not any(weights.values()) or min(weights.values()) < 0:
            said = f"data.curriculum, step {step}," if step else "data.mix"
            raise InputError(f"{said} is {dict(weights)}: give at least one part a positive weight, and none a negative one.")
    found = {name: {step: float(weights.get(name, 0)) for step, weights in phases.items()} for name in sorted(mix)}
    return {name: weights for name, weights in found.items() if any(weights.values())}


def evenly_spaced_examples(parts: Sequence[MixtureComponent], count: int, bad: "list[BadSample] | None" = None) -> Iterator[Example]:
    """At most `count` examples, taken evenly from all of the parts. What cannot be used goes to `bad`; without it, it raises."""
    places = [(part, row) for part in parts for row in evenly(len(part.source), -(-count // len(parts)))]
    for part, row in places[:count]:
        try:
            yield part.source[row]
        except InputError as error:
            if bad is None:
                raise
            bad.append(BadSample(f"{part.name}, held out", row + 1, str(error)))


def evenly(rows: int, count: int) -> list[int]:
    """At most `count` numbers below `rows`, the first and the last among them."""
    return np.linspace(0, rows - 1, min(count, rows)).astype(int).tolist()


def make_plan(
    parts: Sequence[MixtureComponent],
    reader: Reader,
    tokenizer: ChatTokenizer | None,
    *,
    batch_size: int,
    seed: int,
    balance: float = 0.0,
    allowed: int = 0,
    console: Console | None = None,
) -> Plan:
    """The order of a mixture. Where a reader has more than one bucket, rows that `dim prepare` did not count are counted now.

    `balance` repeats each row of a rule (most / count)^balance times, rounded; `most` is the count of the largest rule. Of rows that
    cannot be read, `allowed` are planned all the same, for a loader to list.

    Raises:
        InputError: rows have more tokens than any bucket, or more than `allowed` cannot be read.
    """
    components = []
    for part in parts:
        rows = np.arange(len(part.source))
        if balance:
            rows = np.repeat(rows, repeats(part.source.rules(), balance))
        numbers = np.zeros(len(part.source), np.int64)
        if len(buckets(reader)) > 1:
            numbers = _bucket_numbers(part, reader, _stats(part, tokenizer, allowed, console))
        # Small types: every worker gets a copy, and there may be millions.
        components.append(Component(part.name, part.weights, rows.astype(np.int32), numbers[rows].astype(np.int16)))
    return Plan(components, batch_size, seed)


def repeats(rules: Sequence[str], balance: float) -> list[int]:
    """How often each row is seen in a round, from its rule."""
    counts = Counter(rules)
    most = max(counts.values())
    return [round((most / counts[rule]) ** balance) for rule in rules]


def _stats(part: MixtureComponent, tokenizer: ChatTokenizer | None, allowed: int, console: Console | None) -> RowStats:
    known = part.source.stats(tokenizer)
    if known is not None:
        return known
    if console is not None:
        said = f"counting the tokens of {len(part.source):,} rows of {part.name}; `dim prepare --tokenizer` does it once for all runs"
        console.out(said, highlight=False)
    return count(part.source, tokenizer, allowed=allowed)


def _bucket_numbers(part: MixtureComponent, reader: Reader, stats: RowStats) -> Int[np.ndarray, " n"]:
    """Number of each row's bucket, as `buckets` counts them."""
    lengths = sorted(reader.lengths)
    tokens = reader.tokens(stats, edit=part.kind == "edit")
    numbers = np.searchsorted(lengths, tokens)
    if len(long := np.flatnonzero(numbers == len(lengths))):
        raise InputError(
            f"{part.name}: {len(long):,} of {len(tokens):,} rows have more tokens than the longest bucket {lengths[-1]:,}, such as row "
            f"{long[0] + 1} with {tokens[long[0]]:,}; the longest has {tokens.max():,}. Add a longer bucket to data.lengths."
        )
    if len(reader.sizes) > 1:
        known, inverse = np.unique(np.stack([stats.width, stats.height], 1), axis=0, return_inverse=True)
        nearest = [reader.sizes.index(nearest_bucket(w, h, reader.sizes)) if w else 0 for w, h in known.tolist()]
        numbers = np.array(nearest)[inverse.reshape(-1)] * len(lengths) + numbers
    return numbers


class BadSample(NamedTuple):
    """A row that could not be used: of which source, which row of it from 1 on, and why."""

    source: str
    row: int
    error: str


class Loaded(NamedTuple):
    """This process's rows of a batch; beside them the names of their examples, and which rows of sources others stand in for."""

    keys: tuple[str, ...]
    batch: Batch
    bad: tuple[BadSample, ...]


@dataclass(frozen=True)
class Loader:
    """The batch of a step, numbered from 0 on; workers get a copy.

    Attributes:
        places: which rows of the global batch are loaded, in order.
        augment: changes examples; None: they are used as they are.
        substitute: put another row of the bucket in the place of one that cannot be used, rather than raise.
    """

    parts: Sequence[MixtureComponent]
    plan: Plan
    reader: Reader
    places: Int[np.ndarray, " b"]
    augment: Augment | None = None
    substitute: bool = False

    def __call__(self, step: int) -> Loaded:
        planned = self.plan.at(step)
        bad: list[BadSample] = []
        samples: list[Any] = [self._sample(step, place, planned, bad) for place in self.places.tolist()]
        bucket = buckets(self.reader)[planned.bucket]
        return Loaded(tuple(sample.key for sample in samples), self.reader.collate(samples, bucket, self.places), tuple(bad))

    def _sample(self, step: int, place: int, planned: Planned, bad: list[BadSample]) -> Any:
        """The sample at a place of the global batch; its random numbers are of seed, step and place."""
        part = self.parts[planned.component]
        first = row = int(planned.rows[place])
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng(random_stream(self.plan.seed, "samples", step, place))
            try:
                example: Any = part.source[row]
                if self.augment is not None:
                    example = self.augment(example, rng)
                return self.reader.choose(example, rng)
            except InputError as error:
                if not self.substitute:
                    raise
                bad.append(BadSample(part.name, row + 1, str(error)))
                row = self.plan.substitute(planned, first, attempt)
        raise InputError(f"{part.name}: {ATTEMPTS} rows in a row cannot be used. The last: {bad[-1].error}")


def batches(loader: Callable[[int], Any], *, start: int, workers: int, stop: int = sys.maxsize) -> Iterator[Any]:
    """Batches from number `start` on, endless or up to `stop`, without loading those before; `loader` gives the one of a number.

    They are the same for any number of `workers` (0: threads).
    """
    steps = grain.MapDataset.range(start, stop).map(loader)
    stream = steps.to_iter_dataset(grain.ReadOptions(num_threads=0 if workers else 4, prefetch_buffer_size=0 if workers else 8))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which nobody parses outside of an absl program
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4), live_as_long_as_the_run)
        # What workers send is unpacked beside the training step, not between two of them.
        stream = grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=2)
    return _through_shared_memory(stream, workers) if workers else iter(stream)


def _through_shared_memory(stream: Iterable[Any], workers: int) -> Iterator[Any]:
    """The same batches; an InputError where the memory is too small through which workers send them. A write past its end kills one."""
    remedy = "Give it more (docker run --shm-size=8g; on Kubernetes an emptyDir with medium: Memory there), or set data.workers to 0."
    if SHARED.exists():
        check_space(SHARED, workers * 2**20, what=f"{workers} processes that load data", remedy=remedy)
    sys.warnoptions.append("ignore:resource_tracker")  # of Python's own process that clears up what a killed worker left
    try:
        yield from stream
    except (OSError, RuntimeError) as error:
        if "exit code -7" not in str(error) and getattr(error, "errno", 0) not in NO_SPACE:
            raise
        free = shutil.disk_usage(SHARED)
        raise InputError(
            f"{SHARED}: too small ({format_bytes(free.total)}, {format_bytes(free.free)} of it free) for the batches of {workers} "
            f"processes that load data. {remedy}"
        ) from error
