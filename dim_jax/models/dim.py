"""Draw-In-Mind, composed of its networks: read this file first.

    pictures and text -> encoder -> connector -> condition -+
                                                            +-> sana -> velocity -> (sampler) -> latents -> autoencoder -> picture
    source picture -> autoencoder -> source latents --------+

Source: Draw-In-Mind (arXiv 2509.01986). A checkpoint calls the parts `mllm`, `projector`, `decoder.model` and `decoder.vae`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dim_jax.diffusion import flow, sampler
from dim_jax.errors import check
from dim_jax.models import layers
from dim_jax.models.connector import Connector, NoConnector, select_user_turn
from dim_jax.models.dc_ae import DCAE, DCAEConfig
from dim_jax.models.gemma import Gemma, GemmaConfig
from dim_jax.models.meta_connector import MetaConnector
from dim_jax.models.quantized import is_quantized
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.models.qwen3 import Qwen3, Qwen3Config
from dim_jax.models.sana import Condition, Sana
from dim_jax.models.sana_config import SanaConfig
from dim_jax.models.sana_tiling import blend_tiles
from dim_jax.processing.inputs import EncoderInputs

# The config of an encoder -> its network, and what joins it to SANA: a family of models is a row here.
NETWORKS: dict[type, tuple[Callable[..., nnx.Module], Callable[..., nnx.Module]]] = {
    QwenConfig: (Qwen, lambda encoder, sana, **options: Connector(encoder.hidden_size, sana.caption_channels, **options)),
    GemmaConfig: (Gemma, lambda encoder, sana, **options: NoConnector()),
    Qwen3Config: (
        Qwen3,
        lambda encoder, sana, **options: MetaConnector(encoder.hidden_size, sana.caption_channels, sana.condition_length, **options),
    ),
}


def makers(
    encoder: Any, sana: SanaConfig | None, autoencoder: DCAEConfig | None, *, dtype: DTypeLike
) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
    """Part -> a function that makes it with initial parameters, of those parts whose configs there are, in order."""
    parts: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {}
    if encoder is not None:
        network, connector = NETWORKS[type(encoder)]
        parts["encoder"] = lambda rngs: network(encoder, dtype=dtype, rngs=rngs)
        if sana is not None:
            parts["connector"] = lambda rngs: connector(encoder, sana, dtype=dtype, rngs=rngs)
    if sana is not None:
        parts["sana"] = lambda rngs: Sana(sana, dtype=dtype, rngs=rngs)
    if autoencoder is not None:
        parts["autoencoder"] = lambda rngs: DCAE(autoencoder, dtype=dtype, rngs=rngs)
    return parts


ALIGNMENT_SIGMAS = (0.85, 0.85, 0.95, 0.95)  # chosen on the nano model's 368 pairs that are for choosing


@dataclass(frozen=True)
class DimConfig:
    """The sizes of every part; the connector's follow from its neighbours. `encoder` is a key of `NETWORKS`.

    Raises:
        InputError: SANA and the autoencoder have different latent channels.
    """

    encoder: Any
    sana: SanaConfig
    autoencoder: DCAEConfig

    def __post_init__(self):
        ours, theirs = self.sana.latent_channels, self.autoencoder.latent_channels
        check(ours == theirs, f"SANA has {ours} latent channels, the autoencoder {theirs}. Use parts that were trained together.")

    @classmethod
    def dim_4_6b(cls, *, edit: bool = False) -> "DimConfig":
        """The published model: Qwen2.5-VL-3B, SANA1.5-1.6B, DC-AE f32c32."""
        return cls(QwenConfig.qwen_3b(), SanaConfig.sana_1600m(edit=edit), DCAEConfig.f32c32())


class Dim(nnx.Module):
    """The model. Call `condition`, then `paint`; for edits, `autoencoder.encode` of the source before `paint`."""

    encoder: Any
    connector: Any
    sana: Sana
    autoencoder: DCAE

    def __init__(self, config: DimConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        for name, make in makers(config.encoder, config.sana, config.autoencoder, dtype=dtype).items():
            setattr(self, name, make(rngs))
        self.config = config

    def condition(self, inputs: EncoderInputs, length: int) -> tuple[Float[Array, "b length c"], Bool[Array, "b length"]]:
        """Condition tokens of the user turn, zeros after them up to `length`, and the mask of the real ones."""
        hidden, mask = select_user_turn(self.connector.read(self.encoder, inputs), jnp.asarray(inputs.user_turn), length)
        return jnp.where(mask[..., None], self.connector(hidden), 0), mask

    def null_condition(self, length: int) -> Condition:
        """One row, to be broadcast: what the connector makes of nothing, or else the first `length` rows that SANA has learned."""
        mask, tokens = jnp.ones((1, length), bool), self.connector.null()
        return self.sana.null_condition(mask) if tokens is None else self.sana.encode_condition(tokens, mask)

    def paint(
        self,
        condition: Condition,
        seeds: Int[Array, " b"],
        size: tuple[int, int],
        source: Float[Array, "b h w c"] | None = None,
        *,
        num_steps: int = 30,
        **options: Any,
    ) -> Float[Array, "b h w c"]:
        """Latents of `size` (rows, columns), each from the noise of its seed. Options as in `advance`."""
        return self.advance(self.start(seeds, size), condition, source, 0, num_steps, num_steps=num_steps, **options).latents

    def start(self, seeds: Int[Array, " b"], size: tuple[int, int]) -> sampler.State:
        """The sampler before its first step: the noise of each seed."""
        return sampler.State.start(layers.shard_batch(sampler.noise(seeds, (*size, self.config.sana.latent_channels))), seeds)

    def advance(
        self,
        state: sampler.State,
        condition: Condition,
        source: Float[Array, "b h w c"] | None,
        first: Int[Array, ""] | int,
        count: int,
        *,
        unconditional: Condition | None = None,
        guidance_scale: Float[Array, ""] | float = 7.5,
        image_guidance_scale: Float[Array, ""] | float | None = None,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        cache_interval: int = 1,
        num_steps: int = 30,
        flow_shift: float = 3.0,
        solver: str = "dpm++2m",
        float8: bool = False,
        tile: int | None = None,
        inside: Bool[Array, "b h w"] | None = None,
    ) -> sampler.State:
        """The sampler after `count` more steps, of which `first` are done.

        `unconditional` (the learned null or a negative prompt) turns guidance on; without it one branch runs, and `guidance_scale` is
        ignored but by a network that takes it as an input (`SanaConfig.guidance_embeds`).
        `image_guidance_scale` adds a third branch, with the source but without the condition (`sampler.sample`).
        `guidance_start`, `guidance_stop` and `cache_interval` skip evaluations (`sampler.evaluations`). `float8`: large products in float8
        (`Sana.unroll`). `tile`: SANA sees tiles of so many pixels a side (`sana_tiling`). `inside`: the latents that may change; the
        others are the source's (`sampler.Known`).
        An edit model without `source` latents generates from the text alone, and ignores `image_guidance_scale`.
        """
        scale = image_scale = None
        known = None if source is None or inside is None else sampler.Known(source, inside)
        conditional = self._velocity(condition, source, guidance_scale, float8, tile)
        if unconditional is not None:
            scale, conditions = guidance_scale, [unconditional, condition]
            if source is not None:
                sources = [source, source]
                if image_guidance_scale is not None:
                    image_scale, conditions = image_guidance_scale, [unconditional, *conditions]
                    sources = [jnp.zeros_like(state.latents), *sources]
                source = layers.interleave(*sources)
            condition = conditions[0].interleave(*conditions[1:])
        guided = self._velocity(condition, source, guidance_scale, float8, tile)
        return sampler.advance(
            lambda x, sigma: (conditional if len(x) == len(state.latents) else guided)(x, sigma), state, first, count, num_steps=num_steps,
            guidance_scale=scale, image_guidance_scale=image_scale, guidance_start=guidance_start, guidance_stop=guidance_stop,
            cache_interval=cache_interval, flow_shift=flow_shift, solver=solver, known=known,
        )  # fmt: skip

    def prompt_alignment(
        self, latents: Float[Array, "b h w c"], condition: Condition, unconditional: Condition, source: Float[Array, "b h w c"] | None
    ) -> Float[Array, " b"]:
        """How much better `condition` explains latents than `unconditional` does: the logarithm of the velocity's squared error without it
        over that with it; 0 is not at all.

        The errors are means at high noise (`ALIGNMENT_SIGMAS`), where it shows what a picture is of, and the noise is the same for all
        rows, so that results of one prompt compare. A diffusion model as a classifier (arXiv 2303.16203), here of pictures by one prompt.
        """
        velocities = [self._velocity(branch, source, 1.0, False, None) for branch in (unconditional, condition)]

        def add(errors: Float[Array, "2 b"], inputs: tuple[Array, Array]) -> tuple[Float[Array, "2 b"], None]:
            sigma, noise = inputs
            x, expected = (1 - sigma) * latents + sigma * noise, noise - latents
            return errors + jnp.stack([jnp.square(velocity(x, sigma) - expected).mean((1, 2, 3)) for velocity in velocities]), None

        noise = jax.random.normal(jax.random.key(0), (len(ALIGNMENT_SIGMAS), *latents.shape[1:]))
        errors, _ = jax.lax.scan(add, jnp.zeros((2, len(latents))), (jnp.array(ALIGNMENT_SIGMAS, jnp.float32), noise))
        return jnp.log(errors[0]) - jnp.log(errors[1])

    def _velocity(
        self,
        condition: Condition,
        source: Float[Array, "b h w c"] | None,
        guidance_scale: Float[Array, ""] | float,
        float8: bool,
        tile: int | None,
    ) -> sampler.Velocity:
        """The velocity of as many latents as `condition` and `source` have rows."""
        # A kernel of few bits is made dense in one piece anyway: taking the stack apart would only take memory.
        apart = layers.platform() == "gpu" or layers.unrolls(self.config.sana.depth)
        unroll = float8 or (apart and not is_quantized(self.sana.blocks.attn.qkv))
        unrolled = self.sana.unroll(condition, float8=float8) if unroll else None

        embeds, reads_sigma = self.config.sana.guidance_embeds, self.config.sana.reads_sigma

        def velocity(x: Float[Array, "b h w c"], sigma: Float[Array, ""]) -> Float[Array, "b h w c"]:
            timestep = jnp.full(len(x), sigma if reads_sigma else flow.model_timestep(sigma))
            guidance = jnp.full(len(x), guidance_scale, jnp.float32) if embeds else None

            def run(x: Array, source: Array | None = None) -> Array:
                return self.sana(x, timestep, condition, source, guidance=guidance, unrolled=unrolled)

            arrays = (x,) if source is None else (x, source)
            return run(*arrays) if tile is None else blend_tiles(run, *arrays, tile=tile // self.config.autoencoder.factor)

        return velocity
