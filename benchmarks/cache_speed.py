"""Training steps of the edit painter a second on one device: online, where the frozen parts run in every step, and from a cache.

    python benchmarks/cache_speed.py [--size full|nano] [--side 1024] [--batch 4] [--remat products] [--only cached] [--storage bfloat16]

Weights are random, drawn on the device, and inputs are random: speed does not depend on their values. Parameters are float32,
computation and frozen parts are bfloat16 (float32 on a CPU); AdamW, clip and averages are as in `dim train`. A step begins with its
batch in the host's memory, as a loader leaves it: pictures in 8 bits and patches, or hidden states and latents. A time is the median of
`--repeats` after two more. Reading records is not in it; a loader does that beside the step. Both numbers of a line come from one process.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dim_jax.data.batches import CachedBatch, PaintBatch
from dim_jax.data.cache import bytes_of, store
from dim_jax.data.inputs import EncoderInputs, encoder_inputs
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.dim import DimConfig
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana import KEPT
from dim_jax.models.sana_config import SanaConfig
from dim_jax.training import optim
from dim_jax.training.losses import Features, cached_features, encode_batch, painter_loss
from dim_jax.training.objectives import abstract_model
from dim_jax.weights.model_config import ModelConfig

GIB = 2**30
BEFORE_USER = 14  # tokens
LENGTHS = (80, 320, 512, 768, 1024, 1600, 1792, 2048, 2560, 4096)
OPTIONS: dict[str, Any] = {"shift": 3.0, "draw": "logit_normal", "condition_dropout": 0.1}


def turns(config: DimConfig, side: int, batch: int, text_tokens: int) -> EncoderInputs:
    """Chat turns with one square picture each, random in all but their shape, padded to a bucket."""
    layout, rng = config.encoder.vision.layout, np.random.default_rng(0)
    units = max(1, round(side / layout.patch_size / layout.merge_size))
    tokens = BEFORE_USER + units**2 + 2 + text_tokens + 2
    length = next(length for length in LENGTHS if length >= tokens)
    ids = rng.integers(0, min(config.encoder.text.vocab_size, config.encoder.image_token_id) - 10, (batch, length))
    ids[:, BEFORE_USER + 1 : BEFORE_USER + 1 + units**2] = config.encoder.image_token_id
    mask, user = np.zeros((2, batch, length), bool)
    mask[:, :tokens] = user[:, BEFORE_USER : tokens - 2] = True
    grid = units * layout.merge_size
    patches = rng.normal(size=(batch, grid**2, 3 * layout.temporal_patch_size * layout.patch_size**2)).astype(np.float32)
    return encoder_inputs(
        ids, mask, user, list(patches), [(grid, grid)] * batch, image_token_id=config.encoder.image_token_id, layout=layout
    )  # fmt: skip


def drawn(shapes: dict[str, Any], dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Random parameters, drawn on the device; one program for each shape."""
    draw = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    return {path: draw(jax.random.key(number), leaf.shape) for number, (path, leaf) in enumerate(shapes.items())}


def measure(run: Any, state: Any, repeats: int) -> tuple[float, Any, float]:
    """Median seconds of `run(state, number)`, which takes the state over; the last state and loss."""
    times, value = [], jnp.nan
    for number in range(repeats + 2):
        start = time.perf_counter()
        state, value = run(state, number)
        jax.block_until_ready(value)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]), state, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=("full", "nano"), default="full")
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--remat", choices=KEPT, default="products", help="as config.model.remat")
    parser.add_argument("--only", choices=("cached", "online"), help="one of the two ways")
    parser.add_argument("--storage", choices=("float32", "bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--text-tokens", type=int, default=330, help="of the blueprint")
    args = parser.parse_args()

    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    config = DimConfig.dim_4_6b(edit=True)
    if args.size == "nano":
        config = DimConfig(QwenConfig.nano(), SanaConfig.nano(edit=True), DCAEConfig.nano())
    model_config = ModelConfig(config.encoder, config.sana, config.autoencoder)
    dim: Any = abstract_model(model_config, model_config.parts, dtype)
    trainable: Any = abstract_model(model_config, ("connector", "sana"), dtype)

    # The batch of each way, in the host's memory.
    inputs = turns(config, args.side, args.batch, args.text_tokens)
    rng, tokens = np.random.default_rng(1), int(inputs.user_turn[0].sum())
    length, cells = min(inputs.input_ids.shape[1], config.sana.condition_length), args.side // config.autoencoder.factor
    pictures = rng.integers(0, 256, (2, args.batch, args.side, args.side, 3), dtype=np.uint8)
    latents = rng.normal(size=(2, args.batch, cells, cells, config.autoencoder.latent_channels)).astype(np.float32)
    hidden = np.zeros((args.batch, length, config.encoder.text.hidden_size), np.float32)
    hidden[:, :tokens] = rng.normal(size=(args.batch, tokens, hidden.shape[2]))
    stored = [store(one, args.storage) for one in hidden]
    scale = None if stored[0].scale is None else np.stack([one.scale for one in stored if one.scale is not None])
    mask = np.arange(length) < np.full((args.batch, 1), tokens)
    cached = CachedBatch(np.stack([one.hidden for one in stored]), scale, mask, *latents)
    sample = bytes_of(tokens, hidden.shape[2], args.storage) + latents[:, 0].nbytes

    def online(model: Any, batch: PaintBatch) -> Features:
        return encode_batch(model.encoder, model.autoencoder, batch, condition_length=config.sana.condition_length)

    optimizer = optim.adamw(2e-5, weight_decay=0.01, clip_global_norm=1.0)

    def stepping(abstract: Any, features: Any, frozen: dict[str, Any], batch: Any) -> Any:
        def step(state: Any, frozen: dict[str, Any], batch: Any, key: Any) -> Any:
            def loss(params: dict[str, Any]) -> Any:
                model = with_parameters(abstract, params | frozen)
                return painter_loss(model.connector, model.sana, features(model, batch), key, remat=args.remat, **OPTIONS)[0]

            params, average, opt = state
            value, grads = jax.value_and_grad(loss)(params)
            change, opt = optimizer.update(grads, opt, params)
            params: Any = optax.apply_updates(params, change)
            return (params, optax.incremental_update(params, average, 1e-4), opt), value

        run = jax.jit(step, donate_argnums=0)
        return lambda state, number: run(state, frozen, jax.device_put(batch), jax.random.key(number))

    params = drawn(parameters(trainable))
    state = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    frozen = {path: leaf for path, leaf in parameters(dim).items() if path not in params}
    for name, abstract, features, batch, still in (
        ("cached", trainable, lambda model, batch: cached_features(batch), cached, {}),
        ("online", dim, online, PaintBatch(inputs, *pictures), frozen),
    ):
        if args.only not in (None, name):
            continue
        seconds, state, value = measure(stepping(abstract, features, drawn(still, dtype), batch), state, args.repeats)
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        numbers = {"samples_per_s": round(args.batch / seconds, 3), "step_ms": round(1000 * seconds, 1), "loss": round(value, 3)}
        numbers |= {"peak_gib": round(peak / GIB, 2)} | ({"mb_a_sample": round(sample / 1e6, 3)} if not still else {})
        print(json.dumps({"way": name, "device": jax.devices()[0].device_kind, **vars(args), "tokens": tokens, **numbers}), flush=True)


if __name__ == "__main__":
    main()
