"""The training step of a config compiled for a TPU slice that is not here: whether it fits, and how much of the memory it takes.

    dim compile configs/nano_edit.py --topology v5e:4x4 --set sharding.fsdp=16

Nothing is loaded and no array is made: sizes are the presets in `config.model`, the batch has the shapes of synthetic examples (edits
where the config has edits) in the longest bucket of tokens, which takes the most memory.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from rich.console import Console

from dim_jax.config import Config
from dim_jax.data.batches import buckets
from dim_jax.data.synthetic import SYNTHETIC, Synthetic
from dim_jax.data.tokenizer import train_tokenizer
from dim_jax.errors import InputError
from dim_jax.objectives import objective_kind, open_objective
from dim_jax.sharding import Sharding
from dim_jax.start import Start
from dim_jax.step import Step, make_step
from dim_jax.topology import GIB, Topology

DOES_NOT_FIT = (
    "The step does not fit. Cut more (config.sharding), make the batch, the resolution or the longest of data.lengths smaller, "
    "or set model.remat."
)


def main(config: Config, topology: Topology, console: Console) -> None:
    """Compile, and print parameters and the bytes on each device.

    Raises:
        InputError: libtpu is missing or does not know the topology; the config does not hold together or does not divide over the mesh; or
            the step takes more memory than a device has.
    """
    config.data.source = SYNTHETIC
    config.data.lengths = (max(config.data.lengths),)
    devices = _devices(topology)
    start = Start.open(config, objective_kind(config).PARTS)
    sharding = Sharding.open(config, start.sizes, devices)
    mesh = " x ".join(f"{axis} {size}" for axis, size in sharding.mesh.shape.items())
    console.print(f"{topology.name}: {len(devices)} devices of {topology.memory / GIB:.0f} GiB as {mesh}", highlight=False)
    training, batch = _abstract(config, start, sharding)
    learn, still = (sum(leaf.size for leaf in tensors.values()) for tensors in (training.like.params, training.frozen))
    console.print(f"{config.objective}: {learn:,} parameters learn, {still:,} are frozen", highlight=False)
    tokens = f", {config.data.lengths[0]} tokens" if start.sizes.encoder is not None else ""
    pixels = config.data.resolution
    console.print(f"batch: {config.data.batch_size} rows of {pixels} x {pixels} pixels{tokens}", highlight=False)

    since = time.perf_counter()
    try:
        compiled = training.run.lower(training.like, training.frozen, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"{DOES_NOT_FIT} ({str(error).splitlines()[0]})") from error
    memory: Any = compiled.memory_analysis()
    rows = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results that replace no argument": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    for name, size in rows.items():
        console.print(f"{name:>33}  {size / GIB:8.3f} GiB  {size / topology.memory:6.1%}", highlight=False)
    console.print(f"compiled in {time.perf_counter() - since:.0f} s", highlight=False)
    if rows["peak"] > topology.memory:
        raise InputError(f"{DOES_NOT_FIT} (Its peak is {rows['peak'] / GIB:.1f} GiB.)")


def _devices(topology: Topology) -> Sequence[Any]:
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices
    except RuntimeError as error:
        raise InputError(
            f"{topology.name}: {str(error).splitlines()[0]}. Compiling for TPUs needs libtpu (pip install 'dim_jax[tpu]') and a slice that "
            "is sold."
        ) from error


def _abstract(config: Config, start: Start, sharding: Sharding) -> tuple[Step, Any]:
    """The step and its batch: one synthetic example shows the shapes, the batch has as many of it as the config says."""
    source = Synthetic("edit" if config.data.mix.edit else "caption", config.data.resolution)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = None
        if start.sizes.encoder is not None:
            tokenizer = Path(folder) / "tokenizer"
            texts = (text for i in range(100) for text in (*source[i].texts, source[i].blueprint or ""))
            train_tokenizer(texts, start.sizes.encoder.text.vocab_size, tokenizer)
        objective = open_objective(config, start, tokenizer)
    reader = objective.reader
    one = reader.collate([reader.choose(source[0], np.random.default_rng(0))], buckets(reader)[-1])

    def many(array: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
        rows = len(place.spec) - 1  # the axis that is spread comes last in the spec
        shape = tuple(size * config.data.batch_size if axis == rows else size for axis, size in enumerate(array.shape))
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=place)

    return make_step(config, objective, sharding), sharding.spread(one, many)
