"""What a benchmark is: its cases, the layout that its makers' scorer expects, and what it is scored by.

A file of `evals/benchmarks/` with a `BENCHMARK` is one; `dim evaluate NAME` finds it (docs/evaluation.md has one in ten lines). What an
evaluation writes lies in one folder:

    run.json                                     what was painted, by whom, from what (`evals.run`)
    TRACK/cases.jsonl                            a line for each finished case, see below
    TRACK/pictures/CATEGORY/ID.png               its picture; ID.K.png: of several, from 0; ID.tK.png: of turn K, from 1
    TRACK/blueprints.jsonl                       the designer's answers (`designer.journal`)
    TRACK/metrics.json                           by case, and means
    TRACK/official/...                           the pictures where the makers' scorer looks for them
    TRACK/judge/MODEL.jsonl, report.{json,md,html}

A line of cases.jsonl: id, category, prompt (the bare instruction), painted_prompt (what the painter read), pictures (paths from the folder
of the track; of several turns all, in order), seconds, rounds (of the reflected track).
"""

import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import quote

import numpy as np

from dim_jax.errors import InputError, check
from dim_jax.plugins import load_plugins, plugin
from dim_jax.storage.jsonl import read_objects

# direct: the painter reads the instruction; designed: a blueprint; reflected: the designer looks at the result and may ask again.
Track = Literal["direct", "designed", "reflected"]
TRACKS: tuple[Track, ...] = get_args(Track)
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One thing to paint.

    Attributes:
        id: its name, unique in the benchmark.
        category: its kind, as the makers name it.
        prompt: the instruction, or what to paint; of several turns the first.
        source: the picture to edit; None for text to image.
        target: what an edit should arrive at, where the makers ship it.
        turns: the instructions of an edit in several rounds, in order; empty for one.
        mask: the region of the edit, where the makers ship it.
        metadata: what scorers need besides, as the makers name it.
    """

    id: str
    category: str
    prompt: str
    source: Path | None
    target: Path | None = None
    turns: tuple[str, ...] = ()
    mask: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The path of its pictures without the suffix, below `pictures`; what a file name cannot hold is percent-encoded."""
        return f"{quote(self.category, safe=' ') or '_'}/{quote(self.id, safe=' ')}"


@dataclass(frozen=True)
class PublishedRow:
    """Scores as somebody published them, by the names that the report uses; `judge` is who judged, `source` the paper or address."""

    model: str
    scores: Mapping[str, float]
    source: str
    judge: str


def published_rows(columns: Sequence[str], scores: Mapping[str, Sequence[float]], *, source: str, judge: str) -> tuple[PublishedRow, ...]:
    """The rows of a published table: scores by model, in the order of the columns."""
    return tuple(PublishedRow(model, dict(zip(columns, row, strict=True)), source, judge) for model, row in scores.items())


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name, title: as on the command line, and in full.
        kind: edits of a source, or text to image.
        read: the cases in a folder (or file) as the makers ship it. Raises InputError.
        official: where the makers' scorer looks for picture k of a case, from `official` on.
        protocol: the name of the judging protocol in `evals.protocols`; None: it has metrics alone.
        metrics: names of `evals.metrics.METRICS`, and "fid".
        pictures_per_case: how many are painted of each, with seeds of their own.
        published: rows to compare with.
        size: how many cases there are in all.
        subsets: those that are scored by themselves, by name; a case is of one if the function says so.
        official_files: what else the makers' scorer reads of a case: texts by path, or pictures to put there.
        official_scores: reads what the makers' scorer writes: scores by name, by case. Raises InputError.
        mean_over: what the overall score is the mean of; over categories each counts alike, however many cases it has.
    """

    name: str
    title: str
    kind: Literal["edit", "generate"]
    read: Callable[[Path], list[Case]]
    official: Callable[[Case, int], str]
    protocol: str | None = None
    metrics: tuple[str, ...] = ()
    pictures_per_case: int = 1
    published: tuple[PublishedRow, ...] = ()
    size: int | None = None
    subsets: Mapping[str, Callable[[Case], bool]] = field(default_factory=dict)
    official_files: Callable[[Case], Mapping[str, str | Path]] = lambda case: {}
    official_scores: Callable[[Path, Sequence[Case]], Mapping[str, dict[str, float]]] | None = None
    mean_over: Literal["cases", "categories"] = "cases"

    def cases(self, data: Path, *, limit: int | None = None, seed: int = 0) -> tuple[list[Case], list[str]]:
        """The cases of a folder, `limit` of them at most, and notes such as that the set is not complete.

        With a limit they are spread evenly over the categories and drawn by the seed; a larger limit of the same seed holds the smaller.

        Raises:
            InputError: the folder has another layout, or an id occurs twice.
        """
        cases = self.read(data)
        check(cases, f"{data}: there is no case of {self.title} in it. Give the benchmark as it was downloaded.")
        ids = [case.id for case in cases]
        if repeated := sorted({case_id for case_id in ids if ids.count(case_id) > 1} if len(set(ids)) < len(ids) else ()):
            raise InputError(f'{data}: id "{repeated[0]}" occurs more than once, {len(repeated)} ids do. Each case needs one of its own.')
        notes = []
        if self.size is not None and len(cases) != self.size:
            notes.append(f"{data}: {len(cases)} cases; all of {self.title} are {self.size}, so the scores are not those of the whole.")
        return (cases if limit is None else stratified_sample(cases, limit, seed)), notes


def group_by(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """Items by their keys, in the order in which the keys occur."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def shuffled_groups(names: Sequence[str], seed: int) -> dict[str, list[int]]:
    """The indices of each name, in a random order that depends on the name, the seed and their number alone."""

    def shuffled(name: str, group: list[int]) -> list[int]:
        return [group[i] for i in np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(group))]

    return {name: shuffled(name, group) for name, group in group_by(range(len(names)), names.__getitem__).items()}


def stratified_sample(cases: Sequence[Case], limit: int, seed: int) -> list[Case]:
    """At most `limit` cases, as evenly over categories as they have, in the order that they came in."""
    ranked = []
    for category, group in shuffled_groups([case.category for case in cases], seed).items():
        ranked += [(rank, category, i) for rank, i in enumerate(group)]
    return [cases[i] for i in sorted(i for _, _, i in sorted(ranked)[:limit])]


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name."""
    return {benchmark.name: benchmark for benchmark in load_plugins("dim_jax.evals.benchmarks", "BENCHMARK").values()}


def benchmark(name: str) -> Benchmark:
    """A benchmark by its name. Raises InputError if there is none."""
    return plugin(benchmarks(), name, "benchmark")


def read_finished(track: Path) -> dict[str, dict[str, Any]]:
    """The finished cases of a track by id, in the order in which they were finished; what a kill has torn off the end is left out.

    Raises:
        InputError: cases.jsonl cannot be read, or a line was not written by `dim evaluate`.
    """
    finished: dict[str, dict[str, Any]] = {}
    for path in sorted(track.glob("cases*.jsonl")):
        for where, row in read_objects(path, skip_torn=True):
            if not isinstance(row.get("id"), str) or not isinstance(row.get("pictures"), list):
                raise InputError(f"{where} was not written by `dim evaluate`. Remove the line, or choose another output.")
            finished[row["id"]] = row
    return finished
