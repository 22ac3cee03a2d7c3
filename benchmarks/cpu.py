"""The nano model on a CPU against PyTorch, eager and compiled: an edit of 64 px, and training steps of 16 pairs.

    python benchmarks/cpu.py

Close other programs first: both frameworks take all cores. Both get memory in large pages. The goals are 1.5 times eager PyTorch, and no
less than compiled.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import speed

NANO = ["--size", "nano", "--side", "64", "--text-tokens", "120", "--repeats", "5"]

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # XLA gives the memory of a step's results back, and in pages of 4 KiB a fifth of the next step goes into asking for it again.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    tables = [speed.table(speed.run(work + NANO)) for work in (["edit"], ["train", "--batch", "16", "--remat", "none"])]
    print("\n" + "\n\n".join(tables))
