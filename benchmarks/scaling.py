"""How the time of an edit grows with the side of the picture, the batch, the blueprint's tokens and the steps, one at a time.

    python benchmarks/scaling.py -o build/scaling
    python benchmarks/scaling.py -o build/scaling --size tiny       whether the script works, in minutes on a CPU

Each point is a run of `speed.py edit` in a process of its own. OUTPUT.jsonl keeps what was measured, so that the same command goes on where
it stopped; a point that fails (out of memory, say) is kept with its reason. OUTPUT.png has a panel for each axis, both scales logarithmic,
and the slope of each part between its last two points: 1 is proportional, 2 is quadratic.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
AXES = {
    "full": {"side": (512, 1024, 1536, 2048), "batch": (1, 2, 4, 8, 16), "text-tokens": (64, 330, 1024, 4096), "steps": (4, 8, 15, 30, 60)},
    "nano": {"side": (32, 64, 128, 256), "batch": (1, 2, 4, 8, 16), "text-tokens": (32, 64, 120), "steps": (4, 8, 15, 30, 60)},
    "tiny": {"side": (32, 64, 128), "batch": (1, 2, 4), "text-tokens": (32, 64), "steps": (2, 4, 8)},
}
BASE = {"full": {}, "nano": {"side": 64, "text-tokens": 120}, "tiny": {"side": 32, "text-tokens": 32, "steps": 2}}
Point = dict[str, Any]


def measure(options: dict[str, Any], framework: str) -> Point:
    """Milliseconds of each part at one point, or why there are none."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "benchmarks/speed.py"), "edit", "--only", framework, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        return {"failed": next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")[:300]}
    return {"ms": {row["part"]: row["ms"] for row in rows}, "peak_gib": rows[-1].get("peak_gib"), "device": rows[-1].get("device")}


def plot(points: list[Point], size: str, path: Path) -> None:
    axes = {axis: values for axis, values in AXES[size].items() if any(point["axis"] == axis and "ms" in point for point in points)}
    figure, panels = plt.subplots(1, len(axes), figsize=(4.2 * len(axes), 4), sharey=True, layout="constrained", squeeze=False)
    for panel, (axis, values) in zip(panels[0], axes.items(), strict=True):
        measured = sorted((point for point in points if point["axis"] == axis and "ms" in point), key=lambda point: point["value"])
        for part in measured[0]["ms"]:
            x, y = [point["value"] for point in measured], [point["ms"][part] for point in measured]
            slope = f" ({math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2]):.1f})" if len(x) > 1 else ""
            panel.loglog(x, y, marker="o", label=part + slope)
        panel.set_xlabel(axis)
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0, 0].set_ylabel("milliseconds")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="without suffix")
    parser.add_argument("--size", choices=AXES, default="full")
    parser.add_argument("--framework", choices=("jax", "torch"), default="jax")
    parser.add_argument("--axis", choices=AXES["full"], action="append", help="one or more; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    kept = args.output.with_suffix(".jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    points = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(point["framework"], point["size"], point["axis"], point["value"]) for point in points}
    for axis in args.axis or AXES[args.size]:
        for value in AXES[args.size][axis]:
            if (args.framework, args.size, axis, value) in known:
                continue
            point = {"framework": args.framework, "size": args.size, "axis": axis, "value": value}
            point |= measure(BASE[args.size] | {"size": args.size, "repeats": args.repeats, axis: value}, args.framework)
            print(json.dumps(point), flush=True)
            with kept.open("a") as file:
                file.write(json.dumps(point) + "\n")
            points.append(point)
    plot(
        [point for point in points if (point["framework"], point["size"]) == (args.framework, args.size)],
        args.size,
        kept.with_suffix(".png"),
    )


if __name__ == "__main__":
    main()
