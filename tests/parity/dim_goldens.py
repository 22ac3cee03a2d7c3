"""The whole edit from one checkpoint in the published naming, and five steps of the optimizer, against the published code."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load_file

from dim_jax import optim
from dim_jax.data.inputs import encoder_inputs
from dim_jax.diffusion import flow
from dim_jax.models.connector import select_user_turn
from dim_jax.models.dc_ae import DCAEConfig
from dim_jax.models.dim import Dim, DimConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana import SanaConfig
from dim_jax.weights import dim as weights
from dim_jax.weights import module, table
from dim_jax.weights import sana as sana_weights
from tests.parity.sana_goldens import Group, load, nchw, nhwc, sampled


def load_dim(folder: Path) -> Dim:
    """The model of dim_edit.model.safetensors, with the three configs beside it."""
    config = DimConfig(
        QwenConfig.from_hf(folder / "qwen.config.json"),
        SanaConfig.from_json(folder / "sana_edit.json"),
        DCAEConfig.from_hf(folder / "dc_ae.config.json"),
    )
    abstract = nnx.eval_shape(lambda: Dim(config, rngs=nnx.Rngs(0)))
    published = load_file(folder / "dim_edit.model.safetensors")
    slots = table.slots(weights.ROWS, module.shapes(abstract))
    return module.with_parameters(abstract, table.to_ours(slots, published.__getitem__))


def edit(folder: Path) -> Iterator[Group]:
    """Hidden states, condition, source latents, latents and picture of every run in dim_edit.run.safetensors."""
    info, data, dim = json.loads((folder / "dim_edit.json").read_text()), load_file(folder / "dim_edit.run.safetensors"), load_dim(folder)
    tolerance, config = (info["rtol"], info["atol"]), dim.config.encoder
    grids = [(int(h), int(w)) for _, h, w in data["image_grid_thw"]]
    user_turn = data["user_tokens"] > 0
    inputs = encoder_inputs(
        data["input_ids"].astype(np.int32), np.ones_like(user_turn), user_turn,
        np.split(data["pixel_values"], np.cumsum([h * w for h, w in grids])[:-1]), grids,
        image_token_id=config.image_token_id, layout=config.vision.layout,
    )  # fmt: skip
    hidden = dim.encoder(inputs)
    yield "last_hidden_state", np.asarray(hidden), data["last_hidden_state"], *tolerance
    tokens = data["condition"].shape[1]
    yield "condition", np.asarray(dim.connector(select_user_turn(hidden, jnp.asarray(user_turn), tokens)[0])), data["condition"], *tolerance
    condition, mask = dim.condition(inputs, info["condition_length"])
    yield "padded_condition", np.asarray(condition), data["padded_condition"], *tolerance
    yield "condition_mask", np.asarray(mask), data["condition_mask"], 0, 0
    source = dim.autoencoder.encode(nhwc(data["source_pixels"]))
    yield "source_latents", nchw(source), data["source_latents"], *tolerance
    for steps in info["steps"]:
        latents = sampled(dim.sana, nhwc(data["noise"]), condition, mask, source, steps, info["guidance_scale"], info["flow_shift"])
        yield f"steps{steps}.latents", nchw(latents), data[f"steps{steps}.latents"], *tolerance
        yield f"steps{steps}.image", nchw(dim.autoencoder.decode(latents)), data[f"steps{steps}.image"], *tolerance


def adamw(folder: Path) -> Iterator[Group]:
    """Losses, gradient norms and parameters of optimizer steps on SANA; the unused null table gets no update, as in torch.

    The parameters of a tensor are held together (root mean square), not each alone: Adam divides a gradient by its own size, so where
    a gradient cancels down to float32 noise, noise moves the parameter. In float64 single ones differ just as much.
    """
    info, data = json.loads((folder / "adamw.json").read_text()), load_file(folder / "adamw.safetensors")
    name = info["weights"].removesuffix(".weights.safetensors")
    sana, tolerance = load(folder, name), (info["rtol"], info["atol"])
    trained = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("y_embedding")))
    tx = optim.adamw(
        info["lr"],
        weight_decay=info["weight_decay"],
        clip_global_norm=info["clip_global_norm"],
        betas=tuple(info["betas"]),
        eps=info["eps"],
    )
    graphdef, parameters, frozen = nnx.split(sana, trained, ...)
    state = tx.init(parameters)

    def mean_loss(parameters, clean, noise, condition, source, index):
        sana = nnx.merge(graphdef, parameters, frozen)
        sigma, timestep = flow.training_times((index + 0.5) / flow.NUM_TIMESTEPS, 3.0)
        encoded = sana.encode_condition(condition, jnp.ones(condition.shape[:2], bool))
        return flow.loss(sana(flow.interpolate(clean, noise, sigma), timestep, encoded, source), clean, noise).mean()

    step = jax.jit(jax.value_and_grad(mean_loss))
    losses, norms = [], []
    for i in range(info["steps"]):
        source = nhwc(data["source_latents"][i]) if sana.config.is_edit else None
        loss, grads = step(parameters, nhwc(data["clean"][i]), nhwc(data["noise"][i]), data["condition"][i], source, data["t_index"][i])
        losses.append(loss)
        norms.append(optax.global_norm(grads))
        updates, state = tx.update(grads, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    yield "losses", np.asarray(losses), data["losses"], *tolerance
    yield "grad_norms", np.asarray(norms), data["grad_norms"], *tolerance
    trained_sana = nnx.merge(graphdef, parameters, frozen)
    ours = module.parameters(trained_sana)
    slots = table.slots(sana_weights.ROWS, module.shapes(trained_sana))
    after = dict(table.to_theirs(slots, lambda path: np.asarray(ours[path])))
    for key in sorted(key for key in data if key.startswith("after.")):
        error, golden = _rms(after[key.removeprefix("after.")] - data[key]), _rms(data[key])
        yield key, error, np.zeros(()), 0, info["atol"] + info["rtol"] * golden


def _rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


def groups(folder: Path) -> Iterator[Group]:
    """Every tensor group of dim_edit.* and adamw.*."""
    for name, part in (("dim_edit", edit), ("adamw", adamw)):
        for key, *rest in part(folder):
            yield f"{name}.{key}", *rest
