"""The table of the nano ladder (launch/nano_ladder.sh): which known tricks make an edit model learn faster?

    python benchmarks/nano_ladder.py runs/ladder [--share 60]

Reads the reports RUNS/seed*/ARM.json and RUNS/seed*/ARM@STEP.json of `dim evaluate emoji -o`, those that are there, and the speed of the
runs beside them; writes RUNS/ladder.md and RUNS/ladder.json. Spread is the standard deviation over seeds; differences as in `nano_claim`.
A run reaches a share at the first step at which it was measured so. Its seconds are as many as its steps take at their
median: without start, compilation, saving and what it measures.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.nano_claim import METRICS, SCALES, Arm, Report, compare, differences_page, over_seeds, read_log, read_reports  # noqa: E402
from dim_jax.errors import InputError, check  # noqa: E402
from dim_jax.markdown import markdown_table  # noqa: E402
from dim_jax.storage.folders import write_json, write_text  # noqa: E402
from dim_jax.storage.paths import read_json  # noqa: E402

BASELINE = "adamw"
NAME = re.compile(r"[a-z+]+(@\d+)?")  # of an arm, and the step of a state on the way
ALIKE = ("data.source", "data.workers", "train.", "seed")  # keys that are no trick's


def read_points(runs: Path) -> list[dict[str, Any]]:
    """A measurement of a run at a step each: arm, seed, step, seconds, whether it is of the run's end, and the report.

    Raises:
        InputError: there is none, or as `nano_claim.read_reports`; or runs have several lengths.
    """
    reports = read_reports(runs, "launch/nano_ladder.sh", lambda name: NAME.fullmatch(name) is not None)
    points = [_point(runs, name, seed, report) for name, by_seed in reports.items() for seed, report in by_seed.items()]
    lengths = {point["step"] for point in points if point["ended"]}
    check(len(lengths) <= 1, f"{runs}: runs have several lengths, {sorted(lengths)} steps. Keep each in a folder of its own.")
    return sorted(points, key=lambda point: (point["arm"] != BASELINE, point["arm"], point["seed"], point["step"]))


def _point(runs: Path, name: str, seed: int, report: Report) -> dict[str, Any]:
    arm, _, at = name.partition("@")
    run = runs / f"seed{seed}" / arm
    speed = read_log(run / "speed.jsonl")
    step, pace = int(at) if at else speed[-1]["step"], median(1 / line["steps_per_second"] for line in speed)
    overall = {metric: report["overall"][metric] for metric in METRICS}
    return {"arm": arm, "seed": seed, "step": step, "seconds": step * pace, "ended": not at, "report": report} | overall


def summary(runs: Path, share: float | None) -> dict[str, Any]:
    """All numbers of the table; `share` from 0 to 1 is what runs shall reach, None: what the baseline has at its end."""
    points = read_points(runs)
    ended = [point for point in points if point["ended"]]
    arms = {name: Arm(name, {point["seed"]: point["report"] for point in ended if point["arm"] == name}, (), None, None)
            for name in dict.fromkeys(point["arm"] for point in points)}  # fmt: skip
    baseline = arms.pop(BASELINE, None)
    if share is None and baseline is not None and baseline.reports:
        share = mean(baseline.by_seed("nearer").values())
    common = [] if baseline is None else [arm for arm in arms.values() if arm.reports.keys() & baseline.reports.keys()]
    return {
        "steps": ended[0]["step"] if ended else None,
        "pairs": len(points[0]["report"]["pairs"]),
        "share": share,
        "arms": [_numbers(runs, points, arm, share) for arm in (baseline, *arms.values()) if arm is not None],
        "points": [{key: value for key, value in point.items() if key != "report"} for point in points],
        "differences": [compare(baseline, arm, metric) for arm in common for metric in METRICS if baseline is not None],
    }  # fmt: skip


def _numbers(runs: Path, points: Sequence[Mapping[str, Any]], arm: Arm, share: float | None) -> dict[str, Any]:
    own = [point for point in points if point["arm"] == arm.name]
    last = {point["seed"]: point for point in own}
    return {
        "name": arm.name, "changes": _changes(runs, points, arm.name), "reached": _reached(own, share),
        "seconds": mean(point["seconds"] / point["step"] for point in last.values()),
        **{metric: arm.by_seed(metric) for metric in METRICS},
    }  # fmt: skip


def _changes(runs: Path, points: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The keys of an arm's config that are not the baseline's."""
    seeds = {point["arm"]: point["seed"] for point in points}
    configs = [read_json(runs / f"seed{seeds[arm]}" / arm / "config.json") for arm in (BASELINE, name) if arm in seeds]
    return {key: value for key, value in configs[-1].items() if value != configs[0].get(key) and not key.startswith(ALIKE)}


def _reached(points: Sequence[Mapping[str, Any]], share: float | None) -> dict[int, Any]:
    """Of each seed of an arm the step at which a share was reached, with the seconds until then; None: it was not."""
    runs: dict[int, Any] = {}
    for point in points if share is not None else ():
        if runs.get(point["seed"]) is None:
            runs[point["seed"]] = {key: point[key] for key in ("step", "seconds")} if point["nearer"] >= share else None
    return runs


def page(numbers: Mapping[str, Any]) -> str:
    """`summary` in Markdown."""
    share, arms = numbers["share"], numbers["arms"]
    rows = [
        (arm["name"], ", ".join(f"`{key} = {value}`" for key, value in arm["changes"].items()), f"{1000 * arm['seconds']:.0f}",
         len(arm["nearer"]), *(over_seeds(arm, metric) if arm[metric] else "" for metric in METRICS),
         *(_until(arm["reached"], key) for key in ("step", "seconds")))
        for arm in arms
    ]  # fmt: skip
    reach = "" if share is None else f" to {100 * share:.1f} %"
    head = ("arm", "keys", "ms a step", "seeds", "nearer to target, %", "PSNR, dB", f"steps{reach}", f"seconds{reach}")
    text = f"{numbers['steps'] or 0:,} steps, {numbers['pairs']} pairs. ± is the standard deviation over seeds."
    steps = sorted({point["step"] for point in numbers["points"]})
    parts = [text, markdown_table(head, rows), *differences_page(numbers["differences"])]
    for metric, title in METRICS.items():
        rows = [(arm["name"], *(_at(numbers["points"], arm["name"], step, metric) for step in steps)) for arm in arms]
        parts += [f"## {title}, by step", markdown_table(("arm", *(f"{step:,}" for step in steps)), rows)]
    return "\n\n".join(parts) + "\n"


def _until(reached: Mapping[int, Any], key: str) -> str:
    values = [run[key] for run in reached.values() if run is not None]
    some = f" ({len(values)} of {len(reached)})" if len(values) < len(reached) else ""
    return f"{mean(values):,.0f}{some}" if values else "not" if reached else ""


def _at(points: Sequence[Mapping[str, Any]], name: str, step: int, metric: str) -> str:
    values = {point["seed"]: point[metric] for point in points if (point["arm"], point["step"]) == (name, step)}
    return over_seeds({metric: values}, metric) if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="as launch/nano_ladder.sh makes it")
    parser.add_argument("--share", type=float, metavar="PERCENT", help="that runs shall reach; default: what the baseline has at its end")
    args = parser.parse_args()
    try:
        numbers = summary(args.runs, None if args.share is None else args.share / SCALES["nearer"])
        write_json(args.runs / "ladder.json", numbers)
        write_text(args.runs / "ladder.md", text := page(numbers))
    except InputError as error:
        sys.exit(f"error: {error}")
    print(text)


if __name__ == "__main__":
    main()
