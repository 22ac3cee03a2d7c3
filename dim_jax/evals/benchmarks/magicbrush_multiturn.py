"""MagicBrush, session by session: each edit goes on from the painter's own last picture; the last one is scored. See `magicbrush`."""

from itertools import groupby
from pathlib import Path

from dim_jax.evals.benchmark import Benchmark, Case
from dim_jax.evals.benchmarks.magicbrush import METRICS, read_turns


def read(data: Path) -> list[Case]:
    """A case for each session; its category is the number of turns."""
    cases = []
    for session, group in groupby(read_turns(data), lambda turn: turn.session):
        turns = list(group)
        instructions, last = tuple(turn.instruction for turn in turns), turns[-1]
        metadata = {"session": session, "caption": last.caption}
        category = f"{len(turns)} turns"
        cases.append(Case(session, category, instructions[0], turns[0].source, last.target, instructions, metadata=metadata))
    return cases


BENCHMARK = Benchmark(
    name="magicbrush-multiturn",
    title="MagicBrush (multi-turn)",
    kind="edit",
    read=read,
    official=lambda case, k: f"{case.id}/{case.id}_1.png" if k == 0 else f"{case.id}/{case.id}_iter_{k + 1}.png",
    metrics=METRICS,
    size=535,
)
