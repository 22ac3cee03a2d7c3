"""The stages as this package computes them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dim_jax.diffusion import flow, sampler
from dim_jax.models.connector import Connector, select_user_turn
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.module import with_parameters
from dim_jax.models.qwen import Qwen
from dim_jax.models.sana import Condition, Sana
from dim_jax.processing.inputs import normalize
from dim_jax.processing.pictures import autoencoder_pixels
from dim_jax.verify.case import Case
from dim_jax.verify.stages import VELOCITIES, Stages, Tensors
from dim_jax.weights.model_config import ModelConfig

_encode_text, _connect, _encode, _decode = map(jax.jit, (Qwen.__call__, Connector.__call__, DCAE.encode, DCAE.decode))
PADDING = 64  # the condition is padded to a multiple of it, as in sampling


class JaxStages:
    """Networks in `dtype` on JAX's device; float32 is float32 on accelerators too."""

    name = "dim_jax"

    def __init__(self, case: Case, dtype: str):
        self.case, self.dtype = case, dtype
        self._sizes = ModelConfig(case.config.encoder, case.config.sana, case.config.autoencoder)

    def encoder(self, tensors: Tensors) -> Stages:
        """Tokens, patches and the encoder's states of all tokens. Removes its parameters from `tensors`."""
        inputs = self.case.inputs
        hidden = _encode_text(self._module("encoder", tensors), inputs)
        return {"tokens": inputs.input_ids[0], "patches": normalize(inputs.patches[0]), "encoder states": _host(hidden)[0]}

    def painter(self, tensors: Tensors, hidden: Float[np.ndarray, "t d"]) -> Stages:
        """The stages from the encoder's states to the picture. Removes the parameters of the other parts from `tensors`."""
        case, settings = self.case, self.case.settings
        connector = self._module("connector", tensors)
        autoencoder = self._module("autoencoder", tensors)
        user_turn = jnp.asarray(case.inputs.user_turn)
        tokens = int(case.inputs.user_turn.sum())
        length = min(case.config.sana.condition_length, -(-tokens // PADDING) * PADDING)
        states, mask = select_user_turn(jnp.asarray(hidden, self.dtype)[None], user_turn, length)
        condition = _connect(connector, states)
        stages = {"condition": _host(condition)[0, :tokens]}
        side = settings["resolution"]
        source = _encode(autoencoder, autoencoder_pixels(case.picture, (side, side))[None])
        stages["source latents"] = _host(source)[0]
        sana = self._module("sana", tensors)
        noise = jnp.asarray(case.noise)[None]
        arguments = sana, condition, mask, source if case.config.sana.is_edit else None
        for sigma, name in VELOCITIES.items():
            noisy = jnp.concatenate([flow.interpolate(source, noise, jnp.full(1, sigma))] * 2)
            stages[name] = _host(_velocity(*arguments, noisy, jnp.float32(sigma)))
        latents = _paint(*arguments, noise, jnp.float32(settings["guidance_scale"]), settings["num_steps"], settings["flow_shift"])
        stages["latents"] = _host(latents)[0]
        stages["picture"] = _host(_decode(autoencoder, latents))[0]
        return stages

    def _module(self, part: str, tensors: Tensors) -> Any:
        make = self._sizes.modules(dtype=self.dtype)[part]
        prefix = f"{part}."
        paths = [path for path in tensors if path.startswith(prefix)]
        parameters = {path.removeprefix(prefix): jnp.asarray(tensors.pop(path), self.dtype) for path in paths}
        return with_parameters(nnx.eval_shape(lambda: make(nnx.Rngs(0))), parameters)


Branches = tuple[Condition, Float[Array, "2 h w c"] | None]  # by the two branches: conditions, and the source


def _branches(sana: Sana, condition: Array, mask: Array, source: Array | None) -> Branches:
    branches = sana.null_condition(mask).interleave(sana.encode_condition(jnp.where(mask[..., None], condition, 0), mask))
    return branches, None if source is None else jnp.concatenate([source, source])


@jax.jit
def _velocity(sana: Sana, condition: Array, mask: Array, source: Array | None, x: Array, sigma: Array) -> Float[Array, "2 h w c"]:
    return sana(x, jnp.full(len(x), flow.model_timestep(sigma)), *_branches(sana, condition, mask, source))


@partial(jax.jit, static_argnums=(6, 7))
def _paint(
    sana: Sana, condition: Array, mask: Array, source: Array | None, noise: Array, scale: Array, num_steps: int, flow_shift: float
) -> Float[Array, "1 h w c"]:
    branches = _branches(sana, condition, mask, source)
    return sampler.sample(
        lambda x, sigma: sana(x, jnp.full(len(x), flow.model_timestep(sigma)), *branches),
        noise, num_steps=num_steps, guidance_scale=scale, flow_shift=flow_shift,
    )  # fmt: skip


def _host(x: Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32))
