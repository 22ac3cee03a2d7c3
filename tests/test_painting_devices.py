"""Painting on several devices: what one device paints, by rows and by pieces of the weights; meshes that do not fit."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dim_jax.aot import hlo
from dim_jax.batching import Batch, batches
from dim_jax.errors import InputError
from dim_jax.models.module import parameters
from dim_jax.models.quantized import dense
from dim_jax.pipeline import EditPipeline
from dim_jax.sharding import Sharding
from dim_jax.weights.opening import open_weights
from tests.painter_fixtures import QUICK, largest_difference, picture, tiny_checkpoint
from tests.started import with_devices

ROOT = Path(__file__).parents[1]
KERNEL = "sana.blocks.attn.qkv.kernel"


@pytest.mark.parametrize(
    ("count", "batch_size", "devices", "rows"),
    [(1, 4, 1, 1), (3, 4, 1, 3), (5, 4, 1, 4), (1, 4, 8, 1), (2, 4, 8, 8), (9, 4, 8, 8), (3, 4, 2, 4), (9, 5, 2, 6)],
)
def test_batches_are_filled_up_to_rows_for_every_device(count, batch_size, devices, rows):
    found = batches(["a"] * count, batch_size, devices)
    assert [i for batch in found for i in batch.indices] == list(range(count))
    assert {batch.rows for batch in found} == {rows}
    assert all(len(batch.fill(range(count))) == rows for batch in found)


def test_only_one_kind_is_painted_together():
    assert batches("abaab", 2) == [Batch([0, 2], 2), Batch([3], 2), Batch([1, 4], 2)]
    assert Batch([3], 2).fill("abaab") == ["a", "a"]


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"pipeline": 2}, r"^A mesh has no axis pipeline\. Axes are data, fsdp, tensor\.$"),
        ({"data": 64}, r"^data=64 takes 64 devices, but this process has \d+\. Ask for fewer\.$"),
        ({"data": -1, "fsdp": -1}, r"^data=-1, fsdp=-1: sizes are at least 1, and one of them may be -1"),
        ({"data": 0}, "^data=0: sizes are at least 1"),
    ],
)
def test_a_mesh_that_cannot_be(mesh, says):
    with pytest.raises(InputError, match=says):
        Sharding.for_painting(mesh, open_weights(ROOT / "dim_jax/nano").config)


def test_on_eight_devices(tmp_path):
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    command = [sys.executable, "-m", "tests.test_painting_devices", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=with_devices(8), check=False)
    assert run.returncode == 0, run.stderr
    found = {one["mesh"]: one for one in map(json.loads, run.stdout.splitlines())}
    assert found["refused"]["error"].endswith("does not divide over 'fsdp' = 3. Take fsdp=16, or a divisor of it."), found["refused"]
    assert found["quantized"] == {"mesh": "quantized", "values": [2, 64, 192], "scales": [2, 2, 192], "equal": True}
    for program in ("encode", "decode"):
        sent, parameter_bytes = found[program]["sent"], found[program]["parameters"]
        assert set(sent) == {"all-gather"}, f"{program} sends pictures"
        assert sent["all-gather"] <= parameter_bytes
    for name, pieces in (("cut", [2, 64, 192]), ("branches", [2, 128, 384])):
        one = found[name]
        assert one["kernel"] == pieces
        assert one["pixels"] <= 1
        assert one["latents"] < 1e-3


def sent_by_the_autoencoder(checkpoint: Path) -> Iterator[dict[str, Any]]:
    """What devices send each other that have a picture each and a part of each kernel, in bytes by kind."""
    sampler = EditPipeline.from_pretrained(checkpoint, mesh={"fsdp": 4}).sampler
    pixels = sampler._device_put(np.zeros((4, 128, 128, 3), np.float32))
    latents = sampler.encode([picture(128, 128)] * 4, (128, 128))
    for program, compiled, array in (("encode", sampler._encode, pixels), ("decode", sampler._decode, latents)):
        text = compiled.lower(sampler._leaves, array, sampler._tiling).compile().as_text()
        kernels = [x for path, x in parameters(sampler.dim).items() if path.startswith(f"autoencoder.{program}r.")]
        yield {"mesh": program, "sent": hlo.bytes_sent(hlo.Program.parse(text)), "parameters": sum(x.nbytes for x in kernels)}


def paintings(folder: Path) -> Iterator[dict[str, Any]]:
    """Three pictures, of which each pair of devices paints one (and a fourth that fills the batch up); and one, a branch on each device."""
    checkpoint = tiny_checkpoint(folder / "tiny")
    arguments = ["red", "a hat on it", "cut"], [picture(40, 40, i) for i in range(3)]
    alone = EditPipeline.from_pretrained(checkpoint)
    for name, mesh, count in (
        ("cut", {"data": 2, "fsdp": 2, "tensor": 2}, 3),
        ("branches", jax.make_mesh((2,), ("data",)), 1),
    ):
        pipeline = EditPipeline.from_pretrained(checkpoint, mesh=mesh)
        pairs = [
            [result for _, result in sorted(one.stream(*(items[:count] for items in arguments), seeds=range(count), settings=QUICK))]
            for one in (alone, pipeline)
        ]
        yield {
            "mesh": name,
            "kernel": parameters(pipeline.sampler.dim)[KERNEL].addressable_shards[0].data.shape,
            "pixels": max(largest_difference(a.image, b.image) for a, b in zip(*pairs, strict=True)),
            "latents": max(float(np.abs(a.latents - b.latents).max()) for a, b in zip(*pairs, strict=True)),
        }
    yield from sent_by_the_autoencoder(checkpoint)
    whole, cut = (
        parameters(EditPipeline.from_pretrained(checkpoint, mesh=mesh, quantize="int4").sampler.dim)[KERNEL]
        for mesh in (None, {"fsdp": 2, "tensor": 2})
    )
    shapes = {name: array.addressable_shards[0].data.shape for name, array in (("values", cut.qvalue), ("scales", cut.scale))}
    yield {"mesh": "quantized", **shapes, "equal": np.array_equal(dense(whole, np.float32), dense(cut, np.float32))}
    try:
        EditPipeline.from_pretrained(checkpoint, mesh={"fsdp": 3})
    except InputError as error:
        yield {"mesh": "refused", "error": str(error)}


if __name__ == "__main__":
    for line in paintings(Path(sys.argv[1])):
        print(json.dumps(line))
