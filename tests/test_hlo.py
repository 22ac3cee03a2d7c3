"""Bytes that a compiled program sends and moves, against what is known: programs for 8 devices of a CPU and of TPUs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dim_jax.aot import hlo
from dim_jax.aot.topology import Topology

ROOT = Path(__file__).parents[1]
DEVICES, LAYERS, WIDTH = 8, 5, 1024
LAYER = WIDTH * WIDTH * 2  # bytes of a layer's parameters in bfloat16
libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86-64")


def compiled(platform: str) -> str:
    """The gradient of a stack of layers, parameters and rows cut over all devices, compiled in a process of its own.

    `platform`: "cpu" or a topology of 8 devices.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    clean |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    command = [sys.executable, "-m", "tests.test_hlo", platform]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean)
    assert found.returncode == 0, found.stderr
    return found.stdout


def write(platform: str) -> None:
    if platform != "cpu":
        Topology.parse(platform).set_environment()
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    devices = jax.devices() if platform == "cpu" else topologies.get_topology_desc(platform="tpu", topology_name=platform).devices
    mesh = jax.make_mesh((DEVICES,), ("fsdp",), axis_types=(AxisType.Auto,), devices=devices)
    rows, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), (None, "fsdp")))

    def loss(x, layers):
        def step(x, layer):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ layer), rows), None

        return jax.lax.scan(step, x, layers)[0].astype(jnp.float32).sum()

    x = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.bfloat16, sharding=rows)
    layers = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.bfloat16, sharding=cut)
    print(jax.jit(jax.grad(loss, 1), out_shardings=cut).lower(x, layers).compile().as_text())


def test_collectives_of_loops_on_cpu():
    text = compiled("cpu")
    found = hlo.bytes_sent(hlo.Program.parse(text))
    gathered = 2 if "bf16[1024,1024]{1,0} all-gather" in text else 4  # this backend may widen to float32 before it gathers
    others = LAYER * (DEVICES - 1) // DEVICES
    assert found["all-gather"] == 2 * LAYERS * others * gathered // 2  # each layer forward and backward
    assert found["all-reduce"] % (2 * LAYERS * others) == 0  # its gradient
    assert found.keys() == {"all-gather", "all-reduce"}


@libtpu
def test_collectives_of_loops_on_tpu():
    """The gathers lie in three fusions each, the reduction is an all-reduce in a fusion, and only conditions say how long loops are."""
    text = compiled("v5e:2x4")
    assert "AsyncCollectiveStart" in text
    assert "known_trip_count" not in text
    program = hlo.Program.parse(text)
    others = LAYER * (DEVICES - 1) // DEVICES
    assert program.devices == DEVICES
    assert hlo.bytes_sent(program) == {"all-gather": 2 * LAYERS * others, "reduce-scatter": LAYERS * others}
    # Parameters are read twice and gradients written once; all activations fit into fast memory.
    assert 3 * LAYERS * LAYER / DEVICES < hlo.bytes_moved(program) < 5 * LAYERS * LAYER / DEVICES


@libtpu
def test_collectives_of_sparse_cores():
    """Each collective of a TPU7x is a computation of its own, called asynchronously. Whole layers lie in main memory: those that are
    gathered, forward and backward, are written and read, and so is the gradient before it is scattered."""
    text = compiled("tpu7x:2x2x1")
    assert 'execution_thread="sparsecore"' in text
    program = hlo.Program.parse(text)
    others = LAYER * (DEVICES - 1) // DEVICES
    assert program.devices == DEVICES
    assert hlo.bytes_sent(program) == {"all-gather": 2 * LAYERS * others, "reduce-scatter": LAYERS * others}
    parts = LAYERS * LAYER // DEVICES  # of parameters: sliced from the stack, gathered, and their like of gradients
    least = 3 * LAYERS * 2 * LAYER + 2 * 2 * parts + 2 * parts
    assert least < hlo.bytes_moved(program) < 1.1 * least


PROGRAM = """HloModule jit_run, is_scheduled=true, num_partitions=4

%slow (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %sum = f32[256]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%quick (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %moved = f32[256]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

%part (p: f32[8,256], i: s32[]) -> f32[256] {
  %p = f32[8,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %row = f32[1,256]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,256}
}

%body (t: (s32[], f32[256], pred[])) -> (s32[], f32[256], pred[]) {
  %t = (s32[], f32[256]{0}, pred[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[256]{0:T(256)S(1)} get-tuple-element(%t), index=1
  %which = pred[] get-tuple-element(%t), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[256]{0:T(256)S(1)} conditional(%which, %x, %x), branch_computations={%slow, %quick}
  %big = f32[8,256]{1,0:T(8,128)} broadcast(%two)
  %z = f32[256]{0:T(256)S(1)} fusion(%big, %i), kind=kLoop, calls=%part
  ROOT %out = (s32[], f32[256]{0}, pred[]) tuple(%next, %y, %which)
}

%condition (t: (s32[], f32[256], pred[])) -> pred[] {
  %t = (s32[], f32[256]{0}, pred[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %end = s32[] constant(9)
  ROOT %goes = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (x: f32[256], which: pred[], table: f32[512,256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %which = pred[] parameter(1)
  %table = f32[512,256]{1,0:T(8,128)} parameter(2)
  %ahead = ((f32[512,256]{1,0:T(8,128)}), f32[1,256]{1,0:T(1,128)S(1)}, s32[]{:S(2)}) slice-start(%table), slice={[3:4], [0:256]}
  %there = f32[1,256]{1,0:T(1,128)S(1)} slice-done(%ahead)
  %kernel = f32[2,256]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %room = f32[512,256]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %zero = s32[] constant(1)
  %first = s32[] copy(%zero)
  %begin = (s32[], f32[256]{0}, pred[]) tuple(%first, %x, %which)
  %loop = (s32[], f32[256]{0}, pred[]) while(%begin), condition=%condition, body=%body
  ROOT %last = f32[256]{0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_the_cheapest_branch():
    program = hlo.Program.parse(PROGRAM)
    assert hlo.bytes_sent(program) == {"collective-permute": 4 * 1024}  # from 1 by 2 to 9; an all-reduce would send half as much again


def test_a_loop_whose_counter_is_copied():
    """As libtpu has it where a counter leaves the fast memory of scalars."""
    add, copied = "%next = s32[] add(%i, %two)", "%sum = s32[]{:S(6)} add(%i, %two)\n  %next = s32[] copy(%sum)"
    assert add in PROGRAM
    assert hlo.bytes_sent(hlo.Program.parse(PROGRAM.replace(add, copied))) == {"collective-permute": 4 * 1024}


def test_what_is_sliced_counts_as_the_slice_and_fast_memory_not():
    in_the_loop = 8 * 1024 + 1024  # the broadcast is written, a row of it read; results and branches are in fast memory
    branch = 2 * 1024  # the permutation itself does not say where its arrays lie
    before = 1024 + 8 + 3 * 1024  # a row of the table is fetched, a scalar copied, and a kernel reads a row and writes two
    assert hlo.bytes_moved(hlo.Program.parse(PROGRAM)) == pytest.approx(4 * (in_the_loop + branch) + before, abs=100)


def test_what_runs_aside_counts_once():
    """What was begun may go on in a step between, as libtpu has it since JAX 0.12."""
    done = "%there = f32[1,256]{1,0:T(1,128)S(1)} slice-done(%ahead)"
    assert done in PROGRAM
    between = "%way = ((f32[512,256]{1,0:T(8,128)}), f32[1,256]{1,0:T(1,128)}, s32[]{:S(2)}) slice-update(%ahead)"
    text = PROGRAM.replace(done, f"{between}\n  {done.replace('%ahead', '%way')}")
    assert hlo.bytes_moved(hlo.Program.parse(text)) == hlo.bytes_moved(hlo.Program.parse(PROGRAM))


@pytest.mark.parametrize("copied", [False, True])
def test_what_a_fusion_relabels_counts_as_what_is_read_of_it(copied):
    """On TPU7x a fusion first gives what it reads another tiling, by a fusion of its own."""
    relabel = """%relabel (p: f32[8,256]) -> f32[8,256] {
  %p = f32[8,256]{1,0:T(16,128)} parameter(0)
  ROOT %copied = f32[8,256]{1,0:T(8,128)} copy(%p)
}

%part ("""
    row = "ROOT %row = f32[1,256]{1,0} dynamic-slice(%p, "
    assert row in PROGRAM
    rows = row.replace("ROOT", "ROOT %copy = f32[8,256]{1,0} copy(%p)\n ") if copied else row
    relabeled = "%relabeled = f32[8,256]{1,0:T(8,128)} fusion(%p), calls=%relabel\n  " + rows.replace("(%p", "(%relabeled")
    text = PROGRAM.replace("%part (", relabel, 1).replace(row, relabeled)
    more = hlo.bytes_moved(hlo.Program.parse(text)) - hlo.bytes_moved(hlo.Program.parse(PROGRAM))
    assert more == (4 * 7 * 1024 if copied else 0)  # all eight rows, not one, each time


def test_a_loop_without_an_end_is_refused():
    with pytest.raises(ValueError, match="loop: the text does not say how often"):
        hlo.bytes_sent(hlo.Program.parse(PROGRAM.replace("%end = s32[] constant(9)", "%end = s32[] get-tuple-element(%t), index=0")))


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[2,8]<=[8,2]T(1,0), dimensions={0}", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, y", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_0','axis_1':(2)4}", 16),
        ("replica_groups=mesh['axis_0'=64,'axis_1'=4], device_ids=([4,64]T(1,0)) {'axis_0'}, dimensions={1}", 64),
        ("replica_groups={}", 64),
    ],
)
def test_every_way_to_write_groups(groups, size):
    assert hlo._group(groups, 64) == size


if __name__ == "__main__":
    write(sys.argv[1])
