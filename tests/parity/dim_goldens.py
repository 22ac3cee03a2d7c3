"""The whole edit from one checkpoint in the published naming, and the steps of the optimizer, against the published code."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dim_jax.diffusion import flow
from dim_jax.models import module
from dim_jax.models.connector import select_user_turn
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.dim import Dim, DimConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.processing.inputs import EncoderInputs, encoder_inputs
from dim_jax.training import optim
from dim_jax.weights import dim as weights
from dim_jax.weights import table
from tests.parity import dc_ae_goldens, qwen_goldens, sana_goldens
from tests.parity.goldens import Goldens, Group, as_goldens, nchw, nhwc


@cache
def abstract(config: DimConfig) -> tuple[Dim, dict[str, table.TensorMapping]]:
    """The model without memory and where its published tensors go."""
    dim = nnx.eval_shape(lambda: Dim(config, rngs=nnx.Rngs(0)))
    return dim, table.tensor_mappings(weights.ROWS, module.shapes(dim))


def load(folder: Goldens | Path) -> Dim:
    """The model of dim_edit.model.safetensors, with the three configs beside it."""
    goldens = as_goldens(folder)
    for name in ("qwen.config.json", "sana_edit.json", "dc_ae.config.json"):
        goldens.json(name)  # names the file if it is missing
    config = DimConfig(
        QwenConfig.from_hf(goldens / "qwen.config.json"),
        SanaConfig.from_json(goldens / "sana_edit.json"),
        DCAEConfig.from_hf(goldens / "dc_ae.config.json"),
    )
    dim, slots = abstract(config)
    published = goldens.tensors("dim_edit.model.safetensors")
    published.pass_over("decoder.model.pos_embed")  # a buffer of the published class that its forward never reads
    if config.encoder.tie_word_embeddings:
        published.pass_over("mllm.lm_head.weight")  # the embedding once more
    return module.with_parameters(dim, table.from_hf(slots, published.__getitem__))


@partial(jax.jit, static_argnames="tokens")
def _condition_in_parts(dim: Dim, inputs: EncoderInputs, user_turn: jnp.ndarray, tokens: int) -> tuple[jnp.ndarray, jnp.ndarray]:
    hidden = dim.encoder(inputs)
    return hidden, dim.connector(select_user_turn(hidden, user_turn, tokens)[0])


_condition = jax.jit(Dim.condition, static_argnums=2)
_encode, _decode = jax.jit(DCAE.encode), jax.jit(DCAE.decode)


def edit(goldens: Goldens) -> Iterator[Group]:
    """Hidden states, condition, source latents, latents and picture of every run in dim_edit.run.safetensors."""
    info, data, dim = goldens.json("dim_edit.json"), goldens.tensors("dim_edit.run.safetensors"), load(goldens)
    tolerance, config = (info["rtol"], info["atol"]), dim.config.encoder
    grids = [(int(h), int(w)) for _, h, w in data["image_grid_thw"]]
    yield Group("image_grid_thw", np.array([(1, *grid) for grid in grids]), data["image_grid_thw"], 0, 0)
    user_turn = data["user_tokens"] > 0
    inputs = encoder_inputs(
        data["input_ids"].astype(np.int32), np.ones_like(user_turn), user_turn,
        np.split(data["pixel_values"], np.cumsum([h * w for h, w in grids])[:-1]), grids,
        image_token_id=config.image_token_id, layout=config.vision.layout,
    )  # fmt: skip
    hidden, condition = _condition_in_parts(dim, inputs, user_turn, data["condition"].shape[1])
    yield Group("last_hidden_state", np.asarray(hidden), data["last_hidden_state"], *tolerance)
    yield Group("condition", np.asarray(condition), data["condition"], *tolerance)
    padded, mask = _condition(dim, inputs, info["condition_length"])
    yield Group("padded_condition", np.asarray(padded), data["padded_condition"], *tolerance)
    yield Group("condition_mask", np.asarray(mask), data["condition_mask"], 0, 0)
    source = _encode(dim.autoencoder, nhwc(data["source_pixels"]))
    yield Group("source_latents", nchw(source), data["source_latents"], *tolerance)
    for steps in info["steps"]:
        args = dim.sana, nhwc(data["noise"]), padded, mask, source, steps, info["guidance_scale"], info["flow_shift"]
        latents = sana_goldens.sampled(*args)
        yield Group(f"steps{steps}.latents", nchw(latents), data[f"steps{steps}.latents"], *tolerance)
        yield Group(f"steps{steps}.image", nchw(_decode(dim.autoencoder, latents)), data[f"steps{steps}.image"], *tolerance)


def parts(goldens: Goldens) -> Iterator[Group]:
    """The tighter goldens of encoder, SANA and autoencoder again, with those parts of the checkpoint that are the very same models.

    A part counts as the same if most of its tensors are, to the bit: then all of them have to be, for all that the goldens can see.
    """
    dim = load(goldens)
    sources = (
        ("qwen", "mllm.", lambda: qwen_goldens.groups(goldens, dim.encoder)),
        ("sana_edit", "decoder.model.", lambda: sana_goldens.forward(goldens, "sana_edit", dim.sana)),
        ("dc_ae", "decoder.vae.", lambda: dc_ae_goldens.groups(goldens, dim.autoencoder)),
    )
    checkpoint = goldens.tensors("dim_edit.model.safetensors")
    for name, prefix, groups in sources:
        if not (goldens / f"{name}.weights.safetensors").is_file():
            continue
        alone, inside = Goldens(goldens.folder).tensors(f"{name}.weights.safetensors"), checkpoint.under(prefix)
        same = [key in inside and np.array_equal(alone[key], inside[key]) for key in alone]
        if sum(same) > len(same) / 2:
            yield from (group._replace(name=f"{name}.{group.name}") for group in groups())


# One object for the same values, so that the step below is compiled once.
_optimizer = cache(optim.clipped_optimizer)


@partial(jax.jit, static_argnames="tx")
def _adamw_step(tx, sana, parameters, state, clean, noise, condition, source, index):
    def mean_loss(parameters):
        sana_now = module.with_parameters(sana, module.parameters(sana) | parameters)
        sigma, timestep = flow.training_times((index + 0.5) / flow.NUM_TIMESTEPS, sana_goldens.FLOW_SHIFT)
        encoded = sana_now.encode_condition(condition, jnp.ones(condition.shape[:2], bool))
        return flow.loss(sana_now(flow.interpolate(clean, noise, sigma), timestep, encoded, source), clean, noise).mean()

    loss, grads = jax.value_and_grad(mean_loss)(parameters)
    updates, state = tx.update(grads, state, parameters)
    return optax.apply_updates(parameters, updates), state, loss, optax.tree.norm(grads)


def adamw(goldens: Goldens) -> Iterator[Group]:
    """Losses, gradient norms and parameters of optimizer steps on SANA; the unused null table gets no update, as in torch.

    The parameters of a tensor are held together (root mean square), not each alone: Adam divides a gradient by its own size, so where
    a gradient cancels down to float32 noise, noise moves the parameter. In float64 single ones differ just as much.
    """
    info, data = goldens.json("adamw.json"), goldens.tensors("adamw.safetensors")
    sana, tolerance = sana_goldens.load(goldens, info["weights"].removesuffix(".weights.safetensors")), (info["rtol"], info["atol"])
    tx = _optimizer(
        info["lr"],
        weight_decay=info["weight_decay"],
        clip_global_norm=info["clip_global_norm"],
        betas=tuple(info["betas"]),
        eps=info["eps"],
        undecayed=(),
    )
    parameters = {path: x for path, x in module.parameters(sana).items() if not path.endswith("y_embedding")}
    state = tx.init(parameters)
    losses, norms = [], []
    clean, noise, source = nhwc(data["clean"]), nhwc(data["noise"]), sana_goldens.source_of(sana, data)
    for i in range(info["steps"]):
        batch = clean[i], noise[i], data["condition"][i], None if source is None else source[i], data["t_index"][i]
        parameters, state, loss, norm = _adamw_step(tx, sana, parameters, state, *batch)
        losses.append(loss)
        norms.append(norm)
    yield Group("losses", np.asarray(losses), data["losses"], *tolerance)
    yield Group("grad_norms", np.asarray(norms), data["grad_norms"], *tolerance)
    ours = module.parameters(sana) | parameters
    _, slots = sana_goldens.abstract(sana.config)
    after = dict(table.to_hf(slots, lambda path: np.asarray(ours[path])))
    golden = data.under("after.")
    for key in golden:
        if after[key].shape != golden[key].shape:
            yield Group(f"after.{key}", after[key], golden[key], *tolerance)
            continue
        error, size = _rms(after[key] - golden[key]), _rms(golden[key])
        yield Group(f"after.{key}", error, np.zeros(()), 0, info["atol"] + info["rtol"] * size)


def _rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))
