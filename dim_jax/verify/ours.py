"""The stages as this package computes them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dim_jax.data.inputs import normalised
from dim_jax.data.pictures import autoencoder_pixels
from dim_jax.diffusion import flow, sampler
from dim_jax.models.connector import Connector, select_user_turn
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.module import with_parameters
from dim_jax.models.qwen import Qwen
from dim_jax.models.sana import Condition, Sana
from dim_jax.verify.case import Case
from dim_jax.verify.stages import VELOCITIES, Stages, Tensors
from dim_jax.weights.model_config import ModelConfig

_read, _connect, _encode, _decode = map(jax.jit, (Qwen.__call__, Connector.__call__, DCAE.encode, DCAE.decode))
PADDING = 64  # the condition is padded to a multiple of it, as pictures are painted


class Ours:
    """Networks in `dtype` on JAX's device; float32 is float32 on accelerators too."""

    name = "dim_jax"

    def __init__(self, case: Case, dtype: str):
        self.case, self.dtype = case, dtype
        self._sizes = ModelConfig(case.config.encoder, case.config.sana, case.config.autoencoder)

    def encoder(self, tensors: Tensors) -> Stages:
        """What follows from text and picture, and the encoder's states of all tokens. Takes its parameters out of `tensors`."""
        inputs = self.case.inputs
        hidden = _read(self._taken("encoder", tensors), inputs)
        return {"tokens": inputs.input_ids[0], "patches": normalised(inputs.patches[0]), "encoder states": _host(hidden)[0]}

    def painter(self, tensors: Tensors, hidden: Float[np.ndarray, "t d"]) -> Stages:
        """From the encoder's states to the picture. Takes the other parts' parameters out of `tensors`."""
        case, settings = self.case, self.case.settings
        connector = self._taken("connector", tensors)
        autoencoder = self._taken("autoencoder", tensors)
        user_turn = jnp.asarray(case.inputs.user_turn)
        tokens = int(case.inputs.user_turn.sum())
        length = min(case.config.sana.condition_length, -(-tokens // PADDING) * PADDING)
        chosen, mask = select_user_turn(jnp.asarray(hidden, self.dtype)[None], user_turn, length)
        condition = _connect(connector, chosen)
        found = {"condition": _host(condition)[0, :tokens]}
        side = settings["resolution"]
        source = _encode(autoencoder, autoencoder_pixels(case.picture, (side, side))[None])
        found["source latents"] = _host(source)[0]
        sana = self._taken("sana", tensors)
        noise = jnp.asarray(case.noise)[None]
        seen = sana, condition, mask, source if case.config.sana.is_edit else None
        for sigma, name in VELOCITIES.items():
            noisy = jnp.concatenate([flow.interpolate(source, noise, jnp.full(1, sigma))] * 2)
            found[name] = _host(_velocity(*seen, noisy, jnp.float32(sigma)))
        latents = _paint(*seen, noise, jnp.float32(settings["guidance_scale"]), settings["num_steps"], settings["flow_shift"])
        found["latents"] = _host(latents)[0]
        found["picture"] = _host(_decode(autoencoder, latents))[0]
        return found

    def _taken(self, part: str, tensors: Tensors) -> Any:
        make = self._sizes.modules(dtype=self.dtype)[part]
        prefix = f"{part}."
        named = [path for path in tensors if path.startswith(prefix)]
        found = {path.removeprefix(prefix): jnp.asarray(tensors.pop(path), self.dtype) for path in named}
        return with_parameters(nnx.eval_shape(lambda: make(nnx.Rngs(0))), found)


Branches = tuple[Condition, Float[Array, "2 h w c"] | None]  # by the two branches: conditions, and the source


def _branches(sana: Sana, condition: Array, mask: Array, source: Array | None) -> Branches:
    both = sana.null_condition(mask).interleave(sana.encode_condition(jnp.where(mask[..., None], condition, 0), mask))
    return both, None if source is None else jnp.concatenate([source, source])


@jax.jit
def _velocity(sana: Sana, condition: Array, mask: Array, source: Array | None, x: Array, sigma: Array) -> Float[Array, "2 h w c"]:
    return sana(x, jnp.full(len(x), flow.model_timestep(sigma)), *_branches(sana, condition, mask, source))


@partial(jax.jit, static_argnums=(6, 7))
def _paint(
    sana: Sana, condition: Array, mask: Array, source: Array | None, noise: Array, scale: Array, num_steps: int, flow_shift: float
) -> Float[Array, "1 h w c"]:
    seen = _branches(sana, condition, mask, source)
    return sampler.sample(
        lambda x, sigma: sana(x, jnp.full(len(x), flow.model_timestep(sigma)), *seen),
        noise, num_steps=num_steps, guidance_scale=scale, flow_shift=flow_shift,
    )  # fmt: skip


def _host(x: Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32))
