"""Every parameter has its place, what does not fit is refused, and the curve is the same on every mesh."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from dim_jax.config import read_config
from dim_jax.data.pipeline import Loader, batches, make_plan, open_mixture
from dim_jax.errors import InputError
from dim_jax.models import layers
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.gemma import GemmaConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.qwen3 import Qwen3Config
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processes import make_global_array
from dim_jax.sharding import Sharding, validate_mesh
from dim_jax.train import make_train_step
from dim_jax.training.config_guard import check_config
from dim_jax.training.model_init import ModelInit
from dim_jax.training.objectives import open_objective
from dim_jax.training.resume import training_states
from dim_jax.training.state import State, abstract_frozen, abstract_state, init_state
from dim_jax.weights.logical_axes import LOGICAL_AXES, logical_axes
from dim_jax.weights.model_config import ModelConfig
from tests.abstract_meshes import on
from tests.started import with_devices
from tests.test_train import SMALL

ROOT = Path(__file__).parents[1]
FULL = ModelConfig(QwenConfig.qwen_3b(), SanaConfig.sana_1600m(edit=True), DCAEConfig.f32c32())
MODELS = {
    "full": FULL,
    "7b": ModelConfig(encoder=QwenConfig.qwen_7b()),
    "nano": ModelConfig(QwenConfig.nano(), SanaConfig.nano(), DCAEConfig.nano()),
    "tiny": ModelConfig(QwenConfig.tiny(), SanaConfig.tiny(), DCAEConfig.tiny()),
    "sana_sprint": ModelConfig(GemmaConfig.gemma_2b(), replace(SanaConfig.sana_1600m(), null_table=False, guidance_embeds=True)),
    "vibe": ModelConfig(Qwen3Config.qwen3_2b(), replace(SanaConfig.sana_1600m(edit=True, condition_length=224), null_table=False)),
}
EDITS = {
    "sharding.gather": "step", "data.batch_size": "8", "data.mix.caption": "0.0", "flow.source_dropout": "0.5",
    "flow.contrastive": "0.1", "repa.weight": "0.5", "repa.block": "1", "trainable": "('connector', 'sana', 'repa')",
}  # fmt: skip
MESHES = {"one": (1, 1, 1), "all axes": (2, 2, 2)}


def mesh(data: int, fsdp: int, tensor: int, *, devices: int | None = None, **changes: str) -> dict[str, int]:
    """The mesh of the full-size model at batch 32; in the names of changed keys two underlines stand for a dot."""
    values = {"data.batch_size": "32", "sharding.data": str(data), "sharding.fsdp": str(fsdp), "sharding.tensor": str(tensor)}
    config = read_config(ROOT / "configs/nano_edit.py", values | {key.replace("__", "."): value for key, value in changes.items()})
    return validate_mesh(config, FULL, data * fsdp * tensor if devices is None else devices)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_has_one_row_of_its_rank(model):
    for path, shape in MODELS[model].shapes().items():
        assert len(logical_axes(path)) == len(shape), path


def test_every_row_is_of_some_parameter():
    paths = {path for sizes in MODELS.values() for path in sizes.shapes()}
    for pattern, _ in LOGICAL_AXES:
        assert any(fnmatchcase(path, pattern) for path in paths), pattern


def test_replicated_parameters_are_small():
    rules = read_config(ROOT / "configs/common.py", {}).sharding.rules
    cut = {path: any(rules[axis] for axis in logical_axes(path)) for path in FULL.shapes()}
    assert sum(math.prod(shape) for path, shape in FULL.shapes().items() if not cut[path]) < 0.001 * 5.7e9


def test_meshes_of_the_full_model():
    assert mesh(1, 32, 2) == {"slices": 1, "data": 1, "fsdp": 32, "tensor": 2}
    assert mesh(2, -1, 2, devices=32) == {"slices": 1, "data": 2, "fsdp": 8, "tensor": 2}
    assert mesh(1, 16, 1, devices=32, sharding__slices="-1") == {"slices": 2, "data": 1, "fsdp": 16, "tensor": 1}
    assert mesh(4, 64, 1, data__batch_size="256") == {"slices": 1, "data": 4, "fsdp": 64, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "changes", "says"),
    [
        ((1, 16, 1), {"sharding__slices": "4", "devices": 64}, ("batch_size 32", "4 x 1 x 16", "a multiple of 64")),
        ((1, 16, 1), {"sharding__slices": "2", "devices": 16}, ("slices 2 x data 1 x fsdp 16", "the 16 devices")),
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
def test_indivisible_mesh_is_refused(sizes, changes, says):
    with pytest.raises(InputError) as error:
        mesh(*sizes, **changes)
    for part in says:
        assert part in str(error.value)


@pytest.mark.parametrize(("slices", "found"), [(4, 2), (1, 2), (2, 1)])
def test_slices_are_those_of_the_machine(slices, found):
    """Two of 16 chips are refused as one or as four, and one as two: else a parameter would be gathered over the slow network."""
    devices = [SimpleNamespace(platform="tpu", slice_index=i * found // 32) for i in range(32)]
    changes = {"data.batch_size": "32", "sharding.slices": str(slices), "sharding.fsdp": "-1"}
    config = read_config(ROOT / "configs/nano_edit.py", changes)
    with pytest.raises(InputError, match=rf"slices is {slices}, but the 32 devices that are here lie in {found}\. Set it to {found};"):
        Sharding.open(config, FULL, devices)


ON_A_TORUS = """
from dim_jax.aot.topology import Topology
topology = Topology.parse("v5e:4x4")
topology.set_environment()
from jax.experimental.topologies import get_topology_desc
from tests.test_sharding import ROOT, MODELS, Sharding, read_config
for slices in (1, 2):
    more = {"num_slices": slices} if slices > 1 else {}
    devices = get_topology_desc(platform="tpu", topology_name=topology.name, **more).devices
    sizes = {"sharding.slices": str(slices), "sharding.fsdp": "16", "data.batch_size": "32"}
    place = Sharding.open(read_config(ROOT / "configs/nano_autoencoder.py", sizes), MODELS["tiny"], devices)
    print(place.local_batch_indices(32).tolist())
"""


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'")
def test_the_rows_of_a_tpu_host_are_those_of_its_chips():
    """The mesh follows the torus: the first of four hosts has 4 of 16 chips (or of 32, in two slices), not the first four of the mesh."""
    run = subprocess.run([sys.executable, "-c", ON_A_TORUS], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [[0, 1, 2, 3, 12, 13, 30, 31], [0, 1, 6, 15]]


SIDE_BY_SIDE = """
import json, sys
import jax, jax.numpy as jnp
from flax import nnx
from dim_jax.aot.hlo import Program, bytes_sent
from dim_jax.models.module import shapes, with_parameters
from dim_jax.models.sana import Sana
from tests.test_sharding import MODELS, Sharding
sizes = MODELS["tiny"]
place = Sharding.for_painting({"tensor": 2}, sizes)
sana = nnx.eval_shape(lambda: Sana(sizes.sana, rngs=nnx.Rngs(0)))
def abstract(path, shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place.param_sharding(path))
params = {path: abstract(path, shape) for path, shape in sizes.shapes().items() if path.startswith("sana.")}
def velocity(params, latents, condition):
    gathered = place.gather(params, jnp.float32)
    model = with_parameters(sana, {path.removeprefix("sana."): x for path, x in gathered.items()})
    return model(latents, jnp.ones(1), model.embed_condition(condition, jnp.ones(condition.shape[:2], bool)))
inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 32, 32, 8), (1, 8, 48))]
with jax.sharding.use_abstract_mesh(place.mesh.abstract_mesh):
    sent = bytes_sent(Program.parse(jax.jit(velocity).lower(params, *inputs).compile().as_text()))
kernels = ("attn.qkv", "cross_attn.kv_linear", "mlp.inverted_conv", "mlp.depth_conv")
print(json.dumps([sent, 4 * sum(params[f"sana.blocks.{path}.kernel"].size for path in kernels)]))
"""


def test_queries_keys_values_and_gates_are_cut_each():
    """Else `tensor` would cut columns of several results in the middle, and splitting them would send pictures. Parts of kernels move
    before the first layer, and then only sums are sent."""
    run = subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], capture_output=True, text=True, cwd=ROOT, env=with_devices(2), check=False)
    assert run.returncode == 0, run.stderr
    sent, kernels = json.loads(run.stdout)
    assert sent.pop("all-reduce") > 0
    assert 0 < sum(sent.values()) <= kernels / 2


def test_incomplete_sharding_table_is_refused(monkeypatch):
    """A parameter without a row, with two, with a row of another rank; a logical axis without a rule."""
    row = ("sana.t_block.kernel", ("width", "modulation"))
    rows = [other for other in LOGICAL_AXES if other != row]
    for changed, part in (
        ([*rows, ("sana.*.none", ("modulation",))], "this one: none"),
        ([*rows, row, ("sana.t_*.kernel", ("width", "modulation"))], "sana.t_block.kernel and sana.t_*.kernel"),
        (
            [*rows, ("sana.t_block.kernel", ("modulation",))],
            "(2240, 13440): its row in the table of dim_jax/weights/logical_axes.py names 1 axes (modulation)",
        ),
        ([*rows, ("sana.t_block.kernel", ("width", "times"))], "rules: modulation, times"),
    ):
        monkeypatch.setattr("dim_jax.weights.logical_axes.LOGICAL_AXES", tuple(changed))
        logical_axes.cache_clear()
        with pytest.raises(InputError) as error:
            mesh(1, 1, 1)
        assert part in str(error.value)
    logical_axes.cache_clear()


def test_rows_are_spread_only_where_a_mesh_is_set():
    """Else every device would compute the whole batch in training, and sampling would need a mesh."""
    x = jax.ShapeDtypeStruct((8, 2), "float32")
    assert "sharding_constraint" not in str(jax.make_jaxpr(layers.shard_batch)(x))
    with on(1, 1, 2, 1):
        assert "sharding_constraint" in str(jax.make_jaxpr(layers.shard_batch)(x))


def random_parameters(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """Kernels that keep the size of what they read, scales of one, biases of zero."""
    rng, found = np.random.default_rng(0), {}
    for path, leaf in leaves.items():
        drawn = rng.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else path.endswith("scale")
        found[path] = np.broadcast_to(drawn, leaf.shape).astype(leaf.dtype)
    return found


class Run:
    """The tiny edit painter on a mesh, in float32, from `known` parameters. If there are none, the frozen ones become known: numbers of
    their sizes, since a program that draws them compiles for long. Others are drawn on the mesh."""

    def __init__(self, shape: tuple[int, int, int], known: dict[str, np.ndarray], devices: Sequence[Any] | None = None):
        sizes = {f"sharding.{axis}": str(size) for axis, size in zip(("data", "fsdp", "tensor"), shape, strict=True)}
        config = read_config(ROOT / "configs/nano_edit.py", SMALL | EDITS | sizes)
        model_init = ModelInit.open(config, check_config(config))
        objective = open_objective(config, model_init, ROOT / "tests/tiny_tokenizer")
        self.mesh = Sharding.open(config, objective.model_config, devices or jax.devices()[: math.prod(shape)])
        self.abstract_state = abstract_state(config, objective.model_config, self.mesh)
        self.train_step = make_train_step(config, objective, self.mesh, self.abstract_state)
        frozen, _ = abstract_frozen(objective, self.mesh)
        parts, reader = open_mixture("synthetic", {"edit": 1.0}, split="train", side=32), objective.reader
        plan = make_plan(parts, reader, objective.processor.tokenizer, batch_size=8, seed=0)
        self.loader = Loader(parts, plan, reader, self.mesh.local_batch_indices(8))
        if not known:
            known |= random_parameters(frozen)
        self.frozen = {path: make_global_array(known[path], leaf.sharding) for path, leaf in frozen.items()}
        like = self.abstract_state.params
        params = {path: make_global_array(known[path], leaf.sharding) for path, leaf in like.items() if path in known}
        self.first = init_state(config, params or model_init.init_params(0, like), self.abstract_state)
        self.shape = shape

    def steps(self, state: State, done: int, last: int) -> tuple[State, list[str]]:
        """The steps up to `last`: the state after them, and the losses, exactly."""
        found = []
        for loaded in itertools.islice(batches(self.loader, start=done, workers=0), last - done):
            batch = self.mesh.shard(loaded.batch, self.mesh.from_local_rows(self.loader.batch_indices, 8))
            state, metrics = self.train_step(state, self.frozen, batch)
            found.append(float(metrics["loss"]).hex())
        kernel = "sana.blocks.attn.qkv.kernel"  # (2, 64, 192)
        for tensor in (state.params[kernel], state.ema[kernel], state.opt[1][0].mu[kernel]):
            assert tensor.addressable_shards[0].data.shape == (2, 64 // self.shape[1], 192 // self.shape[2])
        assert self.frozen["autoencoder.encoder.conv_in.kernel"].addressable_shards[0].data.shape[-1] == 16 // self.shape[1]
        return state, found


def curves(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Ten steps on each mesh, and two runs that change the mesh after the fifth, where a state is saved and restored."""
    known: dict[str, np.ndarray] = {}
    runs = {name: Run(shape, known) for name, shape in MESHES.items()}
    half: dict[str, list[str]] = {}
    for name, run in runs.items():
        state, half[name] = run.steps(run.first, 0, 5)
        with training_states(folder / name, keep=1, keep_every=0) as saved:
            saved.save(5, state, {})
        yield name, half[name] + run.steps(state, 5, 10)[1]
    for before, after in (("one", "all axes"), ("all axes", "one")):
        with training_states(folder / before, keep=1, keep_every=0) as saved:
            restored = saved.restore(runs[after].abstract_state)
        assert restored is not None
        yield f"{before}, then {after}", half[before] + runs[after].steps(restored.state, 5, 10)[1]


def test_loss_curve_is_equal_on_every_mesh(tmp_path):
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.test_sharding", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=with_devices(8),
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = {name: [float.fromhex(loss) for loss in losses] for name, losses in json.loads(run.stdout).items()}
    assert len(found) == len(MESHES) + 2
    assert all(len(curve) == 10 for curve in found.values())
    assert len(set(found["one"])) == 10
    for name, curve in found.items():
        np.testing.assert_allclose(curve, found["one"], rtol=1e-5, err_msg=name)


if __name__ == "__main__":
    print(json.dumps(dict(curves(Path(sys.argv[1])))))
