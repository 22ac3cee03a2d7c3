"""Time, peak memory and size of converting full-size checkpoints to a checkpoint folder and back; every tensor must come back to the byte.

    python benchmarks/convert_memory.py --folder /a/disk/with/70/GB [--only sana-fp32 ...]

The weights are random. Each conversion is a process of its own; its anonymous memory (RssAnon) is sampled every 10 ms. Pages of mapped
source files do not count: the kernel drops them when memory is short.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dim_jax.checkpoint import TensorInfo
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.weights.files import DTYPES, DTypeName, SafetensorsWriter, open_safetensors
from dim_jax.weights.formats import DIM, NVLABS, Format
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.table import tensor_mappings

GIB = 2**30
SANA = SanaConfig.sana_1600m(edit=True)
CASES: dict[str, tuple[Format, ModelConfig, DTypeName]] = {
    "sana-fp32": (NVLABS, ModelConfig(sana=SANA), "F32"),
    "sana-bf16": (NVLABS, ModelConfig(sana=SANA), "BF16"),
    "full-bf16": (DIM, ModelConfig(QwenConfig.qwen_3b(), SANA, DCAEConfig.f32c32()), "BF16"),
    "full-fp32": (DIM, ModelConfig(QwenConfig.qwen_3b(), SANA, DCAEConfig.f32c32()), "F32"),
}


def random_file(path: Path, tensors: Mapping[str, TensorInfo], seed: int = 0) -> None:
    """A safetensors file of normal numbers (times 0.02): each tensor a run of one long period of them, from its own offset."""
    rng = np.random.default_rng(seed)
    period = (0.02 * rng.standard_normal(2**24 + 7, np.float32)).astype(next(iter(tensors.values())).dtype)
    path.parent.mkdir(parents=True)
    with SafetensorsWriter(path, tensors) as writer:
        for name, info in tensors.items():
            start = int(rng.integers(len(period)))
            writer.write(name, np.resize(np.roll(period, -start), info.shape))


def hashes(path: Path) -> Iterator[tuple[str, str]]:
    """Name and hash of every tensor of a file."""
    for name, tensor in open_safetensors(path).read():
        yield name, hashlib.blake2b(tensor.reshape(-1).view(np.uint8).data).hexdigest()


def measured(src: Path, dst: Path, to: str) -> tuple[float, float]:
    """Seconds and peak RssAnon in GiB of one conversion.

    Raises:
        CalledProcessError: it failed.
    """
    code = "import sys; from dim_jax.weights.convert import convert; convert(*sys.argv[1:])"
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-c", code, str(src), str(dst), to]) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
            time.sleep(0.01)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return time.perf_counter() - start, peak * 1024 / GIB


def size(path: Path) -> float:
    """GiB of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / GIB


def main() -> None:
    """Run the cases and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are written; they are deleted afterwards")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    args = parser.parse_args()
    table = Table("case", "GiB", "to Orbax (s)", "peak GiB", "Orbax GiB", "and back (s)", "peak GiB", "bytes equal")
    for case in args.only:
        form, sizes, dtype = CASES[case]
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            tensors = {
                name: TensorInfo(mapping.shape, DTYPES[dtype]) for name, mapping in tensor_mappings(form.rows, sizes.shapes()).items()
            }
            random_file(folder / "source" / "model.safetensors", tensors)
            before = dict(hashes(folder / "source" / "model.safetensors"))
            to_seconds, to_peak = measured(folder / "source", folder / "orbax", "orbax")
            back_seconds, back_peak = measured(folder / "orbax", folder / "back", "dim")
            equal = dict(hashes(folder / "back" / "model.safetensors")) == before
            row = [size(folder / "source"), to_seconds, to_peak, size(folder / "orbax"), back_seconds, back_peak]
            table.add_row(case, *(f"{value:.1f}" for value in row), f"{len(before)} of {len(before)}" if equal else "NO")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
