"""Compiles the training step of a config for a TPU slice without one: its memory, FLOPs, memory traffic and communication.

    dim compile configs/nano_edit.py --topology v5e:4x4 --set sharding.fsdp=16

Nothing is loaded and no array is created. Sizes are the presets in `config.model`. The batch has the shapes of synthetic examples (edits
if the config has edits) in the longest bucket of tokens, which takes the most memory.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from rich.console import Console

from dim_jax.aot import hlo
from dim_jax.aot.inference import painting_programs
from dim_jax.aot.roofline import Roofline
from dim_jax.aot.topology import Topology
from dim_jax.config import Config
from dim_jax.data.batches import CachedBatch, PaintBatch
from dim_jax.data.readers import buckets
from dim_jax.data.synthetic import SYNTHETIC, Synthetic
from dim_jax.errors import InputError, check, first_line
from dim_jax.models.chips import Chip
from dim_jax.models.flops import StepFlops
from dim_jax.processing.tokenizer import train_tokenizer
from dim_jax.sharding import Sharding
from dim_jax.storage.disk import GIB
from dim_jax.train import make_train_step
from dim_jax.training.config_guard import check_config
from dim_jax.training.losses import Features
from dim_jax.training.model_init import ModelInit
from dim_jax.training.objectives import Objective, make_objective, open_objective
from dim_jax.training.remat import remat_choices
from dim_jax.training.state import abstract_frozen, abstract_state
from dim_jax.training.step_flops import step_flops

PrintLine = Callable[[str], Any]
DOES_NOT_FIT = (
    "The step needs more memory than a device has. Shard more (config.sharding), make the batch, the resolution or the longest of "
    "data.lengths smaller, or set model.remat."
)


def main(config: Config, topology: Topology, console: Console, *, hlo_file: Path | None = None, inference: bool = False) -> None:
    """Compile, and print parameters, the bytes on each device, what a step computes and sends, and the time that it takes at least.
    `hlo_file` gets the compiled program's text. `inference`: the programs of painting instead, one after another (`aot.inference`).

    Raises:
        InputError: libtpu is missing or does not know the topology; the config does not hold together, does not divide over the mesh
            or learns from rewards; or a program takes more memory than a device has.
    """
    print_line = partial(console.out, highlight=False)
    config = deepcopy(config)
    config.data.source = SYNTHETIC
    config.data.lengths = (max(config.data.lengths),)
    devices = _devices(topology)
    chip = topology.chip
    model_init = ModelInit.open(config, check_config(config))
    sharding = Sharding.open(config, model_init.model_config, devices)
    mesh = " x ".join(f"{axis} {size}" for axis, size in sharding.mesh.shape.items())
    print_line(f"{topology.name}: {len(devices)} devices of {chip.memory / GIB:.0f} GiB as {mesh}")
    objective, batch = abstract_batch(config, model_init, sharding)
    tokens = f", {config.data.lengths[0]} tokens" if objective.processor else ""
    pixels = config.data.resolution
    batch_line = f"batch: {config.data.batch_size} rows of {pixels} x {pixels} pixels{tokens}"
    if inference:
        print_line(batch_line)
        for name, lower, flops in painting_programs(objective, sharding, batch):
            print_line(f"\n{name}")
            _compile(lower, flops, chip, hlo_file and hlo_file.with_stem(f"{hlo_file.stem}_{name.replace(' ', '_')}"), print_line)
        return
    check(objective.paint is None, 'config.reward.method: only steps that learn from data are compiled. Set it to "none".')
    state, (frozen, _) = abstract_state(config, objective.model_config, sharding), abstract_frozen(objective, sharding)
    num_trainable, num_frozen = (sum(math.prod(leaf.shape) for leaf in params.values()) for params in (state.params, frozen))
    print_line(f"{config.objective}: {num_trainable:,} parameters learn, {num_frozen:,} are frozen")
    print_line(batch_line)
    for remat in (choices := remat_choices(config.model.remat)):
        config.model.remat = remat  # which the objective's loss reads
        step = make_train_step(config, objective, sharding, state)
        try:
            flops = step_flops(config, objective.model_config, batch)
            _compile(partial(step.lower, state, frozen, batch), flops, chip, hlo_file, print_line)
            return
        except InputError as error:
            if remat == choices[-1]:
                raise
            print_line(f'{error}\n\nmodel.remat "{remat}" does not fit; the next choice:')


def _compile(lower: Callable[[], Any], flops: StepFlops, chip: Chip, hlo_file: Path | None, print_line: PrintLine) -> None:
    since = time.perf_counter()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"{DOES_NOT_FIT} ({first_line(error)})") from error
    seconds = time.perf_counter() - since
    text = compiled.as_text()
    if hlo_file is not None:
        hlo_file.write_text(text)
    peak = _print_memory(compiled.memory_analysis(), chip, print_line)
    _print_time(flops, hlo.Program.parse(text), chip, print_line)
    print_line(f"compiled in {seconds:.0f} s")
    if peak > chip.memory:
        raise InputError(f"{DOES_NOT_FIT} (Its peak is {peak / GIB:.1f} GiB.)")


def _print_memory(memory: Any, chip: Chip, print_line: PrintLine) -> int:
    """Print the bytes on each device by the compiler, and return the peak."""
    rows = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results that replace no argument": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    for name, size in rows.items():
        print_line(f"{name:>33}  {size / GIB:8.3f} GiB  {size / chip.memory:6.1%}")
    return rows["peak"]


def _print_time(flops: StepFlops, program: hlo.Program, chip: Chip, print_line: PrintLine) -> None:
    """Print the FLOPs of a step by formula, the bytes that its program moves and sends, and the least time that follows."""
    parts = ", ".join(f"{part} {size / 1e12:.5g}" for part, size in flops.parts.items())
    again = f", and {flops.recomputed / 1e12:.5g} recomputed" if flops.recomputed else ""
    print_line(f"TFLOP of a step: {flops.model / 1e12:.5g} ({parts}){again}")
    sent, moved = hlo.bytes_sent(program), hlo.bytes_moved(program)
    kinds = ", ".join(f"{kind} {size / 1e9:.4g}" for kind, size in sorted(sent.items())) or "nothing"
    print_line(f"each device sends, in GB: {kinds}")
    print_line(f"each device moves from and to its memory: at least {moved / 1e9:.4g} GB")
    bound = Roofline.of(chip, flops=flops.hardware / program.devices, moved=moved, sent=sent.total())
    seconds = bound.lower_bound
    print_line(
        f"a step takes at least {seconds:.3g} s, MFU at most {flops.model / (program.devices * chip.flops * seconds):.1%} "
        f"(compute {bound.compute:.3g} s, memory {bound.memory:.3g} s, links {bound.links:.3g} s)"
    )


def _devices(topology: Topology) -> Sequence[Any]:
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices
    except RuntimeError as error:
        raise InputError(
            f"{topology.name}: {first_line(error)}. Compiling for TPUs needs libtpu (pip install 'dim_jax[tpu]') and the "
            "name of an existing slice."
        ) from error


def abstract_batch(config: Config, model_init: ModelInit, sharding: Sharding) -> tuple[Objective, Any]:
    """The objective and its abstract batch: the shapes of a synthetic example, with the batch size of the config."""
    source = Synthetic("edit" if has_edits(config) else "caption", config.data.resolution)
    online = deepcopy(config)
    online.data.cache = ""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = None
        if model_init.model_config.encoder is not None:
            tokenizer = Path(folder) / "tokenizer"
            texts = (text for i in range(100) for text in (*source[i].texts, source[i].blueprint or ""))
            train_tokenizer(texts, model_init.model_config.encoder.text.vocab_size, tokenizer)
        objective = open_objective(online, model_init, tokenizer)
    reader = objective.reader
    batch = reader.collate([reader.make_sample(source[0], np.random.default_rng(0))], buckets(reader)[-1])
    if config.data.cache:
        batch = cached_batch(objective, batch)
        objective = make_objective(config, objective.model_config, objective.processor)

    def many(array: Any, array_sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        rows = len(array_sharding.spec) - 1  # the sharded axis is the last one of the spec
        shape = tuple(size * config.data.batch_size if axis == rows else size for axis, size in enumerate(array.shape))
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=array_sharding)

    return objective, sharding.shard(batch, many)


def cached_batch(objective: Objective, batch: PaintBatch) -> CachedBatch:
    """The abstract batch of a cache that stores hidden states in the dtype of their computation."""
    features: Features = jax.eval_shape(objective.features, objective.model, batch)
    return CachedBatch(features.hidden, None, features.mask, features.target, features.source)


def has_edits(config: Config) -> bool:
    """Whether the mixture of a run ever has edits."""
    return any(weight for kind, weight in config.data.mix.items() if kind.partition(":")[0] == "edit")
