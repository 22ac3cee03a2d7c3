"""How good the edits of a painter and of students that were distilled from it are, by the number of steps (docs/few_steps.md).

    python benchmarks/few_steps.py dim_jax/nano runs/nano_guided/model runs/nano_few_steps/model --data data/emoji -o build/few_steps
    python benchmarks/few_steps.py dim_jax/nano --data build/text -o build/few_steps --steps 1 2 --pairs-per-rule 1     whether it works

The first checkpoint is the teacher. All paint the same held-out pairs with the same noise, as `dim evaluate emoji -o` does, in each number
of `--steps`; a student of few steps in its own alone. The folder OUTPUT has a report and the pictures of each, and results.jsonl, by which
the same command goes on where it stopped; at the end table.md and plot.png:

- PSNR to the target, and the share of pairs that come nearer to it than to the source, as in the reports;
- PSNR to the teacher's picture of the largest number of steps, from the same noise;
- evaluations of the network, and seconds, for each picture, of batches of `--batch-size`: the median of `--repeats` after one more.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import jax
import numpy as np
from matplotlib import pyplot as plt

from dim_jax.data.example import Example
from dim_jax.datasets.layouts.pairs import Pairs
from dim_jax.evals import emoji
from dim_jax.evals.metrics import mse, psnr, unit_pixels
from dim_jax.evals.pictures import checkpoint_digest
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.settings import Settings
from dim_jax.storage.folders import append
from dim_jax.storage.jsonl import read_objects

COLUMNS = {
    "checkpoint": "checkpoint", "steps": "steps", "evaluations": "evaluations", "psnr": "PSNR to target", "nearer": "nearer to target",
    "psnr_teacher": "PSNR to teacher", "seconds": "seconds a picture",
}  # fmt: skip
Row = dict[str, Any]


def label(checkpoint: str) -> str:
    """A short name: of the run, for its model."""
    path = Path(checkpoint)
    return path.parent.name if path.name == "model" else path.name


def seconds_a_picture(pipeline: EditPipeline, edits: Sequence[Example], settings: Settings, repeats: int) -> float:
    """The median of `repeats` batches after one more, which compiles."""
    batch = [edit for edit in islice(cycle(edits), settings.batch_size) if edit.source is not None]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        pipeline([edit.texts[0] for edit in batch], [edit.source for edit in batch if edit.source], settings=settings)
        times.append((time.perf_counter() - start) / len(batch))
    return statistics.median(times[1:])


def psnr_between(folder: Path, reference: Path) -> float:
    """Mean PSNR (dB) of the pictures in a folder to those of the same names in another."""
    ratios = []
    for file in sorted(reference.rglob("*.png")):
        expected = open_picture(file)
        size = expected.height, expected.width
        ratios.append(psnr(mse(unit_pixels(open_picture(folder / file.relative_to(reference)), size), unit_pixels(expected, size))))
    return float(np.mean(ratios))


def measure(args: argparse.Namespace, edits: Sequence[Example], captions: Sequence[Example]) -> list[Row]:
    """A row for each checkpoint and number of steps, measured now or before; the teacher's come first."""
    kept_file = args.output / "results.jsonl"
    kept = [row for _, row in read_objects(kept_file, skip_torn=True)] if kept_file.exists() else []
    reference = args.output / f"{label(args.checkpoints[0])}-{max(args.steps)}.pictures"
    rows = []
    for checkpoint in args.checkpoints:
        pipeline = EditPipeline.from_pretrained(checkpoint)
        own, weights = pipeline.sampler.settings, checkpoint_digest(pipeline.sampler)
        for steps in (own.num_steps,) if own.distilled == "steps" else sorted(args.steps, reverse=True):
            identity = {"checkpoint": label(checkpoint), "steps": steps, "weights": weights, "pairs_per_rule": args.pairs_per_rule}
            identity |= {"seed": args.seed, "data": args.data, "batch_size": args.batch_size, "teacher": reference.stem}
            row = next((row for row in kept if identity.items() <= row.items()), None)
            if row is None:
                settings = replace(own, num_steps=steps, batch_size=args.batch_size)
                report_file = args.output / f"{label(checkpoint)}-{steps}.json"
                painted = report_file.with_suffix(".pictures")
                report = emoji.evaluate(
                    pipeline, edits, captions, report_file, data=args.data, pairs_per_rule=args.pairs_per_rule, seed=args.seed,
                    settings=settings, batch_size=args.batch_size, overwrite=True,
                )  # fmt: skip
                row = identity | {
                    "evaluations": steps * settings.num_branches(guidance_embeds=pipeline.sampler.dim.config.sana.guidance_embeds),
                    "psnr": report["overall"]["psnr"],
                    "nearer": report["overall"]["nearer"],
                    "pairs": report["overall"]["pairs"],
                    "psnr_teacher": None if painted == reference else psnr_between(painted, reference),
                    "seconds": seconds_a_picture(pipeline, edits, settings, args.repeats),
                    "device": jax.devices()[0].device_kind,
                }
                append(kept_file, json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(COLUMNS.values())} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    for row in rows:
        cells = {"psnr": f"{row['psnr']:.2f}", "nearer": f"{row['nearer']:.1%}", "seconds": f"{row['seconds']:.4f}"}
        cells["psnr_teacher"] = "" if row["psnr_teacher"] is None else f"{row['psnr_teacher']:.2f}"
        lines.append(f"| {' | '.join(cells.get(key, str(row[key])) for key in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    panels = {
        "psnr": ("steps", "PSNR to target, dB"), "nearer": ("steps", "share nearer to target than to source"),
        "psnr_teacher": ("evaluations", f"PSNR to {rows[0]['teacher']}, dB"),
    }  # fmt: skip
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), layout="constrained")
    for axis, (key, (across, title)) in zip(axes, panels.items(), strict=True):
        for name in dict.fromkeys(row["checkpoint"] for row in rows):
            points = sorted((row[across], row[key]) for row in rows if row["checkpoint"] == name and row[key] is not None)
            axis.semilogx([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        largest = max(row[across] for row in rows)
        numbers = sorted({row["steps"] for row in rows}) if across == "steps" else [2**n for n in range(largest.bit_length())]
        axis.set_xticks(numbers, [str(number) for number in numbers], minor=False)
        axis.minorticks_off()
        axis.set_xlabel(COLUMNS[across])
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="the teacher, then students")
    parser.add_argument("--data", required=True, help="pairs, as `dim evaluate emoji --data`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 14, 30])
    parser.add_argument("--pairs-per-rule", type=int, help="as `dim evaluate emoji`")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    edits, pictures = Pairs(Path(args.data), "test", "edit"), Pairs(Path(args.data), "test", "caption")
    rows = measure(args, edits, [pictures[i] for i in range(min(args.batch_size, len(pictures)))])
    (args.output / "table.md").write_text(table(rows))
    plot(rows, args.output / "plot.png")
    print(f"\n{table(rows)}\nwrote {args.output / 'table.md'} and {args.output / 'plot.png'}")


if __name__ == "__main__":
    main()
