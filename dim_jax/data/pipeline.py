"""Batches in an order that is a function of seed and step, loaded by threads or worker processes (Grain)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from dim_jax.data.batches import Keyed, Reader, keyed
from dim_jax.data.pairs import Example, Pairs, Split
from dim_jax.data.pictures import shifted
from dim_jax.data.synthetic import SYNTHETIC, Synthetic
from dim_jax.data.workers import live_as_long_as_the_run
from dim_jax.errors import InputError

KINDS = ("edit", "caption")


@dataclass(frozen=True)
class Repeated:
    """The examples of a source at `places`, which may name one more than once."""

    source: Pairs | Synthetic
    places: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.places[index])]


Source = Pairs | Synthetic | Repeated  # examples by index


def balanced(source: Pairs | Synthetic, balance: float) -> Source:
    """The source with each example of a rule repeated (most / count)^balance times, rounded; `most` is the count of the largest rule."""
    rules = source.rules()
    counts = Counter(rules)
    most = max(counts.values())
    repeats = [round((most / counts[rule]) ** balance) for rule in rules]
    return Repeated(source, np.repeat(np.arange(len(rules)), repeats)) if max(repeats) > 1 else source


def open_source(source: str, kind: str, *, split: Split, side: int) -> Pairs | Synthetic:
    """The examples of one kind ("edit" or "caption"): of a folder of pairs, or random ones of `side` pixels ("synthetic").

    Raises:
        InputError: the kind is neither, or the folder cannot be used.
    """
    if kind not in KINDS:
        raise InputError(f'data.mix has the kind "{kind}", but kinds are {" and ".join(KINDS)}.')
    return Synthetic(kind, side) if source == SYNTHETIC else Pairs(Path(source), split, kind)


def moved(example: Example, rng: np.random.Generator, *, most: int) -> Example:
    """The example with its pictures moved together, by up to `most` pixels to each side: the edit between them stays what it is."""
    right, down = (int(way) for way in rng.integers(-most, most, 2, endpoint=True))
    source = None if example.source is None else shifted(example.source, right, down)
    return replace(example, source=source, target=shifted(example.target, right, down))


def batches(
    sources: Sequence[tuple[Source, float]], reader: Reader, *, batch_size: int, seed: int, start: int, workers: int, shift: int = 0
) -> Iterator[Keyed]:
    """Endless batches from number `start` on; the n-th batch depends on the seed and n alone, never on `workers`.

    Every batch is of one source, chosen by the weights; each source is shuffled anew in every round. A round's last samples may share
    a batch with the next round's first. With 0 workers, threads of this process load. `shift` as in `moved`.
    """
    mixed = []
    for i, (source, _) in enumerate(sources):
        examples = grain.MapDataset.source(source).seed(seed + i).shuffle().repeat(None)
        if shift:
            examples = examples.random_map(partial(moved, most=shift))
        mixed.append(examples.random_map(reader.choose).batch(batch_size, batch_fn=partial(keyed, reader)))
    dataset = mixed[0] if len(mixed) == 1 else grain.MapDataset.mix(mixed, [weight for _, weight in sources])
    stream = dataset[start:].to_iter_dataset(grain.ReadOptions(num_threads=0 if workers else 4, prefetch_buffer_size=0 if workers else 8))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which nobody parses outside of an absl program
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4), live_as_long_as_the_run)
        # What workers send is unpacked beside the training step, not between two of them.
        stream = grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=2)
    return iter(stream)


def open_mixture(source: str, mix: Mapping[str, float], *, split: Split, side: int, balance: float = 0.0) -> list[tuple[Source, float]]:
    """The sources of a mixture, kind -> weight; kinds of weight 0 are left out. `balance` as in `balanced`.

    Raises:
        InputError: no weight is positive, or as `open_source`.
    """
    if not any(weight > 0 for weight in mix.values()):
        raise InputError(f"data.mix is {dict(mix)}: give at least one kind a positive weight.")
    kinds = [(kind, weight) for kind, weight in sorted(mix.items()) if weight > 0]
    return [(balanced(open_source(source, kind, split=split, side=side), balance), weight) for kind, weight in kinds]
