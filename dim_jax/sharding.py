"""Which device holds what: the logical axes of a parameter (`weights/logical_axes.py`), by the rules of a config, on the axes of a mesh.

The mesh has four axes. `slices` and `data` copy the parameters, `fsdp` cuts them and gathers a layer when it is computed, `tensor` cuts
what a layer computes; the rows of a batch are spread over the first three together. `slices` are the parts of a machine between which the
network is slow (DCN): only gradients cross it. The optimizer's moments and the averaged parameters lie as their parameter does.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey
from jax.typing import DTypeLike
from jaxtyping import Int

from dim_jax.errors import InputError, check
from dim_jax.models.layers import BATCH_AXES
from dim_jax.models.sana import SIDE_BY_SIDE
from dim_jax.processes import make_global_array
from dim_jax.processing.inputs import BATCH_AXIS, EncoderInputs
from dim_jax.weights.logical_axes import RULES, check_rules, logical_axes
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.table import Shape

Config = Any  # a ConfigDict; dim_jax.config would bring ml_collections, which who only paints need not have

MESH_AXES = (*BATCH_AXES, "tensor")
Gather = Literal["layer", "step"]
TPU_OPTIONS = {
    # The compiler would multiply by each part of a gathered parameter as it comes, and add to the result in memory each time: 16 devices
    # then move three times as much. MiB of parameters from which on it does.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # It would cut few pictures into strips as a larger batch, and copy their borders at every convolution: DC-AE then moves twice as much.
    "xla_tpu_run_space_to_batch": "false",
    "xla_tpu_run_space_to_batch_on_new_platforms": "false",
}
# Arrays of a batch whose rows are not on their first axis, and where they are.
BATCH_AXIS_BY_FIELD = {array.name: array.metadata[BATCH_AXIS] for array in fields(EncoderInputs) if BATCH_AXIS in array.metadata}


@dataclass(frozen=True)
class Sharding:
    """A mesh, and the mesh axis that cuts each logical axis ("": none)."""

    mesh: Mesh
    rules: Mapping[str, str]

    @classmethod
    def open(cls, config: Config, sizes: ModelConfig, devices: Sequence[Any] | None = None) -> "Sharding":
        """What `config.sharding` makes of `devices` (default: all there are), once it is known to fit (`validate_mesh`).

        The axes are of type Auto: the step is written for one device, and the compiler derives from the shardings of parameters and
        batch how everything else lies and where to communicate. (Explicit axes would put shardings into the types of every reshape and
        gather of the networks.)
        """
        devices = jax.devices() if devices is None else list(devices)
        shape = validate_mesh(config, sizes, len(devices))
        return cls(_auto_mesh(_arrange_devices(devices, *shape.values())), config.sharding.rules.to_dict())

    @classmethod
    def for_painting(cls, mesh: Mesh | Mapping[str, int], sizes: ModelConfig) -> "Sharding":
        """A model that paints on a mesh of JAX's, or on as many devices of this process as these sizes of mesh axes make: {"data": 4}.

        Axes that are not named have size 1; one size may be -1, which is all devices that the others leave.

        Raises:
            InputError: an axis is unknown, there are not so many devices, or a parameter does not divide. Says what to do.
        """
        if unknown := sorted(set(mesh.axis_names if isinstance(mesh, Mesh) else mesh) - set(MESH_AXES)):
            raise InputError(f"A mesh has no axis {', '.join(unknown)}. Axes are {', '.join(MESH_AXES[1:])}.")
        if isinstance(mesh, Mesh):
            order = [mesh.axis_names.index(axis) for axis in MESH_AXES if axis in mesh.axis_names]
            devices = mesh.devices.transpose(order).reshape([mesh.shape.get(axis, 1) for axis in MESH_AXES])
        else:
            here = jax.local_devices()
            mesh_text = ", ".join(f"{axis}={size}" for axis, size in mesh.items())
            shape = _resolve_axis_sizes({axis: mesh.get(axis, 1) for axis in MESH_AXES}, len(here), mesh_text)
            count = math.prod(shape.values())
            check(count <= len(here), f"{mesh_text} takes {count} devices, but this process has {len(here)}. Ask for fewer.")
            devices = _arrange_devices(here[:count], *shape.values())
        sharding = cls(_auto_mesh(devices), RULES)
        _check_divides(sizes, RULES, sharding.mesh.shape, lambda axis, fitting, logical: f"Take {axis}={fitting}, or a divisor of it.")
        return sharding

    @property
    def num_batch_shards(self) -> int:
        """Over how many devices the rows of a batch are spread."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """For `jax.jit` of programs on this mesh."""
        return dict(TPU_OPTIONS) if self.mesh.devices.flat[0].platform == "tpu" else None

    @property
    def replicated(self) -> NamedSharding:
        """All of it on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def param_sharding(self, path: str) -> NamedSharding:
        """Where a parameter lies."""
        return NamedSharding(self.mesh, PartitionSpec(*(self.rules[logical] or None for logical in logical_axes(path))))

    def gather(self, params: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
        """Parameters in the dtype of computation, whole on every device but for `tensor`; their gradients lie as the parameters do, whose
        sums over devices need not be whole anywhere (ZeRO-2: Rajbhandari et al., arXiv 1910.02054). What no axis cuts stays as it is."""
        return {path: self._gather(*self._group_columns(path, param, dtype), dtype) for path, param in params.items()}

    def _group_columns(self, path: str, param: Any, dtype: DTypeLike) -> tuple[Any, NamedSharding]:
        """A parameter and where it lies. Columns that are several results beside each other and that `tensor` cuts become (groups, columns
        of each): a device's group has its part of each result, so splitting them sends nothing."""
        own, (layer, _, name) = self.param_sharding(path), path.rpartition(".")
        parts = SIDE_BY_SIDE.get(layer.removeprefix("sana.blocks."), 1) if name in ("kernel", "bias") else 1
        axis = self.param_sharding(f"{layer}.kernel").spec[-1] if parts > 1 else None
        if axis in (None, *BATCH_AXES) or (groups := self.mesh.shape[axis]) == 1:
            return param, own
        *rows, columns = param.shape
        param = param.astype(dtype).reshape(*rows, parts, groups, -1).swapaxes(-3, -2).reshape(*rows, groups, columns // groups)
        own = NamedSharding(self.mesh, PartitionSpec(*own.spec[:-1], axis, None))
        return jax.lax.with_sharding_constraint(param, own), own

    def _gather(self, param: Any, own: NamedSharding, dtype: DTypeLike) -> Any:
        whole = PartitionSpec(*(None if axis in BATCH_AXES else axis for axis in own.spec))
        if whole == own.spec:
            return param

        @jax.custom_vjp
        def run(x: Any) -> Any:
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, whole))

        run.defvjp(lambda x: (run(x), None), lambda _, change: (jax.lax.with_sharding_constraint(change, own),))
        return run(param.astype(dtype))

    def state_shardings(self, tree: Any) -> Any:
        """Where every leaf of a training state lies: as the parameter whose path is a key on the way to it, else on every device."""
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: next((self.param_sharding(key.key) for key in keys if isinstance(key, DictKey)), self.replicated), tree
        )

    def local_batch_indices(self, count: int) -> Int[np.ndarray, " local_batch_indices"]:
        """Which of `count` rows of a batch this process must have: those that its own devices get. On a slice, mesh order may be another
        than the order of processes, and devices of a `tensor` axis share their rows."""
        where = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))
        is_local = np.zeros(count, bool)
        for index in where.addressable_devices_indices_map((count,)).values():
            is_local[index] = True
        return np.flatnonzero(is_local)

    def from_local_rows(self, rows: Int[np.ndarray, " local_batch_indices"], count: int) -> Callable[[Any, NamedSharding], jax.Array]:
        """A function for `shard` of arrays of which this process has only `rows` (`local_batch_indices`) of the `count` rows of a batch."""

        def make_array(array: Any, sharding: NamedSharding) -> jax.Array:
            axis = len(sharding.spec) - 1
            per_row = array.shape[axis] // len(rows)  # pictures of a row, where the axis is of pictures
            shape = (*array.shape[:axis], count * per_row, *array.shape[axis + 1 :])

            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[axis].indices(count * per_row)
                first = int(np.searchsorted(rows, start // per_row)) * per_row if per_row else 0
                return array[(*index[:axis], slice(first, first + stop - start))]

            return jax.make_array_from_callback(shape, sharding, part)

        return make_array

    def device_put(self, batch: Any) -> Any:
        """The arrays of a batch that this process has whole, on the devices: rows are spread where they divide, else all have all rows."""

        def make_array(array: Any, sharding: NamedSharding) -> jax.Array:
            sharding = sharding if array.shape[len(sharding.spec) - 1] % self.num_batch_shards == 0 else self.replicated
            return jax.device_put(array, sharding) if isinstance(array, jax.Array) else make_global_array(array, sharding)

        return self.shard(batch, make_array)

    def shard(self, batch: Any, make_array: Callable[[Any, NamedSharding], Any]) -> Any:
        """The batch with `make_array(array, sharding)` for each array; its rows or pictures are spread over slices, data and fsdp."""

        def shard_leaf(keys: Sequence[Any], array: Any) -> Any:
            axis = BATCH_AXIS_BY_FIELD.get(keys[-1].name, 0) if keys else 0
            spec = PartitionSpec(*(None,) * axis, BATCH_AXES)
            return make_array(array, NamedSharding(self.mesh, spec))

        return jax.tree_util.tree_map_with_path(shard_leaf, batch)


def validate_mesh(config: Config, sizes: ModelConfig, devices: int) -> dict[str, int]:
    """Mesh axis -> size for a number of devices, by `config.sharding`; nothing is computed.

    Raises:
        InputError: the mesh has another number of devices; the rules do not name exactly the logical axes; a parameter or the batch does
            not divide over the mesh. Names the parameter, its shape, the axis, the numbers and what to do.
    """
    mesh = _mesh_shape(config, devices)
    rules = config.sharding.rules.to_dict()
    check_rules(rules, MESH_AXES)
    for path, shape in sizes.shapes().items():
        _check_axes(path, shape, rules)

    def remedy(axis: str, fitting: int, logical: str) -> str:
        return f"Set config.sharding.{axis} to {fitting} or a divisor of it, or map '{logical}' elsewhere in config.sharding.rules."

    _check_divides(sizes, rules, mesh, remedy)
    rows, over = config.data.batch_size, [mesh[axis] for axis in BATCH_AXES]
    check(rows >= 1, f"config.data.batch_size is {rows}: it must be at least 1.")
    check(
        rows % math.prod(over) == 0,
        f"config.data.batch_size {rows} does not divide over {' x '.join(f'{axis!r}' for axis in BATCH_AXES)} = "
        f"{' x '.join(map(str, over))}. Make it a multiple of {math.prod(over)}, or set config.sharding so that their product is "
        f"{math.gcd(rows, math.prod(over))} or a divisor of it.",
    )
    return mesh


def _check_divides(sizes: ModelConfig, rules: Mapping[str, str], mesh: Mapping[str, int], remedy: Callable[[str, int, str], str]) -> None:
    """Every parameter divides over the mesh; `remedy(mesh axis, size that fits, logical axis)` says what to do where one does not."""
    shapes = sizes.shapes()
    for mesh_axis, ways in mesh.items():
        cut = list(_sharded_axes(shapes, _heads(sizes), rules, mesh_axis))
        fitting = math.gcd(*(number for *_, number in cut))
        for path, axis, logical, number in cut:
            if number % ways:
                is_size = shapes[path][axis] == number
                raise InputError(
                    f"{path} {shapes[path]}: axis {axis} '{logical}' {f'= {number}' if is_size else f'holds {number} heads and'} does not "
                    f"divide over '{mesh_axis}' = {ways}. {remedy(mesh_axis, fitting, logical)}"
                )


def _auto_mesh(devices: np.ndarray) -> Mesh:
    """The devices, an axis of the array for each mesh axis, as a mesh over which the compiler spreads what is written for one device."""
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange_devices(devices: Sequence[Any], slices: int, *within: int) -> np.ndarray:
    """The devices as a mesh whose first axis goes over slices; within one, neighbours are close (on a TPU, in its torus)."""
    # Several GPU nodes may be taken for one slice.
    is_cpu = devices[0].platform == "cpu"  # which has no slices: each process is taken for one
    actual = len({device.process_index if is_cpu else getattr(device, "slice_index", 0) for device in devices})
    check(
        slices == actual or (slices == 1 and devices[0].platform != "tpu"),
        f"config.sharding.slices is {slices}, but the {len(devices)} devices that are here lie in {actual}. Set it to {actual}; the "
        f"other axes are of the {len(devices) // actual} devices of one slice.",
    )
    shape = (1, *within)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = (slices, *(1 for _ in within))
    return mesh_utils.create_hybrid_device_mesh(shape, across, devices, process_is_granule=is_cpu, allow_split_physical_axes=True)


def _mesh_shape(config: Config, devices: int) -> dict[str, int]:
    sizes = {axis: config.sharding[axis] for axis in MESH_AXES}
    text = "config.sharding: " + " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    shape = _resolve_axis_sizes(sizes, devices, text)
    if math.prod(shape.values()) != devices:
        raise InputError(f"{text} does not make the {devices} devices that are here. Set one of them to -1: all that the others leave.")
    return shape


def _resolve_axis_sizes(sizes: Mapping[str, int], devices: int, text: str) -> dict[str, int]:
    """The sizes of a mesh with all that the others leave (at least 1) for one that is -1; `text` is how they were written."""
    free = [axis for axis, size in sizes.items() if size == -1]
    product = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"{text}: sizes are at least 1, and one of them may be -1, which is all that the others leave.")
    return {axis: max(1, devices // product) if axis in free else size for axis, size in sizes.items()}


def _check_axes(path: str, shape: Shape, rules: Mapping[str, str]) -> None:
    axes = logical_axes(path)
    check(
        len(axes) == len(shape),
        f"{path} {shape}: its row in the table of dim_jax/weights/logical_axes.py names {len(axes)} axes ({', '.join(axes)}), but it has "
        f"{len(shape)}. Correct the row.",
    )
    for mesh_axis in MESH_AXES:
        here = [f"'{logical}'" for logical in axes if rules[logical] == mesh_axis]
        check(
            len(here) <= 1,
            f"{path} {shape}: its axes {' and '.join(here)} both lie on '{mesh_axis}', which can cut only one. Map the other "
            "elsewhere in config.sharding.rules.",
        )


def _sharded_axes(
    shapes: Mapping[str, Shape], heads: Mapping[str, int], rules: Mapping[str, str], mesh_axis: str
) -> Iterator[tuple[str, int, str, int]]:
    """(path, axis, logical axis, number that must divide) of all that lies on a mesh axis; no head is cut."""
    for path, shape in shapes.items():
        for axis, logical in enumerate(logical_axes(path)):
            if rules[logical] == mesh_axis:
                yield path, axis, logical, heads.get(logical, shape[axis])


def _heads(sizes: ModelConfig) -> dict[str, int]:
    """Logical axis -> how many heads it holds."""
    heads = {}
    if sizes.encoder is not None:
        heads |= sizes.encoder.head_counts
    if sizes.sana is not None:
        heads |= {"linear_heads": sizes.sana.width // sizes.sana.linear_head_dim, "cross_heads": sizes.sana.cross_heads}
    return heads
