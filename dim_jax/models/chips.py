"""Published peak numbers of accelerators, by JAX's name of the device (`device_kind`).

TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x (read in November 2026). Published are, for each chip, peak FLOP/s in bfloat16,
bytes and bytes per second of memory (HBM), and bytes per second of all links to other chips (ICI), both directions together; for v4 the
links are in arXiv 2304.01433, table 4: six, of 50 GB/s each way. A TPU7x chip is two devices with half of it each.
GPUs: the data sheets of NVIDIA, SXM modules, dense bfloat16 without sparsity.
"""

from dataclasses import dataclass

from dim_jax.storage.disk import GIB


@dataclass(frozen=True)
class Chip:
    """One device: `slice_name` begins the names of its slices, `flops` are per second in bfloat16, `memory` is in bytes, `bandwidth` that
    of the memory and `links` that of all links to other chips, one way, in bytes per second."""

    slice_name: str
    kind: str
    flops: float
    memory: int
    bandwidth: float
    links: float


TPUS = {
    "v4": Chip("v4", "TPU v4", 275e12, 32 * GIB, 1200e9, 300e9),
    "v5e": Chip("v5litepod", "TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 1638e9, 400e9),
    "tpu7x": Chip("tpu7x", "TPU7x", 1153.5e12, 96 * GIB, 3690e9, 300e9),
}
GPUS = {"NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
PEAKS = {chip.kind: chip.flops for chip in TPUS.values()} | GPUS


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device in bfloat16; None where they are not known (a CPU, another chip)."""
    return PEAKS.get(device_kind)
