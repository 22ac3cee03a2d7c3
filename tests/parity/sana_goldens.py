"""SANA, its loss and its sampler against tensors that the published code computed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from dim_jax.diffusion import flow, sampler
from dim_jax.models import sana as model
from dim_jax.weights import module, table
from dim_jax.weights import sana as weights

Group = tuple[str, np.ndarray, np.ndarray, float, float]


def load(folder: Path, name: str) -> model.Sana:
    """The SANA of `name`.json with `name`.weights.safetensors."""
    config = model.SanaConfig.from_json(folder / f"{name}.json")
    abstract = nnx.eval_shape(lambda: model.Sana(config, rngs=nnx.Rngs(0)))
    published = load_file(folder / f"{name}.weights.safetensors")
    slots = table.slots(weights.ROWS, module.shapes(abstract))
    return module.with_parameters(abstract, table.to_ours(slots, published.__getitem__))


def nhwc(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(x, -3, -1))


def nchw(x: jnp.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, -3)


@jax.jit
def velocity(sana: model.Sana, latents, timestep, condition, mask, source):
    return sana(latents, timestep, sana.encode_condition(condition, mask), source)


def forward(folder: Path, name: str) -> Iterator[Group]:
    """Velocity and the activation of every part."""
    info, data, sana = (
        json.loads((folder / f"{name}.json").read_text()),
        load_file(folder / f"{name}.forward.safetensors"),
        load(folder, name),
    )
    tolerance = info["rtol"], info["atol"]
    for case in (str(case["case"]) for case in info["cases"]):
        latents, timestep = nhwc(data[f"{case}.latents"]), jnp.floor(data[f"{case}.timestep"])
        condition, mask = jnp.asarray(data[f"{case}.condition"]), jnp.asarray(data[f"{case}.condition_mask"] > 0)
        source = nhwc(data[f"{case}.source_latents"]) if sana.config.is_edit else None
        yield f"{case}.velocity", nchw(velocity(sana, latents, timestep, condition, mask, source)), data[f"{case}.velocity"], *tolerance
        seen = activations(sana, lambda: velocity(sana, latents, timestep, condition, mask, source))
        prefix = f"{case}.activation."
        for key in sorted(key for key in data if key.startswith(prefix)):
            golden = data[key]
            yield key, seen[key.removeprefix(prefix)].reshape(golden.shape), golden, *tolerance


def activations(sana: model.Sana, run: Callable[[], jnp.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the parts while `run` runs without compilation, by published name."""
    seen: dict[str, list[np.ndarray]] = {}
    parts = {
        "x_embedder": model.PatchEmbed, "t_embedder": model.TimestepEmbedder, "y_embedder": model.ConditionEmbedder, "block": model.Block,
        "attn": model.LinearAttention, "cross_attn": model.CrossAttention, "mlp": model.GatedConvMLP, "t_block": nnx.Linear,
        "attention_y_norm": nnx.RMSNorm,
    }  # fmt: skip
    originals = {part: part.__call__ for part in parts.values()}

    def recorder(name, part):
        def call(self, *args, **kwargs):
            y = originals[part](self, *args, **kwargs)
            if part not in (nnx.Linear, nnx.RMSNorm) or any(self is x for x in (sana.t_block, sana.attention_y_norm)):
                seen.setdefault(name, []).append(np.asarray(y))
            return y

        return call

    for name, part in parts.items():
        part.__call__ = recorder(name, part)
    try:
        with jax.disable_jit():
            run()
    finally:
        for part, original in originals.items():
            part.__call__ = original
    blocks = {
        f"blocks.{i}{suffix}": y
        for name, suffix in (("block", ""), ("attn", ".attn"), ("cross_attn", ".cross_attn"), ("mlp", ".mlp"))
        for i, y in enumerate(seen.pop(name))
    }
    return {name: ys[0] for name, ys in seen.items()} | blocks


def loss(folder: Path, name: str) -> Iterator[Group]:
    """Sigma, timestep, noisy latents and the loss of every sample."""
    info, data, sana = json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.loss.safetensors"), load(folder, name)
    tolerance = info["rtol"], info["atol"]
    clean, noise = nhwc(data["clean"]), nhwc(data["noise"])
    sigma, timestep = flow.training_times(jnp.asarray((data["t_index"] + 0.5) / flow.NUM_TIMESTEPS), 3.0)
    yield "loss.sigma", np.asarray(sigma), data["sigma"], *tolerance
    yield "loss.model_timestep", np.asarray(timestep), data["model_timestep"], 0, 0
    noisy = flow.interpolate(clean, noise, sigma)
    yield "loss.noisy", nchw(noisy), data["noisy"], *tolerance
    source = nhwc(data["source_latents"]) if sana.config.is_edit else None
    v = velocity(sana, noisy, timestep, jnp.asarray(data["condition"]), jnp.asarray(data["condition_mask"] > 0), source)
    yield "loss.loss_per_sample", np.asarray(flow.loss(v, clean, noise)), data["loss_per_sample"], *tolerance


def trajectory(folder: Path, name: str) -> Iterator[Group]:
    """The latents that the model sees at every step of DPM-Solver++ 2M, and the result.

    Latents are held against the largest one, not each against itself: at the first step the published sampler divides a float32
    rounding of the noisy latents by 1 - sigma = 3e-4 and multiplies it by the guidance, so a velocity that differs in its last bit
    moves single latents by 2e-4, however near to zero they are.
    """
    info, data, sana = (
        json.loads((folder / f"{name}.json").read_text()),
        load_file(folder / f"{name}.sampler.safetensors"),
        load(folder, name),
    )
    tolerance = info["rtol"], info["atol"]
    largest = lambda golden: (0, info["atol"] + info["rtol"] * np.abs(golden).max())  # noqa: E731
    mask = jnp.asarray(data["condition_mask"] > 0)
    source = nhwc(data["source_latents"]) if sana.config.is_edit else None
    for run in sorted(key.removesuffix(".final") for key in data if key.endswith(".final")):
        num_steps = len(data[f"{run}.model_timesteps"])
        seen: list[np.ndarray] = []
        record = lambda _, x, seen=seen: seen.append(np.asarray(x))  # noqa: E731
        final = sampled(sana, nhwc(data["noise"]), jnp.asarray(data["condition"]), mask, source, num_steps, 7.5, 3.0, record)
        jax.effects_barrier()
        yield f"sampler.{run}.model_timesteps", sampler.sigmas(num_steps, 3.0)[:-1] * 1000, data[f"{run}.model_timesteps"], *tolerance
        for key, ours in (("model_inputs", np.concatenate(seen)), ("final", final)):
            golden = data[f"{run}.{key}"]
            yield f"sampler.{run}.{key}", nchw(ours), golden, *largest(golden)


def sampled(sana, noise, condition, mask, source, num_steps, guidance_scale, flow_shift, callback=None):
    """Latents by DPM-Solver++ 2M, guided by the learned null condition."""
    encoded = sana.null_condition(mask) + sana.encode_condition(condition, mask)
    doubled = None if source is None else jnp.concatenate([source, source])

    def velocity(x, sigma):
        return sana(x, jnp.full(len(x), flow.model_timestep(sigma)), encoded, doubled)

    return sampler.sample(velocity, noise, num_steps=num_steps, guidance_scale=guidance_scale, flow_shift=flow_shift, callback=callback)


def groups(folder: Path) -> Iterator[Group]:
    """Every tensor group of sana_t2i.* and sana_edit.*."""
    for name in ("sana_t2i", "sana_edit"):
        for part in (forward, loss, trajectory):
            for key, *rest in part(folder, name):
                yield f"{name}.{key}", *rest
