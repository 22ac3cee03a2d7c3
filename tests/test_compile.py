"""A training step compiled for a TPU slice on this machine: what is told, what is refused."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dim_jax.errors import InputError
from dim_jax.topology import Topology

ROOT = Path(__file__).parents[1]


def compile_tiny(topology: str, **changes: str) -> subprocess.CompletedProcess:
    """`dim compile` of the tiny encoder's step, in a process of its own: the environment counts before JAX is imported."""
    values = {"model.encoder": "tiny", "data.resolution": "56", "data.batch_size": "16", "data.lengths": "(192,)"}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    options = [option for key, value in values.items() for option in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "dim_jax.cli", "compile", "configs/nano_encoder.py", "--topology", topology, *options]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean)


libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu: pip install 'dim_jax[tpu]'"
)


@libtpu
def test_a_step_that_fits():
    found = compile_tiny("v5e:2x2", sharding__fsdp="-1")
    assert found.returncode == 0, found.stderr
    assert "4 devices of 16 GiB as data 1 x fsdp 4 x tensor 1" in found.stdout
    assert "parameters learn, 0 are frozen" in found.stdout
    peak = next(line for line in found.stdout.splitlines() if line.split()[0] == "peak")
    assert 0 < float(peak.split()[1]) < 1


@libtpu
def test_a_step_that_does_not_fit():
    found = compile_tiny("v5e:2x2", sharding__fsdp="-1", data__lengths="(4096,)", data__batch_size="16384")
    assert found.returncode == 1
    assert "error: The step does not fit" in found.stderr
    assert "exceeds available HBM" in found.stderr or "of 15.75G hbm" in found.stderr


@libtpu
def test_a_mesh_that_the_slice_does_not_have():
    found = compile_tiny("v5e:2x2", sharding__fsdp="16")
    assert found.returncode == 1
    assert "does not make the 4 devices" in found.stderr


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v9:2x2", "v5e:2x2x2x2", "v5e:axb"])
def test_a_name_that_is_no_topology(name):
    with pytest.raises(InputError, match="such as v5e:4x4"):
        Topology.parse(name)
