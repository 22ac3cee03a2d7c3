"""A training step compiled for a TPU slice on this machine: what is told, what is refused."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dim_jax.aot.compiling import abstract_batch, has_edits
from dim_jax.aot.inference import painting_programs
from dim_jax.aot.topology import Topology
from dim_jax.config import read_config
from dim_jax.errors import InputError
from dim_jax.sharding import Sharding
from dim_jax.training.config_guard import check_config
from dim_jax.training.model_init import ModelInit

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
def test_compile_reports_step_that_fits_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
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
    assert not list(tmp_path.glob(".cache/**/jit_*"))  # of compiled programs, which no device here could run


KERNELS = """
PATCHES = 74 * 74  # of a picture of 1024 pixels a side, 16 heads of 80: more keys than fit in the fast memory of v5p at once
PICTURES = (1, 32, 32, 11200), (1, 64, 64, 11200), (2, 8, 8, 60)  # at 1024 and 2048 pixels, and of a model as small as nano
from dim_jax.aot.topology import Topology
Topology.parse("v5e:2x2").set_environment()
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding
from dim_jax.models import fused
from dim_jax.models.precision import exact_products
def attend(q, k, v):
    return fused.attention(q, k, v, lengths=jnp.array([100])).sum()
def convolve(*arguments):
    return (fused.gated_conv(*arguments) ** 2).sum()
for name in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"):
    device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=SingleDeviceSharding(device))
    cases = [(attend, [shape(1, PATCHES, 16, 80)] * 3)]
    cases += [(convolve, [shape(*z), shape(z[-1]), shape(3, 3, z[-1]), shape(z[-1])]) for z in PICTURES]
    for function, arguments in cases:
        step = jax.grad(exact_products(jax.checkpoint(function)), tuple(range(len(arguments))))
        with jax.sharding.use_abstract_mesh(Mesh(np.array([device]), "data").abstract_mesh):
            compiled = jax.jit(step).lower(*arguments).compile()
        print(name, compiled.as_text().count("tpu_custom_call"))
"""


@libtpu
def test_the_kernels_compile_for_every_tpu():
    run = subprocess.run([sys.executable, "-c", KERNELS], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert [line.split()[1] for line in run.stdout.splitlines()] == ["2"] * 4 * 4  # forward and backward


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


def test_programs_of_painting_are_those_of_an_edit():
    config = read_config(ROOT / "configs/nano_edit.py", {"data.batch_size": "2", "data.lengths": "(192,)", "data.source": "synthetic"})
    model_init = ModelInit.open(config, check_config(config))
    sharding = Sharding.open(config, model_init.model_config, jax.devices()[:1])
    objective, batch = abstract_batch(config, model_init, sharding)
    programs = {name: (lower().out_info, flops.model) for name, lower, flops in painting_programs(objective, sharding, batch)}
    assert list(programs) == ["encoder", "source latents", "sampler", "picture"]
    assert programs["encoder"][0][0].shape[1:3] == (2, 192)
    assert programs["source latents"][0].shape == programs["sampler"][0].shape
    assert programs["picture"][0].shape == (2, 64, 64, 3)
    assert all(flops > 0 for _, flops in programs.values())


@pytest.mark.parametrize(("config", "edits"), [("t2i", False), ("edit_stage2", True), ("nano_edit", True)])
def test_a_config_without_edits_compiles_captions(config, edits):
    assert has_edits(read_config(ROOT / f"configs/{config}.py", {})) == edits


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v9:2x2", "v5e:2x2x2x2", "v5e:axb"])
def test_unknown_topology_is_refused(name):
    with pytest.raises(InputError, match="such as v5e:4x4"):
        Topology.parse(name)
