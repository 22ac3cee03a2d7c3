"""The autoencoder: pictures through few latents and back."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from PIL import Image

from dim_jax.config import Config
from dim_jax.data.batches import PictureBatch
from dim_jax.data.buckets import aspect_buckets
from dim_jax.data.example import Example
from dim_jax.data.pictures import autoencoder_pixels, signed_pixels, to_picture
from dim_jax.data.processor import Processor
from dim_jax.data.readers import PictureReader
from dim_jax.errors import InputError
from dim_jax.models import flops
from dim_jax.models.precision import compute_dtype
from dim_jax.processes import to_host
from dim_jax.sheets import grid
from dim_jax.weights.model_config import ModelConfig

AT_ONCE = 2**22  # pixels in one program at a run's end: the largest activation takes about 256 bytes of each


@dataclass(frozen=True)
class AutoencoderObjective:
    """Absolute plus squared error of reconstructed pixels, and a weight that holds the latents' spread near 1.

    The latents are disturbed by noise of `autoencoder.latent_noise` times their spread before they are decoded, so that near latents
    show near pictures: a sampler never hits one exactly. Nothing else fixes their scale, since the decoder normalises what it reads;
    left alone it grows without end.
    """

    config: Config
    sizes: ModelConfig
    processor: Processor | None

    PARTS: ClassVar = ("autoencoder",)

    @property
    def reader(self) -> PictureReader:
        data, autoencoder = self.config.data, self.sizes.autoencoder
        assert autoencoder is not None
        return PictureReader(tuple(aspect_buckets(data.resolution, autoencoder.factor, data.max_aspect_ratio)))

    @cached_property
    def model(self) -> nnx.Module:
        make = self.sizes.modules(dtype=compute_dtype(self.config.model.dtype))["autoencoder"]
        return nnx.eval_shape(lambda: nnx.Dict(autoencoder=make(nnx.Rngs(0))))

    @property
    def trainable_model(self) -> nnx.Module:
        return self.model

    def loss(self, model: Any, batch: PictureBatch, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        how, pixels = self.config.autoencoder, signed_pixels(batch.samples)
        latents = model.autoencoder.encode(pixels)
        spread = latents.std()
        noise = how.latent_noise * jax.lax.stop_gradient(spread) * jax.random.normal(key, latents.shape)
        error = model.autoencoder.decode(latents + noise) - pixels
        squared = jnp.mean(error**2)
        loss = jnp.mean(jnp.abs(error)) + squared + how.spread_weight * jnp.log(spread) ** 2
        return loss, {"psnr": 10 * jnp.log10(4 / squared), "latent_std": spread}  # 4 is the squared range of pixels in [-1, 1]

    def step_flops(self, batch: PictureBatch) -> flops.StepFlops:
        config = self.sizes.autoencoder
        assert config is not None
        size = batch.samples.shape[:3]
        work = flops.dc_ae_encoder(config, *size) + flops.dc_ae_decoder(config, *size)
        return flops.StepFlops({"autoencoder": work.step(learns=True)})

    def show(self, model: Any, examples: Sequence[Example]) -> Image.Image:
        pictures = [example.target for example in examples]
        decoded = self._computed(_reconstruct, model, pictures)
        return grid([[one, to_picture(other)] for one, other in zip(pictures, decoded, strict=True)])

    def finished(self, model: Any, examples: Iterable[Example]) -> ModelConfig:
        """The scaling factor is measured: it brings the latents of `examples` to unit variance."""
        config = self.sizes.autoencoder
        assert config is not None
        latents = list(self._computed(_encode, model, (example.target for example in examples)))
        if not latents:
            raise InputError("No held-out picture can be used, and the scaling factor is measured on them. Mend some (bad_samples.jsonl).")
        spread = float(np.std(latents))
        return replace(self.sizes, autoencoder=replace(config, scaling_factor=config.scaling_factor / spread))

    def _computed(self, function: Any, model: Any, pictures: Iterable[Image.Image]) -> Iterator[Float[np.ndarray, "h w c"]]:
        """What a function of autoencoder and pixels makes of each picture; as many at once as `AT_ONCE` allows."""
        side, left = self.config.data.resolution, iter(pictures)
        size = max(1, AT_ONCE // side**2)
        while batch := list(islice(left, size)):
            pixels = np.stack([autoencoder_pixels(picture, (side, side)) for picture in batch])
            yield from np.asarray(to_host(function(model.autoencoder, jnp.asarray(pixels))))


@jax.jit
def _reconstruct(autoencoder: Any, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    return autoencoder.decode(autoencoder.encode(pixels))


@jax.jit
def _encode(autoencoder: Any, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b rows columns c"]:
    return autoencoder.encode(pixels)
