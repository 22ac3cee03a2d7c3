"""The table of the nano laboratory (launch/nano_claim.sh): does a blueprint beat the bare instruction at equal compute?

    python benchmarks/nano_claim.py runs/claim [--plot claim.png]

Reads the reports RUNS/seed*/ARM.json of `dim evaluate emoji -o`, those that are there, and the speed of the runs beside them; writes
RUNS/claim.md and RUNS/claim.json. Spread is the standard deviation over seeds. Intervals are of 95 %, over pairs: a pair's value is its
mean over seeds, and both arms are compared on the same pairs and seeds (`dim_jax.evals.bootstrap`).
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from dim_jax.errors import InputError, check
from dim_jax.evals import bootstrap
from dim_jax.markdown import markdown_table
from dim_jax.storage.folders import new_file, write_json, write_text
from dim_jax.storage.paths import read_json

# report -> the prompts in training, and those in the evaluation
ARMS = {
    "stage1": ("stage I: instructions", "instruction"),
    "stage1_long": ("stage I: instructions, twice as long", "instruction"),
    "stage2_instruction": ("stage II: instructions", "instruction"),
    "stage2_blueprint.oracle": ("stage II: blueprints by rule", "blueprint by rule, which knows the target"),
    "stage2_blueprint.internal": ("stage II: blueprints by rule", "blueprint by the encoder"),
    "stage2_blueprint.instruction": ("stage II: blueprints by rule", "instruction"),
    "stage2_written.internal": ("stage II: blueprints by the encoder", "blueprint by the encoder"),
}
EQUAL = ("stage1_long", "stage2_instruction")  # as many steps as stage II with blueprints
COMPARED = [("stage1_long", "stage2_instruction"), *((a, b) for b in ARMS if "." in b for a in EQUAL)]
METRICS = {"nearer": "nearer to target", "psnr": "PSNR"}
SCALES = {"nearer": 100, "psnr": 1}  # as shown: percent, dB
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """The reports of an arm by seed, and what its runs took.

    Attributes:
        steps: of the run, and of the run that it begins with, if that is an edit run too.
        seconds: of a step, the median of a run, mean over seeds; None: not known.
        flops: of a step, beside that of stage I.
    """

    name: str
    reports: Mapping[int, Report]
    steps: tuple[int, ...]
    seconds: float | None
    flops: float | None

    def by_seed(self, metric: str, rule: str | None = None) -> dict[int, float]:
        """A measure of all pairs, or of a rule."""
        return {seed: (report["rules"][rule] if rule else report["overall"])[metric] for seed, report in self.reports.items()}

    def by_pair(self, metric: str, seeds: Sequence[int]) -> dict[str, float]:
        """A measure of each pair, mean over seeds."""
        values: dict[str, list[float]] = {}
        for seed in seeds:
            for row in self.reports[seed]["pairs"]:
                value = row["mse_target"] < row["mse_source"] if metric == "nearer" else row[metric]
                values.setdefault(f"{row['rule']}/{row['key']}", []).append(float(value))
        return {key: mean(of_pair) for key, of_pair in values.items()}


def read_arms(runs: Path) -> dict[str, Arm]:
    """The arms that have reports.

    Raises:
        InputError: there is none, one is damaged, or reports of other pairs or runs of other lengths lie among them.
    """
    reports = read_reports(runs, "launch/nano_claim.sh", ARMS.__contains__)
    costs = {name: {seed: _cost(runs / f"seed{seed}", name) for seed in reports[name]} for name in ARMS if name in reports}
    unit = next((cost["flops"] for cost in costs.get("stage1", {}).values() if cost["flops"]), None)
    return {name: _arm(runs, name, reports[name], of_arm, unit) for name, of_arm in costs.items()}


def read_reports(runs: Path, script: str, known: Callable[[str], bool]) -> dict[str, dict[int, Report]]:
    """The reports RUNS/seed*/NAME.json of known names, by name and seed; `script` makes them.

    Raises:
        InputError: there is none, one is damaged, or they are of several samples.
    """
    reports: dict[str, dict[int, Report]] = {}
    for path in sorted(runs.glob("seed*/*.json")):
        if known(path.stem) and (seed := path.parent.name.removeprefix("seed")).isdecimal():
            reports.setdefault(path.stem, {})[int(seed)] = read_json(path)
    check(reports, f"{runs}: no report of an arm is there. Run {script} first.")
    samples = {json.dumps([[report["data"], report["seed"], len(report["pairs"])]]) for arm in reports.values() for report in arm.values()}
    check(len(samples) == 1, f"{runs}: reports are of several data sets or samples ({', '.join(sorted(samples))}). Measure all alike.")
    return reports


def _arm(runs: Path, name: str, reports: Mapping[int, Report], costs: Mapping[int, dict[str, Any]], unit: float | None) -> Arm:
    steps = {cost["steps"] for cost in costs.values()}
    check(len(steps) == 1, f"{runs}: the runs of {name} have several lengths, {sorted(steps)} steps. Keep each in a folder of its own.")
    seconds, flops = ([cost[key] for cost in costs.values() if cost[key]] for key in ("seconds", "flops"))
    return Arm(name, reports, steps.pop(), mean(seconds) if seconds else None, mean(flops) / unit if flops and unit else None)


def _cost(folder: Path, name: str) -> dict[str, Any]:
    """Steps, and the medians of seconds and FLOPs of a step (those as a share of the chip's peak), of the run of an arm."""
    run, seconds, flops = folder / name.partition(".")[0], [], []
    for speed in read_log(run / "speed.jsonl"):
        seconds.append(1 / speed["steps_per_second"])
        flops.append(speed.get("mfu", 0.0) / speed["steps_per_second"])
    steps = [_last_step(path) for path in ((folder / "stage1", run) if name.startswith("stage2") else (run,))]
    return {"steps": tuple(steps), "seconds": median(seconds), "flops": median(flops)}


def _last_step(run: Path) -> int:
    return read_log(run / "log.jsonl")[-1]["step"]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl or speed.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare(a: Arm, b: Arm, metric: str) -> dict[str, Any]:
    """b - a on the seeds that both have: by seed, and over pairs (`bootstrap.Comparison`)."""
    seeds = sorted(a.reports.keys() & b.reports.keys())
    first, second = a.by_seed(metric), b.by_seed(metric)
    by_seed = {seed: second[seed] - first[seed] for seed in seeds}
    over_pairs = bootstrap.compare(a.by_pair(metric, seeds), b.by_pair(metric, seeds))
    return {"a": a.name, "b": b.name, "metric": metric, "by_seed": by_seed, **over_pairs._asdict()}


def summary(arms: Mapping[str, Arm]) -> dict[str, Any]:
    """All numbers of the table."""
    rules = sorted({rule for arm in arms.values() for report in arm.reports.values() for rule in report["rules"]})
    compared = [(arms[a], arms[b]) for a, b in COMPARED if a in arms and b in arms and arms[a].reports.keys() & arms[b].reports.keys()]
    return {
        "pairs": {rule: next(report["rules"][rule]["pairs"] for arm in arms.values() for report in arm.reports.values()) for rule in rules},
        "arms": [
            {"name": arm.name, "steps": arm.steps, "seconds": arm.seconds, "flops": arm.flops}
            | {metric: arm.by_seed(metric) for metric in METRICS}
            | {"rules": {rule: {metric: arm.by_seed(metric, rule) for metric in METRICS} for rule in rules}}
            | {"failures": {seed: len(report["failures"]) for seed, report in arm.reports.items()}}
            for arm in arms.values()
        ],
        "differences": [compare(a, b, metric) for a, b in compared for metric in METRICS],
    }  # fmt: skip


def page(numbers: Mapping[str, Any]) -> str:
    """`summary` in Markdown."""
    arms, pairs = {arm["name"]: arm for arm in numbers["arms"]}, numbers["pairs"]
    rows = [
        (*ARMS[name], " + ".join(f"{steps:,}" for steps in arm["steps"]), _milliseconds(arm["seconds"]), _ratio(arm["flops"]),
         len(arm["nearer"]), over_seeds(arm, "nearer"), over_seeds(arm, "psnr"), _failures(arm["failures"]))
        for name, arm in arms.items()
    ]  # fmt: skip
    head = ("trained on", "prompt", "steps", "ms a step", "FLOPs a step", "seeds", "nearer to target, %", "PSNR, dB", "no blueprint")
    parts = [f"{sum(pairs.values())} pairs of {len(pairs)} rules. ± is the standard deviation over seeds.", markdown_table(head, rows)]
    parts += differences_page(numbers["differences"])
    for metric, title in METRICS.items():
        rows = [(rule.replace("_", " "), pairs[rule], *(over_seeds(arm["rules"][rule], metric) for arm in arms.values())) for rule in pairs]
        rows.append(("**all**", sum(pairs.values()), *(over_seeds(arm, metric) for arm in arms.values())))
        parts += [f"## {title}, by rule", markdown_table(("rule", "pairs", *map(_name, arms)), rows)]
    return "\n\n".join(parts) + "\n"


def differences_page(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Results of `compare` as paragraphs in Markdown; none, where nothing was compared."""
    rows = [
        (_name(row["b"]), _name(row["a"]), METRICS[row["metric"]], _difference(row["difference"], row["metric"], spread=row["by_seed"]),
         f"{_difference(row['low'], row['metric'])} to {_difference(row['high'], row['metric'])}", f"{row['p']:.4f}",
         ", ".join(_difference(value, row["metric"]) for value in row["by_seed"].values()))
        for row in differences
    ]  # fmt: skip
    text = "The first arm less the second, on the same pairs and seeds: shares in points, PSNR in dB. Interval and p are over pairs."
    head = ("arm", "less", "measure", "difference", "interval", "p", "by seed")
    return ["## Differences", text, markdown_table(head, rows)] if rows else []


def _name(arm: str) -> str:
    """As a column is called."""
    run, _, prompt = arm.replace("_", " ").partition(".")
    return f"{run}, {prompt}" if prompt else run


def over_seeds(values: Mapping[str, Mapping[int, float]], metric: str) -> str:
    """Mean and standard deviation over seeds, of shares in percent."""
    by_seed = [value * SCALES[metric] for value in values[metric].values()]
    return f"{mean(by_seed):.1f}" + (f" ± {stdev(by_seed):.1f}" if len(by_seed) > 1 else "")


def _difference(value: float, metric: str, *, spread: Mapping[int, float] | None = None) -> str:
    scale, digits = SCALES[metric], 1 if metric == "nearer" else 2
    deviation = f" ± {scale * stdev(spread.values()):.{digits}f}" if spread and len(spread) > 1 else ""
    return f"{scale * value:+.{digits}f}{deviation}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.0f}"


def _ratio(flops: float | None) -> str:
    return "" if flops is None else f"x {flops:.2f}"


def _failures(by_seed: Mapping[int, int]) -> str:
    return ", ".join(map(str, by_seed.values())) if any(by_seed.values()) else ""


def plot(numbers: Mapping[str, Any], path: Path) -> None:
    """A line for each arm: a dot for each seed and a bar at their mean, for both measures."""
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    arms = numbers["arms"]
    figure = Figure(figsize=(9, 0.8 + 0.4 * len(arms)), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS.items(), strict=True):
        for line, arm in enumerate(arms):
            values = [value * SCALES[metric] for value in arm[metric].values()]
            axes.scatter(values, [line] * len(values), s=18, color="tab:blue", alpha=0.6)
            axes.scatter([mean(values)], [line], s=220, marker="|", color="black")
        axes.set_yticks(range(len(arms)), [_name(arm["name"]) for arm in arms])
        axes.set_xlabel(f"{title}, {'%' if metric == 'nearer' else 'dB'}")
        axes.grid(axis="x", alpha=0.3)
        axes.set_ylim(len(arms) - 0.5, -0.5)
    with new_file(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="as launch/nano_claim.sh makes it")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="a figure of the seeds of each arm; needs matplotlib")
    args = parser.parse_args()
    runs = args.runs
    try:
        numbers = summary(read_arms(runs))
        write_json(runs / "claim.json", numbers)
        write_text(runs / "claim.md", text := page(numbers))
        if args.plot:
            plot(numbers, args.plot)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(text)


if __name__ == "__main__":
    main()
