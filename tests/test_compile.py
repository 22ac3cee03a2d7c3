"""A training step compiled for a TPU slice on this machine: what is told, what is refused."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dim_jax.aot.compiling import has_edits
from dim_jax.aot.topology import Topology
from dim_jax.config import read_config
from dim_jax.errors import InputError

ROOT = Path(__file__).parents[1]


def compile_tiny(topology: str, *more: str, **changes: str) -> subprocess.CompletedProcess:
    """`dim compile` of the tiny encoder's step."""
    values = {"model.encoder": "tiny", "data.resolution": "56", "data.batch_size": "16", "data.lengths": "(192,)"}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    options = [option for key, value in values.items() for option in ("--set", f"{key}={value}")]
    return dim_compile("configs/nano_encoder.py", topology, *more, *options)


def dim_compile(config: str, topology: str, *options: str) -> subprocess.CompletedProcess:
    """`dim compile`, in a process of its own: the environment counts before JAX is imported."""
    command = [sys.executable, "-m", "dim_jax.cli", "compile", config, "--topology", topology, *options]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean)


libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu: pip install 'dim_jax[tpu]'"
)


@libtpu
def test_compile_reports_step_that_fits_memory(tmp_path):
    kept = tmp_path / "step.hlo"
    found = compile_tiny("v5e:2x2", "--hlo", str(kept), sharding__fsdp="-1")
    assert found.returncode == 0, found.stderr
    assert "4 devices of 16 GiB as slices 1 x data 1 x fsdp 4 x tensor 1" in found.stdout
    assert "parameters learn, 0 are frozen" in found.stdout
    peak = next(line for line in found.stdout.splitlines() if line.split()[0] == "peak")
    assert 0 < float(peak.split()[1]) < 1
    told = found.stdout
    step = re.search(
        r"at least ([\d.e-]+) s, MFU at most ([\d.]+)% \(compute ([\d.e-]+) s, memory ([\d.e-]+) s, links ([\d.e-]+) s\)", told
    )
    assert step is not None, told
    least, utilisation, *parts = map(float, step.groups())
    assert least == max(parts)
    assert min(parts) > 0
    assert utilisation == pytest.approx(100 * parts[0] / least, rel=0.03)  # nothing is computed again
    flops = re.search(r"TFLOP of a step: ([\d.]+)", told)
    assert flops is not None
    assert parts[0] == pytest.approx(float(flops[1]) / (4 * 197), rel=0.05)
    assert "all-gather" in told.split("each device sends, in GB: ")[1]
    assert "HloModule" in kept.read_text()[:20]


@libtpu
def test_compile_refuses_step_over_memory():
    found = compile_tiny("v5e:2x2", sharding__fsdp="-1", data__lengths="(4096,)", data__batch_size="16384")
    assert found.returncode == 1
    assert "error: The step needs more memory than a device has" in found.stderr
    assert "exceeds available HBM" in found.stderr or "of 15.75G hbm" in found.stderr


@libtpu
@pytest.mark.parametrize(
    ("config", "topology", "mesh", "reason"),
    [
        ("nano_encoder", "v5e:2x2", "1 16 1", "does not make the 4 devices"),
        ("t2i", "v5e:8x16", "1 128 1", "does not divide over 'fsdp' = 128. Set config.sharding.fsdp to 64 or a divisor of it"),
    ],
)
def test_compile_refuses_invalid_mesh(config, topology, mesh, reason):
    options = [
        option
        for axis, size in zip(("data", "fsdp", "tensor"), mesh.split(), strict=True)
        for option in ("--set", f"sharding.{axis}={size}")
    ]
    found = dim_compile(f"configs/{config}.py", topology, *options)
    assert found.returncode == 1
    assert reason in " ".join(found.stderr.split())


@pytest.mark.parametrize(("config", "edits"), [("t2i", False), ("edit_stage2", True), ("nano_edit", True)])
def test_a_config_without_edits_compiles_captions(config, edits):
    assert has_edits(read_config(ROOT / f"configs/{config}.py", {})) == edits


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v9:2x2", "v5e:2x2x2x2", "v5e:axb"])
def test_unknown_topology_is_refused(name):
    with pytest.raises(InputError, match="such as v5e:4x4"):
        Topology.parse(name)
