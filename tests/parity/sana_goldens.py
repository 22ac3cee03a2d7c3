"""SANA, its loss and its sampler against tensors that the published code computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dim_jax.diffusion import flow, sampler
from dim_jax.models import layers, module
from dim_jax.models import sana as model
from dim_jax.weights import sana as weights
from dim_jax.weights import table
from tests.parity.goldens import Goldens, Group, Tensors, as_goldens, nchw, nhwc

# What the published sampler and loss run with; the files of SANA do not carry them.
GUIDANCE_SCALE, FLOW_SHIFT = 7.5, 3.0


@cache
def abstract(config: model.SanaConfig) -> tuple[model.Sana, dict[str, table.TensorMapping]]:
    """The model without memory and where its published tensors go."""
    sana = nnx.eval_shape(lambda: model.Sana(config, rngs=nnx.Rngs(0)))
    return sana, table.tensor_mappings(weights.ROWS, module.shapes(sana))


def load(folder: Goldens | Path, name: str) -> model.Sana:
    """The SANA of `name`.json with `name`.weights.safetensors."""
    goldens = as_goldens(folder)
    goldens.json(f"{name}.json")  # names the file if it is missing
    sana, slots = abstract(model.SanaConfig.from_json(goldens / f"{name}.json"))
    published = goldens.tensors(f"{name}.weights.safetensors")
    published.pass_over("pos_embed")  # a buffer of the published class that its forward never reads
    return module.with_parameters(sana, table.from_hf(slots, published.__getitem__))


@jax.jit
def velocity(sana: model.Sana, latents, timestep, condition, mask, source):
    """One forward pass."""
    return sana(latents, timestep, sana.encode_condition(condition, mask), source)


def source_of(sana: model.Sana, data: Tensors) -> np.ndarray | None:
    """Source latents of an edit model. The published code writes them for text to image as well, whose model never reads them."""
    if not sana.config.is_edit:
        data.pass_over("source_latents")
        return None
    return nhwc(data["source_latents"])


def mask_of(data: Tensors, name: str) -> tuple[np.ndarray, Group]:
    """The condition mask of a case, and that its real tokens come first, for ours reads their number alone."""
    mask = data["condition_mask"] > 0
    first = np.arange(mask.shape[1]) < mask.sum(1, keepdims=True)
    return mask, Group(f"{name}condition_mask", first, data["condition_mask"], 0, 0)


def forward(goldens: Goldens, name: str, sana: model.Sana | None = None) -> Iterator[Group]:
    """Velocity of every case, the activation of every part of those that have any, and what the JSON says of the inputs."""
    info, data = goldens.json(f"{name}.json"), goldens.tensors(f"{name}.forward.safetensors")
    sana = load(goldens, name) if sana is None else sana
    tolerance = info["rtol"], info["atol"]
    for facts in info["cases"]:
        case = f"{facts['case']}."
        now = data.under(case)
        (mask, group), source = mask_of(now, case), source_of(sana, now)
        yield group
        yield Group(f"{case}timestep", np.array(facts["timestep"]), now["timestep"], *tolerance)
        yield Group(f"{case}condition_lengths", mask.sum(1), np.array(facts["condition_lengths"]), 0, 0)
        args = sana, nhwc(now["latents"]), np.floor(now["timestep"]), now["condition"], mask, source
        yield Group(f"{case}velocity", nchw(velocity(*args)), now["velocity"], *tolerance)
        golden = now.under("activation.")
        seen = activations(*args) if golden else {}
        for key in golden:
            if key not in seen:
                raise KeyError(f"{data.file}: activation {key!r} is not among ours: {sorted(seen)}")
            yield Group(f"{case}activation.{key}", np.asarray(seen[key]).reshape(golden[key].shape), golden[key], *tolerance)


@jax.jit
def activations(sana: model.Sana, *args) -> dict[str, jnp.ndarray]:
    """Outputs of the parts by published name, of a forward pass with the blocks one after the other instead of in a scan."""
    parts = {
        "x_embedder": model.PatchEmbed, "t_embedder": model.TimestepEmbedder, "y_embedder": model.ConditionEmbedder, "block": model.Block,
        "attn": model.LinearAttention, "cross_attn": model.CrossAttention, "mlp": model.GatedConvMLP, "final_layer": model.FinalLayer,
        "t_block": nnx.Linear, "attention_y_norm": nnx.RMSNorm,
    }  # fmt: skip
    seen: dict[str, list] = {name: [] for name in parts}
    with _recorded(parts, seen, (sana.t_block, sana.attention_y_norm)):
        velocity.__wrapped__(sana, *args)
    blocks = {"block": "", "attn": ".attn", "cross_attn": ".cross_attn", "mlp": ".mlp"}
    named = {f"blocks.{i}{suffix}": y for name, suffix in blocks.items() for i, y in enumerate(seen.pop(name))}
    return named | {name: ys[0] for name, ys in seen.items()}


@contextmanager
def _recorded(parts: dict[str, type], seen: dict[str, list], only: tuple[nnx.Module, ...]) -> Iterator[None]:
    """While open, calls of `parts` append to `seen`; of the classes of `only`, which have other uses, these instances alone do."""

    def recorder(name: str, part: type):
        original = part.__call__

        def call(self, *args, **kwargs):
            y = original(self, *args, **kwargs)
            if part not in map(type, only) or any(self is instance for instance in only):
                seen[name].append(y)
            return y

        return call

    def unrolled(stacked, step, carry, xs=None, *, remat=None):
        graphdef, state = nnx.split(stacked)
        ys = []
        for i in range(len(jax.tree.leaves(state)[0])):
            parameters, x = jax.tree.map(lambda leaf, i=i: leaf[i], (state, xs))
            carry, y = step(nnx.merge(graphdef, parameters), carry, x)
            ys.append(y)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)

    originals, scan = {part: part.__call__ for part in parts.values()}, layers.scan
    try:
        layers.scan = unrolled
        for name, part in parts.items():
            part.__call__ = recorder(name, part)
        yield
    finally:
        layers.scan = scan
        for part, original in originals.items():
            part.__call__ = original


def loss(goldens: Goldens, name: str) -> Iterator[Group]:
    """Sigma, timestep, noisy latents and the loss of every sample."""
    info, data, sana = goldens.json(f"{name}.json"), goldens.tensors(f"{name}.loss.safetensors"), load(goldens, name)
    tolerance = info["rtol"], info["atol"]
    clean, noise, source = nhwc(data["clean"]), nhwc(data["noise"]), source_of(sana, data)
    mask, group = mask_of(data, "loss.")
    yield group
    sigma, timestep = flow.training_times(jnp.asarray((data["t_index"] + 0.5) / flow.NUM_TIMESTEPS), FLOW_SHIFT)
    yield Group("loss.sigma", np.asarray(sigma), data["sigma"], *tolerance)
    yield Group("loss.model_timestep", np.asarray(timestep), data["model_timestep"], 0, 0)
    noisy = flow.interpolate(clean, noise, sigma)
    yield Group("loss.noisy", nchw(noisy), data["noisy"], *tolerance)
    v = velocity(sana, noisy, timestep, data["condition"], mask, source)
    yield Group("loss.loss_per_sample", np.asarray(flow.loss(v, clean, noise)), data["loss_per_sample"], *tolerance)


def trajectory(goldens: Goldens, name: str) -> Iterator[Group]:
    """The latents that the model sees at every step of DPM-Solver++ 2M, and the result.

    Latents are held against the largest one, not each against itself: at the first step the published sampler divides a float32
    rounding of the noisy latents by 1 - sigma = 3e-4 and multiplies it by the guidance, so a velocity that differs in its last bit
    moves single latents by 2e-4, however near to zero they are.
    """
    info, data, sana = goldens.json(f"{name}.json"), goldens.tensors(f"{name}.sampler.safetensors"), load(goldens, name)
    tolerance, source = (info["rtol"], info["atol"]), source_of(sana, data)
    mask, group = mask_of(data, "sampler.")
    yield group
    guidance_scale, flow_shift = info.get("guidance_scale", GUIDANCE_SCALE), info.get("flow_shift", FLOW_SHIFT)
    runs = sorted({key.split(".")[0] for key in data if "." in key})
    if not runs:
        raise KeyError(f"{data.file}: no run in it")
    for run in runs:
        golden = data.under(f"{run}.")
        num_steps = len(golden["model_timesteps"])
        _SEEN.clear()
        args = sana, nhwc(data["noise"]), data["condition"], mask, source
        final = sampled(*args, num_steps, guidance_scale, flow_shift, record=True)
        jax.effects_barrier()
        timesteps = sampler.sigmas(num_steps, flow_shift)[:-1] * flow.NUM_TIMESTEPS
        yield Group(f"sampler.{run}.model_timesteps", timesteps, golden["model_timesteps"], *tolerance)
        for key, ours in (("model_inputs", np.concatenate(_SEEN)), ("final", final)):
            largest = np.abs(golden[key]).max()
            yield Group(f"sampler.{run}.{key}", nchw(ours), golden[key], 0, info["atol"] + info["rtol"] * largest)


_SEEN: list[np.ndarray] = []  # the latents before each step of the run that records


@partial(jax.jit, static_argnames=("num_steps", "guidance_scale", "flow_shift", "record"))
def sampled(sana: model.Sana, noise, condition, mask, source, num_steps, guidance_scale, flow_shift, record=False):
    """Latents by DPM-Solver++ 2M, guided by the learned null condition."""
    encoded = sana.null_condition(mask).interleave(sana.encode_condition(condition, mask))
    doubled = None if source is None else jnp.repeat(source, 2, axis=0)

    def velocity(x, sigma):
        return sana(x, jnp.full(len(x), flow.model_timestep(sigma)), encoded, doubled)

    callback = (lambda _, x: _SEEN.append(np.asarray(x))) if record else None
    return sampler.sample(velocity, noise, num_steps=num_steps, guidance_scale=guidance_scale, flow_shift=flow_shift, callback=callback)


def parts(goldens: Goldens, name: str) -> list[Iterator[Group]]:
    """The tensor groups of `name`.*: a part that fails does not keep the others from being checked."""
    return [part(goldens, name) for part in (forward, loss, trajectory)]
