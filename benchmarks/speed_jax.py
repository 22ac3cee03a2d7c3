"""Our side of `speed.py`."""

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding
from qwix import QArray

from benchmarks import speed_cases as cases
from benchmarks.speed_cases import GIB, measure, report
from dim_jax.config import Config, read_config
from dim_jax.data.batches import CachedBatch, PaintBatch
from dim_jax.data.cache import quantize
from dim_jax.models.dim import Dim, DimConfig
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.quantized import Quantize, abstract_like, quantize_on_host, with_quantized
from dim_jax.processes import make_global_array
from dim_jax.programs import compiled
from dim_jax.sampling import LENGTHS
from dim_jax.sharding import Sharding
from dim_jax.train import make_train_step
from dim_jax.training.objectives import dim_config, make_objective
from dim_jax.training.state import abstract_frozen, abstract_state, init_state
from dim_jax.weights.model_config import ModelConfig

PARTS_OF_TRAINING = ("cached", "online")
POOL = 2**20 - 3  # random numbers that all parameters are made of: not a power of two, or the rows of a matrix would be the same


def main(args: Namespace) -> None:
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    edit(args, dtype) if args.work == "edit" else train(args, dtype)


def edit(args: Namespace, dtype: Any) -> None:
    """An edit part by part, each a compiled program, and all of them one after the other."""
    config = cases.dim_config(args.size)
    if args.distilled == "guidance":
        config = replace(config, sana=replace(config.sana, guidance_embeds=True))
    dim: Any = random_dim(config, dtype)
    turns = cases.turns(config, args.side, args.batch, args.text_tokens)
    inputs = jax.tree.map(jnp.asarray, cases.pad_turns(config, turns))
    length = min(length for length in (*LENGTHS, config.sana.condition_length) if length >= turns.user[0].sum())
    pixels = jax.random.uniform(jax.random.key(1), (args.batch, args.side, args.side, 3), minval=-1)
    seeds, cells = jnp.arange(args.batch), args.side // config.autoencoder.factor

    def keys(sana: Any, condition: Any, mask: Any) -> Any:
        return sana.encode_condition(condition, mask), None if args.distilled else sana.null_condition(mask)

    def sample(dim: Any, keys: Any, source: Any) -> Any:
        solver = "euler" if args.distilled == "steps" else "dpm++2m"
        options = {"guidance_scale": cases.GUIDANCE, "num_steps": args.steps, "solver": solver, "float8": args.float8}
        return dim.paint(keys[0], seeds, (cells, cells), source, unconditional=keys[1], **options)

    autoencoder = type(dim.autoencoder)
    # Of each part the model, and a function of it.
    functions: dict[str, Any] = {
        "encoder": (dim, lambda dim, x: dim.condition(x, length)),
        "condition keys": (dim.sana, keys),
        "source latents": (dim.autoencoder, autoencoder.encode),
        "sampler": (dim, sample),
        "picture": (dim.autoencoder, autoencoder.decode),
    }
    programs: dict[str, Any] = {}

    def whole(run: Callable[..., Any]) -> Any:
        condition = run("condition keys", *run("encoder", inputs))
        source = run("source latents", pixels)
        return run("picture", run("sampler", condition, source))

    def compile_and_measure(part: str, *arguments: Any) -> Any:
        model, function = functions[part]
        leaves, structure = jax.tree.flatten(model)  # once, as `Sampler` does
        start = time.perf_counter()
        program = compiled(function, structure, None, ()).lower(leaves, *arguments).compile()
        compile_s = time.perf_counter() - start
        programs[part] = partial(program, leaves)
        times, result = measure(lambda: programs[part](*arguments), jax.block_until_ready, args.repeats)
        report(args, "dim_jax", part, times, compile_s=round(compile_s, 1))
        return result

    if not bool(jnp.isfinite(whole(compile_and_measure)).all()):
        raise SystemExit("The picture has values that are not finite: the times would mean nothing.")
    times, _ = measure(lambda: whole(lambda part, *arguments: programs[part](*arguments)), jax.block_until_ready, args.repeats)
    report(args, "dim_jax", "whole edit", times, tokens=turns.ids.shape[1], condition=length, steps=args.steps, **machine())


def train(args: Namespace, dtype: Any) -> None:
    """The step of `dim train` (stage II): from cached states, and online, where the frozen parts run in every step.

    It begins with its batch in the host's memory, as a loader leaves it.
    """
    changes = {"model__float8": str(args.float8), "optim__accumulate": str(args.accumulate), "optim__mu_dtype": args.mu_dtype}
    model_config, config = stage_two(args, model__dtype=jnp.dtype(dtype).name, **changes)
    sharding = Sharding.open(config, model_config, jax.devices()[:1])
    for part in PARTS_OF_TRAINING:
        if args.part in (None, part):
            once, tokens = training(args, part, config, model_config, sharding, dtype)
            times, loss = measure(once, jax.block_until_ready, args.repeats, in_a_row=cases.IN_A_ROW)
            if not np.isfinite(loss):
                raise SystemExit("The loss is not finite: the times would mean nothing.")
            report(args, "dim_jax", part, times, remat=args.remat, tokens=tokens, **changes, **machine())


def stage_two(args: Namespace, **changes: str) -> tuple[ModelConfig, Config]:
    """The sizes, and stage II of training with `changes`, whose keys have two underlines for a dot."""
    dim = cases.dim_config(args.size)
    config = read_config(
        Path("edit_stage2"),
        {"data.source": "synthetic", "model.remat": args.remat} | {key.replace("__", "."): value for key, value in changes.items()},
    )
    config.optim.update(
        learning_rate=cases.LEARNING_RATE, weight_decay=cases.WEIGHT_DECAY, clip_global_norm=cases.CLIP, ema_decay=cases.EMA
    )
    return ModelConfig(dim.encoder, dim.sana, dim.autoencoder), config


def training(
    args: Namespace, part: str, config: Config, model_config: ModelConfig, sharding: Sharding, dtype: Any
) -> tuple[Callable[[], Any], int]:
    """A function that takes one step, always on the same `args.batch` random rows, and returns the loss; and their tokens."""
    dim = dim_config(model_config)
    turns, rng = cases.turns(dim, args.side, args.batch, args.text_tokens), np.random.default_rng(1)
    inputs, tokens = cases.pad_turns(dim, turns), int(turns.user[0].sum())
    length, cells = min(inputs.input_ids.shape[1], dim.sana.condition_length), args.side // dim.autoencoder.factor
    pictures = rng.integers(0, 256, (2, args.batch, args.side, args.side, 3), dtype=np.uint8)
    latents = rng.normal(size=(2, args.batch, cells, cells, dim.autoencoder.latent_channels)).astype(np.float32)
    batch: Any = PaintBatch(inputs, *pictures, condition_length=length)
    if part == "cached":
        hidden = np.zeros((args.batch, length, dim.encoder.text.hidden_size), np.float32)
        hidden[:, :tokens] = rng.normal(size=(args.batch, tokens, hidden.shape[2]))
        states = np.stack([quantize(one, "float32" if dtype == jnp.float32 else "bfloat16").hidden for one in hidden])
        batch = CachedBatch(states, None, np.arange(length) < np.full((args.batch, 1), tokens), *latents)
    config.data.cache = "cache" if part == "cached" else ""  # only says that there is one
    objective = make_objective(config, model_config, None)
    abstract, (frozen_like, _) = abstract_state(config, model_config, sharding), abstract_frozen(objective, sharding)
    step, frozen = make_train_step(config, objective, sharding, abstract), random_params(frozen_like)
    current = [init_state(config, random_params(abstract.params), abstract)]

    def once() -> Any:
        state, metrics = step(current.pop(), frozen, sharding.shard(batch, make_global_array))
        current.append(state)
        return metrics["loss"]

    return once, tokens


def random_params(abstract: dict[str, Any], *, on_host: bool = False) -> dict[str, Any]:
    """Random parameters with the shapes, dtypes and shardings of `abstract`, from one pool: drawing each would compile its own program.
    `on_host`: in the host's memory."""
    pool = (0.02 * np.random.default_rng(0).standard_normal(POOL)).astype(np.float32)
    here = SingleDeviceSharding(jax.local_devices()[0])

    def put(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> Any:
        return array if on_host else make_global_array(array, leaf.sharding or here)

    params = {}
    for path, leaf in abstract.items():
        array = np.resize(pool.astype(leaf.dtype), leaf.shape)
        if isinstance(leaf, QArray):
            params[path] = jax.tree.map(put, quantize_on_host(array, leaf), leaf)
        else:
            params[path] = put(array, leaf)
    return params


def random_dim(
    config: DimConfig,
    dtype: Any,
    place: Callable[[str], Any] = lambda path: None,
    *,
    quantize: Quantize | None = None,
    on_host: bool = False,
) -> Dim:
    """A model of these sizes with random parameters of `dtype`, each where `place(its path)` says; None: on the first device. `quantize`
    and `on_host` as in `load_module`."""
    module = with_quantized(nnx.eval_shape(lambda: Dim(config, dtype=dtype, rngs=nnx.Rngs(0))), quantize)
    return with_parameters(module, random_params(abstract_like(parameters(module), dtype, place), on_host=on_host))


def machine() -> dict[str, Any]:
    """The most memory that a device of this process held, and what it is."""
    devices = jax.local_devices()
    peak = max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices)
    return {"peak_gib": round(peak / GIB, 2), "device": devices[0].device_kind, "version": f"jax {jax.__version__}"}
