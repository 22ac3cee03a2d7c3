"""An edit in little memory: for each way to save some, its peak, its time, and how near its picture is to that of bfloat16.

    python benchmarks/memory.py -o build/memory.md                 full size, 1024 px, 30 steps, random weights, on a GPU
    python benchmarks/memory.py -o build/memory.md --at-once       the same, faster, where all limits together fit the GPU
    python benchmarks/memory.py -o build/rehearsal.md --rehearse   a tiny model on the CPU, without limits

Each row is a process of its own. JAX may use 0.9 of a card of so many GiB (XLA_PYTHON_CLIENT_MEM_FRACTION), which leaves room for CUDA
itself. All edits have the same weights, picture, text and noise. A row that does not fit or fails says so, and the next one begins. With
`--at-once` all processes load and compile together; then each is timed alone.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]
USABLE = 0.9  # of a card's memory, by JAX; the rest is CUDA's own
WAIT = 0.7  # of the limit, until all rows are loaded and compiled
REFERENCE_GIB = 24  # of the first row, which has no limit
# Name, GiB of the card (0: no limit), how the model is loaded. The first one is what the others are compared with.
CASES: tuple[tuple[str, int, Row], ...] = (
    ("bfloat16", 0, {}),
    ("bfloat16 --offload", 12, {"offload": True}),
    ("--quantize int8", 12, {"quantize": "int8"}),
    ("--quantize int8 --offload", 8, {"quantize": "int8", "offload": True}),
    ("--quantize int4", 8, {"quantize": "int4"}),
    ("--quantize int4 --offload", 8, {"quantize": "int4", "offload": True}),
)
FULL = {"size": "full", "side": 1024, "text_tokens": 330, "num_steps": 30, "repeats": 3}
TINY = {"size": "tiny", "side": 64, "text_tokens": 20, "num_steps": 2, "repeats": 1}


def edit(work: Row) -> None:
    """One row, in this process: prints "ready" when the first edit is done, waits for a line, and prints what it measured."""
    import numpy as np

    from benchmarks.several_devices_steps import random_edit, timed
    from benchmarks.speed_jax import machine

    sampler, requests, settings = random_edit(work, quantize=work.get("quantize"), offload=work.get("offload", False))
    painted = []

    def once() -> None:
        painted[:] = [picture for _, (picture, _) in sampler.paint(requests[:1], settings)]

    first_s, _ = timed(once, 0)
    print("ready", flush=True)
    sys.stdin.readline()
    _, times = timed(once, work["repeats"])
    painted[0].save(work["picture"])
    print(json.dumps({"ms": round(float(np.median(times)), 1), "first_s": first_s} | machine()), flush=True)


def start(name: str, gib: int, options: Row, sizes: Row, folder: Path, card_gib: float | None) -> subprocess.Popen:
    """The process of a row."""
    stem = folder / name.replace(" ", "_").replace("--", "")
    env = os.environ | {"JAX_TRACEBACK_FILTERING": "off"}
    if card_gib is not None:
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{(USABLE * gib if gib else REFERENCE_GIB) / card_gib:.4f}"
    work = sizes | options | {"picture": f"{stem}.png"}
    with Path(f"{stem}.err").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(work)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env,
        )  # fmt: skip


def reason(path: Path) -> str:
    """Why a process failed: the last line of its errors."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def psnr(path: Path, reference: Path) -> float:
    """Between two pictures, in dB."""
    import numpy as np
    from PIL import Image

    ours, theirs = (np.asarray(Image.open(file), float) for file in (path, reference))
    error = float(((ours - theirs) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def table(rows: list[Row]) -> str:
    """The results as Markdown."""
    device = next((f"{row['device']}, {row['version']}" for row in rows if "device" in row), "nothing measured")
    head = ("options", "card", "peak", "seconds an edit", "first edit, s", "PSNR to bfloat16, dB")
    lines = [device, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["name"], f"{row['gib']} GiB" if row["gib"] else ""]
        if "failed" in row:
            cells += ["failed", "", "", ""]
        else:
            near = "" if row["psnr"] is None else "the same" if math.isinf(row["psnr"]) else f"{row['psnr']:.1f}"
            cells += [f"{row['peak_gib']:.2f} GiB", f"{row['ms'] / 1000:.3f}", f"{row['first_s']:.0f}", near]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + [f"\n- failed: {row['name']}: {row['failed']}" for row in rows if "failed" in row])


def card_memory() -> float:
    """GiB of the GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) / 1024


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="Markdown to write; pictures and errors go to a folder beside it")
    parser.add_argument("--at-once", action="store_true", help="load and compile all rows together")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--only", default="", help="rows whose options contain this, and the first")
    parser.add_argument("--limit", type=float, default=210.0, help="seconds of all rows together with --at-once, else of each")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        edit(json.loads(args.work))
        return
    if args.output is None:
        parser.error("name the table to write: -o build/memory.md")
    folder = args.output.with_suffix(".work").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    if args.rehearse:
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles twice as fast
    card_gib = None if args.rehearse else card_memory()
    sizes, cases = TINY if args.rehearse else FULL, [case for i, case in enumerate(CASES) if not i or args.only in case[0]]
    rows, timing, loaded = [Row() for _ in cases], threading.Lock(), threading.Barrier(len(cases) if args.at_once else 1)

    def run(number: int) -> None:
        name, gib, options = cases[number]
        rows[number] = {"name": name, "gib": gib, "failed": "not run"}
        process = start(name, gib, options, sizes, folder, card_gib)
        watch = threading.Timer(args.limit, process.kill)
        watch.start()
        stem = folder / name.replace(" ", "_").replace("--", "")
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            ready = process.stdout.readline()
            with suppress(threading.BrokenBarrierError):  # those that are too slow are not waited for
                loaded.wait(WAIT * args.limit)
            with timing:
                out = process.communicate("go\n" if ready else None)[0]
            if process.returncode == -signal.SIGKILL:
                rows[number]["failed"] = f"took longer than {args.limit:.0f} s"
            elif process.returncode or not out:
                rows[number]["failed"] = f"exit code {process.returncode}: {reason(Path(f'{stem}.err'))}"
            else:
                rows[number] = {"name": name, "gib": gib, "picture": f"{stem}.png"} | json.loads(out.splitlines()[-1])
        finally:
            watch.cancel()
            process.kill()
        print(f"{name}: {rows[number].get('failed', 'done')}", flush=True)

    with ThreadPoolExecutor(len(cases) if args.at_once else 1) as pool:
        list(pool.map(run, range(len(cases))))
    for row in rows:
        if "picture" in row:
            same = row is rows[0] or "picture" not in rows[0]
            row["psnr"] = None if same else psnr(Path(row["picture"]), Path(rows[0]["picture"]))
    args.output.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args.output.write_text(table(rows) + "\n")
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
