"""Meshes of devices that are not here, as programs for them see them: with the axes of training, all of which the compiler spreads."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from dim_jax.sharding import MESH_AXES

GPU, TPU = AbstractDevice("NVIDIA", 132, "gpu"), AbstractDevice("TPU v5 lite", 1, "tpu")


def on(*sizes: int, device: AbstractDevice | None = None):
    """The context in which a program is for a mesh of these sizes; JAX 0.12 runs nothing in it that is not traced."""
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.sharding.use_abstract_mesh(AbstractMesh(sizes, MESH_AXES, axis_types=types, abstract_device=device))
