"""Held-out pairs that `dim build-data emoji`, `tints` or `text` made: a case is a pair, its category the rule.

These are the pairs, the instructions and the noise of `dim evaluate emoji -o REPORT.json` (`evals.emoji`).
"""

from pathlib import Path

from dim_jax.datasets.layouts.pairs import Pairs
from dim_jax.evals.benchmark import Benchmark, Case
from dim_jax.evals.emoji import sample
from dim_jax.evals.reading import store_picture


def read(data: Path) -> list[Case]:
    """24 pairs of each rule, or as many more as 200 pairs in all need. `metadata` holds the blueprint that was written by rule."""
    pairs, cases = Pairs(data, "test", "edit"), []
    rows = [pairs.raw(i) for i in range(len(pairs))]
    for i in sample([row.rule for row in rows]) if rows else ():
        row = rows[i]
        assert row.source is not None
        source, target = (store_picture(image.read(), image.name) for image in (row.source, row.target))
        cases.append(Case(row.key, row.rule, row.texts[0], source, target, metadata={"blueprint": row.blueprint}))
    return cases


BENCHMARK = Benchmark(
    name="emoji",
    title="held-out pairs of our own",
    kind="edit",
    read=read,
    official=lambda case, k: f"{case.file}.png",
    protocol="imgedit",
    metrics=("nearer", "psnr", "l1", "l2", "ssim", "lpips"),
)
