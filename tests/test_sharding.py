"""Every parameter has its place, what does not fit is refused, and the curve is the same on every mesh."""

import itertools
import json
import math
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from dim_jax import sharding
from dim_jax.config import read_config
from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.pipeline import batches, open_mixture
from dim_jax.errors import InputError
from dim_jax.models import layers
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana import SanaConfig
from dim_jax.objectives.painter import PainterObjective
from dim_jax.sharding import Sharding, fitting_mesh, logical_axes, put
from dim_jax.start import Start
from dim_jax.step import make_step
from dim_jax.weights.sizes import Sizes
from tests.test_train import SMALL

ROOT = Path(__file__).parents[1]
FULL = Sizes(QwenConfig.qwen_3b(), SanaConfig.sana_1600m(edit=True), DCAEConfig.f32c32())
MODELS = {
    "full": FULL,
    "7b": Sizes(encoder=QwenConfig.qwen_7b()),
    "nano": Sizes(QwenConfig.nano(), SanaConfig.nano(), DCAEConfig.nano()),
    "tiny": Sizes(QwenConfig.tiny(), SanaConfig.tiny(), DCAEConfig.tiny()),
}
MESHES = {"one": (1, 1, 1), "fsdp": (1, 8, 1), "fsdp and tensor": (1, 4, 2), "data and fsdp": (2, 4, 1)}


def mesh(data: int, fsdp: int, tensor: int, *, devices: int | None = None, **changes: str) -> dict[str, int]:
    """The mesh of the full-size model at batch 32; in the names of changed keys two underlines stand for a dot."""
    values = {"data.batch_size": "32", "sharding.data": str(data), "sharding.fsdp": str(fsdp), "sharding.tensor": str(tensor)}
    config = read_config(ROOT / "configs/nano_edit.py", values | {key.replace("__", "."): value for key, value in changes.items()})
    return fitting_mesh(config, FULL, data * fsdp * tensor if devices is None else devices)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_has_one_row_of_its_rank(model):
    for path, shape in MODELS[model].shapes().items():
        assert len(logical_axes(path)) == len(shape), path


def test_every_row_is_of_some_parameter():
    paths = {path for sizes in MODELS.values() for path in sizes.shapes()}
    for pattern, _ in sharding.ROWS:
        assert any(fnmatchcase(path, pattern) for path in paths), pattern


def test_what_lies_whole_on_every_device_is_small():
    rules = read_config(ROOT / "configs/common.py", {}).sharding.rules
    cut = {path: any(rules[axis] for axis in logical_axes(path)) for path in FULL.shapes()}
    assert sum(math.prod(shape) for path, shape in FULL.shapes().items() if not cut[path]) < 0.001 * 5.7e9


def test_meshes_of_the_full_model():
    assert mesh(1, 32, 2) == {"data": 1, "fsdp": 32, "tensor": 2}
    assert mesh(2, -1, 2, devices=32) == {"data": 2, "fsdp": 8, "tensor": 2}
    assert mesh(4, 64, 1, data__batch_size="256") == {"data": 4, "fsdp": 64, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "changes", "says"),
    [
        ((1, 256, 1), {"data__batch_size": "256"}, ("sana.blocks.attn", "= 2240 does", "'fsdp' = 256", "fsdp to 64 or a divisor")),
        ((1, 1, 4), {}, ("self_attn.k_proj.kernel", "'kv_heads' holds 2 heads", "'tensor' = 4", "tensor to 2 or a divisor")),
        ((1, 64, 1), {}, ("batch_size 32", "1 x 64", "a multiple of 64", "32 or a divisor")),
        ((1, 1, 1), {"devices": 8}, ("data 1 x fsdp 1 x tensor 1", "the 8 devices", "-1")),
        ((3, -1, 1), {"devices": 8}, ("the 8 devices",)),
        ((-1, -1, 1), {"devices": 8}, ("one of them may be -1",)),
        ((0, 1, 1), {"devices": 8}, ("at least 1",)),
        ((1, 2, 1), {"sharding__rules__width": "fdsp"}, ("rules.width", "'fdsp'", "data, fsdp, tensor")),
        ((1, 2, 1), {"sharding__rules__mlp": "fsdp"}, ("'mlp' and 'width'", "'fsdp'", "config.sharding.rules")),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit(sizes, changes, says):
    with pytest.raises(InputError) as error:
        mesh(*sizes, **changes)
    for part in says:
        assert part in str(error.value)


def test_a_table_that_does_not_fit(monkeypatch):
    """A parameter without a row, with two, with a row of another rank; a logical axis without a rule."""
    row = ("sana.t_block.kernel", ("width", "modulation"))
    rows = [other for other in sharding.ROWS if other != row]
    for changed, part in (
        ([*rows, ("sana.*.none", ("modulation",))], "this one: none"),
        ([*rows, row, ("sana.t_*.kernel", ("width", "modulation"))], "sana.t_block.kernel and sana.t_*.kernel"),
        (
            [*rows, ("sana.t_block.kernel", ("modulation",))],
            "(2240, 13440): its row in the table of dim_jax/sharding.py names 1 axes (modulation)",
        ),
        ([*rows, ("sana.t_block.kernel", ("width", "times"))], "rules: modulation, times"),
    ):
        monkeypatch.setattr(sharding, "ROWS", tuple(changed))
        logical_axes.cache_clear()
        with pytest.raises(InputError) as error:
            mesh(1, 1, 1)
        assert part in str(error.value)
    logical_axes.cache_clear()


def test_rows_are_spread_only_where_a_mesh_is_set():
    """Else every device would compute the whole batch in training, and sampling would need a mesh."""
    x = jax.ShapeDtypeStruct((8, 2), "float32")
    assert "sharding_constraint" not in str(jax.make_jaxpr(layers.rows)(x))
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 2, 1), sharding.MESH_AXES)):
        assert "sharding_constraint" in str(jax.make_jaxpr(layers.rows)(x))


def losses(shape: tuple[int, int, int], known: dict[str, np.ndarray]) -> list[str]:
    """Ten steps of the tiny edit painter on a mesh, in float32: the losses, exactly. Frozen parts that are not `known` become so."""
    sizes = dict(zip(("sharding.data", "sharding.fsdp", "sharding.tensor"), map(str, shape), strict=True))
    config = read_config(ROOT / "configs/nano_edit.py", SMALL | sizes | {"data.batch_size": "8", "data.mix.caption": "0.0"})
    start = Start.open(config, PainterObjective.PARTS)
    chat = ChatTokenizer.from_pretrained(ROOT / "tests/tiny_tokenizer")
    start = start.with_tokenizer(chat)
    objective = PainterObjective(config, start.sizes, start.processor(chat, config))
    mesh = Sharding.open(config, start.sizes, jax.devices()[: math.prod(shape)])
    training = make_step(config, objective, mesh)
    if not known:  # drawing them takes longest
        known |= {path: np.asarray(tensor) for path, tensor in start.tensors(0, training.frozen).items()}
    frozen = {path: put(tensor, training.frozen[path].sharding) for path, tensor in known.items()}
    tensors = start.tensors(0, training.like.params)
    state, found = training.begin(tensors), []
    sources = open_mixture("synthetic", config.data.mix.to_dict(), split="train", side=32)
    stream = batches(sources, objective.reader, batch_size=8, seed=0, start=0, workers=0)
    for _, batch in itertools.islice(stream, 10):
        state, metrics = training.run(state, frozen, mesh.spread(batch, put))
        found.append(float(metrics["loss"]).hex())
    kernel = "sana.blocks.attn.qkv.kernel"  # (2, 64, 192)
    for tensor in (state.params[kernel], state.ema[kernel], state.opt[1][0].mu[kernel]):
        assert tensor.addressable_shards[0].data.shape == (2, 64 // shape[1], 192 // shape[2])
    assert frozen["autoencoder.encoder.conv_in.kernel"].addressable_shards[0].data.shape[-1] == 16 // shape[1]
    return found


def test_the_curve_is_the_same_on_every_mesh():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    flags = "--xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-m", "tests.test_sharding"], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}
    )
    assert run.returncode == 0, run.stderr
    curves = {name: [float.fromhex(loss) for loss in found] for name, found in json.loads(run.stdout).items()}
    assert all(len(curve) == 10 for curve in curves.values())
    assert len(set(curves["one"])) == 10
    for name, curve in curves.items():
        np.testing.assert_allclose(curve, curves["one"], rtol=1e-5, err_msg=name)


if __name__ == "__main__":
    tensors: dict[str, np.ndarray] = {}
    print(json.dumps({name: losses(shape, tensors) for name, shape in MESHES.items()}))
