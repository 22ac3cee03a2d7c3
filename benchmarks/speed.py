"""How long an edit or a training step takes, part by part, and the same work in PyTorch on the same device in the same run.

    python benchmarks/speed.py edit [--side 1024] [--batch 1] [--steps 30] [--distilled guidance]
    python benchmarks/speed.py train [--side 1024] [--batch 4] [--remat products] [--part cached]
    python benchmarks/speed.py edit --size nano --side 64 --text-tokens 120        on a CPU; so does train

Weights and inputs are random, never zeros: speed does not depend on their values. On an accelerator both compute in bfloat16 (training
with float32 parameters, AdamW, clip and averages), on a CPU in float32. Each framework runs in a process of its own. Ours pads conditions
to their bucket, as users run it; PyTorch's transformers and diffusers run without padding, eager and compiled. A time is the median of
`--repeats` after two more, of training that of four steps in a row; memory is what the framework's allocator held at its peak. `--remat`
other than "none" turns on gradient checkpointing in diffusers, which knows no other choice. `--distilled` times our edit alone, in the
form that a distillation leaves (docs/few_steps.md): "guidance", one branch of a network that takes the scale as an input; "steps", one
branch and Euler's steps, --steps of them.
"""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FRAMEWORKS = ("jax", "torch")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("edit", "train"))
    parser.add_argument("--size", choices=("full", "nano", "tiny"), default="full")
    parser.add_argument("--side", type=int, default=1024, help="pixels a side of source and result")
    parser.add_argument("--batch", type=int, help="default: 1 for edits, 4 for training")
    parser.add_argument("--steps", type=int, default=30, help="of the sampler")
    parser.add_argument("--text-tokens", type=int, default=330, help="of the blueprint")
    parser.add_argument("--remat", default="none", help="as config.model.remat")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of which one update of ours is made")
    parser.add_argument("--part", choices=("cached", "online"), help="one way of training")
    parser.add_argument("--float8", action="store_true", help="our large products of SANA in float8: of the sampler, or of training")
    parser.add_argument("--mu-dtype", default="float32", help="of our first moments, as config.optim.mu_dtype")
    parser.add_argument("--distilled", choices=("guidance", "steps"), help="our edit in one branch, without PyTorch's")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch on a CPU; 0: as it likes")
    parser.add_argument("--only", choices=FRAMEWORKS, help="one framework, in this process, without the table")
    args = parser.parse_args(arguments)
    args.batch = args.batch or {"edit": 1, "train": 4}[args.work]
    if (args.accumulate > 1 or args.mu_dtype != "float32") and (args.work != "train" or args.only != "jax"):
        parser.error("--accumulate and --mu-dtype are of our training: name train and --only jax")
    if args.distilled and (args.work != "edit" or args.only == "torch"):
        parser.error("--distilled is of our edits: leave train and --only torch out")
    return args


def run(arguments: list[str], frameworks: Sequence[str] = FRAMEWORKS) -> list[dict[str, Any]]:
    """The lines of the frameworks, each from a process of its own; they are printed as they come."""
    rows = []
    for framework in frameworks:
        command = [sys.executable, __file__, *arguments, "--only", framework]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                if line.startswith("{"):
                    rows.append(json.loads(line))
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}.")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each part: our milliseconds, and those of each other framework with their ratio to ours."""
    times = {(row["framework"], row["part"]): row["ms"] for row in rows}
    others = list(dict.fromkeys(row["framework"] for row in rows if row["framework"] != "dim_jax"))
    heads = "".join(f" {name} ms | ratio |" for name in others)
    lines = [f"| part | dim_jax ms |{heads}", f"|---|---|{'---|---|' * len(others)}"]
    for part in dict.fromkeys(row["part"] for row in rows if row["framework"] == "dim_jax"):
        ours, cells = times["dim_jax", part], []
        for name in others:
            other = times.get((name, part))  # PyTorch computes the condition's keys and values anew in every step
            cells += [f"{other:.1f}", f"{other / ours:.2f}"] if other else ["", ""]
        lines.append(f"| {' | '.join([part, f'{ours:.1f}', *cells])} |")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    if args.only:
        importlib.import_module(f"benchmarks.speed_{args.only}").main(args)
    else:
        print(f"\n{table(run(sys.argv[1:], ('jax',) if args.distilled else FRAMEWORKS))}")


if __name__ == "__main__":
    main()
