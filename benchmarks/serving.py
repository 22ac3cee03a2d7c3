"""How many edits a second `dim serve` answers, beside offline batching of the same edits in one call of the pipeline.

    python benchmarks/serving.py [--checkpoint dim_jax/nano] [--edits 48] [--batch 8] [--rounds 5]

Both read PNG bytes, paint in batches of the same size and give PNG bytes. The server is a process of its own; clients are threads of this
one, twice as many as a batch has pictures. Rounds alternate between the two, after one of each that compiles and does not count, and after
a batch of every size by the server. The goal is 90 % of the offline rate. Where others use the machine, the CPU seconds of an edit, of
server and clients together, say more than the rates. On a GPU set XLA_PYTHON_CLIENT_PREALLOCATE=false, for both processes use it.
"""

import argparse
import base64
import http.client
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Make it red."


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(ROOT / "dim_jax/nano"))
    parser.add_argument("--picture", type=Path, default=ROOT / "dim_jax/nano/samples/book.png")
    parser.add_argument("--edits", type=int, default=48, help="in a round")
    parser.add_argument("--batch", type=int, default=8, help="pictures that are painted together")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


def offline(args: argparse.Namespace) -> Callable[[], list[bytes]]:
    """Paints all edits in one call."""
    from dim_jax.pipeline import EditPipeline
    from dim_jax.processing.pictures import read_picture

    pipeline = EditPipeline.from_pretrained(args.checkpoint)
    settings = replace(pipeline.sampler.settings, batch_size=args.batch)
    data = args.picture.read_bytes()

    def run() -> list[bytes]:
        pictures = [read_picture(io.BytesIO(data), "picture") for _ in range(args.edits)]
        results = pipeline([PROMPT] * args.edits, pictures, seeds=range(args.edits), settings=settings)
        files = []
        for result in results:
            files.append(io.BytesIO())
            result.image.save(files[-1], "PNG", pnginfo=result.png_info(), compress_level=1)
        return [file.getvalue() for file in files]

    return run


def served(args: argparse.Namespace, port: int) -> Callable[[], list[bytes]]:
    """Asks the server for all edits, after one batch of every size."""
    data, mark = args.picture.read_bytes(), uuid.uuid4().hex

    def edit(seed: int, count: int = 1) -> bytes:
        fields = {"prompt": PROMPT, "seed": seed, "n": count}
        text = "".join(f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields)
        file = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        body = (text + file).encode() + data + f"\r\n--{mark}--\r\n".encode()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/images/edits", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}: {body}")
        return base64.b64decode(body["data"][0]["b64_json"])

    def run() -> list[bytes]:
        with ThreadPoolExecutor(2 * args.batch) as clients:
            return list(clients.map(edit, range(args.edits)))

    for power in range(args.batch.bit_length()):
        edit(0, 2**power)
    return run


def start(args: argparse.Namespace) -> tuple[subprocess.Popen, int]:
    """A server on a free port."""
    options = ["--port", "0", "--batch", str(args.batch), "--max-n", str(args.batch)]
    command = [sys.executable, "-m", "dim_jax.cli", "serve", args.checkpoint, *options]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(r"http://[\d.]+:(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a pipe that nobody reads would stop it once it is full
            return process, int(match[1])
    raise SystemExit(f"{' '.join(command)} ended with exit code {process.wait()}.")


def main() -> None:
    args = parse()
    process, port = start(args)
    try:
        ways = {"offline": offline(args), "served": served(args, port)}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        loads: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds + 1):
            for name, run in ways.items():
                began, before = time.monotonic(), cpu_seconds(process)
                run()
                rate, load = args.edits / (time.monotonic() - began), (cpu_seconds(process) - before) / args.edits
                print(f"round {number}: {name} {rate:.2f} edits/s, {load:.2f} s of CPU an edit", flush=True)
                if number:
                    rates[name].append(rate)
                    loads[name].append(load)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    print(f"\n| median of {args.rounds} | edits/s | CPU seconds an edit |\n|---|---|---|")
    for name in ways:
        print(f"| {name} | {statistics.median(rates[name]):.2f} | {statistics.median(loads[name]):.2f} |")
    for what, over, under in (
        ("rate, served over offline", rates["served"], rates["offline"]),
        ("CPU, offline over served", loads["offline"], loads["served"]),
    ):
        ratios = [one / other for one, other in zip(over, under, strict=True)]
        print(f"{what}: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def cpu_seconds(server: subprocess.Popen) -> float:
    """What this process and the server have used; the one that does not paint uses next to none."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
