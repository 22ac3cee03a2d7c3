"""The parts that a checkpoint holds, with their configs, and the shapes of all their parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dim_jax.errors import InputError
from dim_jax.models.connector import Connector
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.hf_config import HFConfig
from dim_jax.models.module import parameters, shapes
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.models.sana import Sana
from dim_jax.models.sana_config import SanaConfig
from dim_jax.rng import key_seed
from dim_jax.weights.table import Shape


@dataclass(frozen=True)
class ModelConfig:
    """Configs of the parts that are there. The connector joins encoder and SANA: it is there where both are."""

    encoder: QwenConfig | None = None
    sana: SanaConfig | None = None
    autoencoder: DCAEConfig | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, which begin the paths of their parameters."""
        return tuple(self.modules())

    @property
    def is_whole(self) -> bool:
        """Whether all of Draw-In-Mind is there."""
        return len(self.parts) == 4

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Read what `to_json` returns (the config.json of a checkpoint folder).

        Raises:
            InputError: a part is unknown, or its config does not hold together.
        """
        if not isinstance(data, Mapping) or not data or (unknown := sorted(set(data) - set(cls.__annotations__))):
            raise InputError(f"config.json: parts are {', '.join(cls.__annotations__)}; found {unknown if data else 'none'}.")
        return cls(
            encoder=QwenConfig.from_hf(data["encoder"]) if "encoder" in data else None,
            sana=SanaConfig.from_json(data["sana"]) if "sana" in data else None,
            autoencoder=DCAEConfig.from_hf(data["autoencoder"]) if "autoencoder" in data else None,
        )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads: each part's config in its published form."""
        found = {
            "encoder": self.encoder and self.encoder.to_hf(),
            "sana": self.sana and self.sana.to_json(),
            "autoencoder": self.autoencoder and self.autoencoder.to_hf(),
        }
        return {name: config for name, config in found.items() if config is not None}

    def modules(self, *, dtype: DTypeLike = jnp.float32) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
        """Part -> how to make it with fresh parameters, as training starts it; `dtype` is that of its computation."""
        encoder, sana, autoencoder = self.encoder, self.sana, self.autoencoder
        made: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {}
        if encoder is not None:
            made["encoder"] = lambda rngs: Qwen(encoder, dtype=dtype, rngs=rngs)
        if encoder is not None and sana is not None:
            made["connector"] = lambda rngs: Connector(encoder.text.hidden_size, sana.caption_channels, dtype=dtype, rngs=rngs)
        if sana is not None:
            made["sana"] = lambda rngs: Sana(sana, dtype=dtype, rngs=rngs)
        if autoencoder is not None:
            made["autoencoder"] = lambda rngs: DCAE(autoencoder, dtype=dtype, rngs=rngs)
        return made

    def init(self, part: str, seed: int) -> dict[str, jax.Array]:
        """Path -> float32 array of every parameter of a part as training starts it."""
        module = self.modules()[part](nnx.Rngs(key_seed(seed, f"params/{part}")))
        return {f"{part}.{path}": tensor for path, tensor in parameters(module).items()}

    def shapes(self) -> dict[str, Shape]:
        """Path -> shape of every parameter of every part; nothing is computed."""
        return _shapes(self)


@cache
def _shapes(sizes: ModelConfig) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for part, make in sizes.modules().items():
        module = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        found |= {f"{part}.{path}": shape for path, shape in shapes(module).items()}
    return found


def sana_from_diffusers(source: Any, condition_length: int) -> SanaConfig:
    """The sizes in the config.json (path or content) of diffusers' `SanaTransformer2DModel`, which does not know the null table.

    Raises:
        InputError: the file cannot be read, or asks for what no SANA 1.5 has; the message names the key.
    """
    values = HFConfig(source, "transformer/config.json")
    values.only("_class_name", "SanaTransformer2DModel")
    only = {"patch_size": 1, "attention_bias": False, "norm_elementwise_affine": False, "norm_eps": 1e-6, "dropout": 0.0}
    only |= {"guidance_embeds": False, "qk_norm": "rms_norm_across_heads", "timestep_scale": 1.0}
    for key, value in only.items():
        values.only(key, value)
    if "interpolation_scale" in values or "qk_norm" not in values:
        raise InputError(
            f"{values.name}: interpolation_scale {values.values.get('interpolation_scale')} and qk_norm {values.values.get('qk_norm')}: "
            "only SANA 1.5 is supported, which has no positional embedding (null) and normalised queries (rms_norm_across_heads)."
        )
    head_dim, cross_heads = values.get("attention_head_dim", int, 32), values.get("num_cross_attention_heads", int, 20)
    width = values.get("num_attention_heads", int, 70) * head_dim
    if cross_heads * values.get("cross_attention_head_dim", int, 112) != width or values.get("cross_attention_dim", int, 2240) != width:
        raise InputError(f"{values.name}: the cross-attention's heads and width do not make {width}, the width of the linear attention.")
    channels = {
        "in_channels": values.get("in_channels", int, 32),
        "config": {
            "latent_channels": values.get("out_channels", int, 32),
            "width": width,
            "depth": values.get("num_layers", int, 20),
            "cross_heads": cross_heads,
            "linear_head_dim": head_dim,
            "caption_channels": values.get("caption_channels", int, 2304),
            "condition_length": condition_length,
            "mlp_ratio": values.get("mlp_ratio", float, 2.5),
        },
    }
    return SanaConfig.from_json(channels)


def sana_to_diffusers(config: SanaConfig) -> dict[str, Any]:
    """The content of a config.json that diffusers' `SanaTransformer2DModel` loads."""
    return {
        "_class_name": "SanaTransformer2DModel",
        "in_channels": config.in_channels,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.width // config.linear_head_dim,
        "attention_head_dim": config.linear_head_dim,
        "num_layers": config.depth,
        "num_cross_attention_heads": config.cross_heads,
        "cross_attention_head_dim": config.width // config.cross_heads,
        "cross_attention_dim": config.width,
        "caption_channels": config.caption_channels,
        "mlp_ratio": config.mlp_ratio,
        "dropout": 0.0,
        "attention_bias": False,
        "sample_size": 32,
        "patch_size": 1,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "interpolation_scale": None,
        "guidance_embeds": False,
        "qk_norm": "rms_norm_across_heads",
        "timestep_scale": 1.0,
    }
