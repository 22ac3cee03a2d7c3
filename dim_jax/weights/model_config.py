"""The parts that a checkpoint holds, with their configs, and the shapes of all their parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dim_jax.errors import InputError, check
from dim_jax.models.connector import Connector
from dim_jax.models.dc_ae import DCAE
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.hf_config import HFConfig
from dim_jax.models.module import parameters, shapes
from dim_jax.models.qwen import Qwen, QwenConfig
from dim_jax.models.sana import Sana
from dim_jax.models.sana_config import SanaConfig
from dim_jax.rng import key_seed
from dim_jax.settings import Settings
from dim_jax.weights.table import Shape


@dataclass(frozen=True)
class ModelConfig:
    """Configs of the parts that a checkpoint has. It has a connector if it has both encoder and SANA."""

    encoder: QwenConfig | None = None
    sana: SanaConfig | None = None
    autoencoder: DCAEConfig | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, which begin the paths of their parameters."""
        return tuple(self.modules())

    @property
    def is_whole(self) -> bool:
        """Whether it has all parts of Draw-In-Mind."""
        return len(self.parts) == 4

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Read what `to_json` returns (the config.json of a checkpoint folder).

        Raises:
            InputError: a part is unknown, or its config is invalid.
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
        configs = {
            "encoder": self.encoder and self.encoder.to_hf(),
            "sana": self.sana and self.sana.to_json(),
            "autoencoder": self.autoencoder and self.autoencoder.to_hf(),
        }
        return {name: config for name, config in configs.items() if config is not None}

    def modules(self, *, dtype: DTypeLike = jnp.float32) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
        """Part -> a function that makes it with initial parameters; `dtype` is that of its computation."""
        encoder, sana, autoencoder = self.encoder, self.sana, self.autoencoder
        makers: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {}
        if encoder is not None:
            makers["encoder"] = lambda rngs: Qwen(encoder, dtype=dtype, rngs=rngs)
        if encoder is not None and sana is not None:
            makers["connector"] = lambda rngs: Connector(encoder.text.hidden_size, sana.caption_channels, dtype=dtype, rngs=rngs)
        if sana is not None:
            makers["sana"] = lambda rngs: Sana(sana, dtype=dtype, rngs=rngs)
        if autoencoder is not None:
            makers["autoencoder"] = lambda rngs: DCAE(autoencoder, dtype=dtype, rngs=rngs)
        return makers

    def init(self, part: str, seed: int) -> dict[str, jax.Array]:
        """Path -> float32 array of every parameter of a part, initialized."""
        module = self.modules()[part](nnx.Rngs(key_seed(seed, f"params/{part}")))
        return {f"{part}.{path}": tensor for path, tensor in parameters(module).items()}

    def shapes(self) -> dict[str, Shape]:
        """Path -> shape of every parameter of every part; nothing is computed."""
        return _shapes(self)


@cache
def _shapes(config: ModelConfig) -> dict[str, Shape]:
    paths: dict[str, Shape] = {}
    for part, make in config.modules().items():
        module = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        paths |= {f"{part}.{path}": shape for path, shape in shapes(module).items()}
    return paths


# The config.json of diffusers' SanaTransformer2DModel: what is the same in every SANA 1.5, and sizes with diffusers' defaults.
SAME_IN_DIFFUSERS = {
    "_class_name": "SanaTransformer2DModel", "dropout": 0.0, "attention_bias": False, "patch_size": 1, "norm_elementwise_affine": False,
    "norm_eps": 1e-6, "guidance_embeds": False, "qk_norm": "rms_norm_across_heads", "timestep_scale": 1.0,
}  # fmt: skip
SIZES_IN_DIFFUSERS = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
    "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240, "caption_channels": 2304,
    "mlp_ratio": 2.5,
}  # fmt: skip


def sana_from_diffusers(source: Any, condition_length: int) -> SanaConfig:
    """The sizes in the config.json (path or content) of diffusers' `SanaTransformer2DModel`, which does not know the null table.

    Raises:
        InputError: the file cannot be read, or asks for what no SANA 1.5 has; the message names the key.
    """
    values = HFConfig(source, "transformer/config.json")
    for key, value in SAME_IN_DIFFUSERS.items():
        values.only(key, value)
    check(
        "interpolation_scale" not in values and "qk_norm" in values,
        f"{values.name}: interpolation_scale {values.values.get('interpolation_scale')} and qk_norm {values.values.get('qk_norm')}: "
        "only SANA 1.5 is supported, which has no positional embedding (null) and normalised queries (rms_norm_across_heads).",
    )
    sizes = {key: values.get(key, type(default), default) for key, default in SIZES_IN_DIFFUSERS.items()}
    width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    if {sizes["num_cross_attention_heads"] * sizes["cross_attention_head_dim"], sizes["cross_attention_dim"]} != {width}:
        raise InputError(f"{values.name}: the cross-attention's heads and width do not make {width}, the width of the linear attention.")
    config = {
        "latent_channels": sizes["out_channels"], "width": width, "depth": sizes["num_layers"],
        "cross_heads": sizes["num_cross_attention_heads"], "linear_head_dim": sizes["attention_head_dim"],
        "caption_channels": sizes["caption_channels"], "condition_length": condition_length, "mlp_ratio": sizes["mlp_ratio"],
    }  # fmt: skip
    return SanaConfig.from_json({"in_channels": sizes["in_channels"], "config": config})


def sana_to_diffusers(config: SanaConfig) -> dict[str, Any]:
    """The content of a config.json that diffusers' `SanaTransformer2DModel` loads."""
    width, heads, head_dim = config.width, config.cross_heads, config.linear_head_dim
    sizes = (
        config.in_channels, config.latent_channels, width // head_dim, head_dim, config.depth, heads, width // heads, width,
        config.caption_channels, config.mlp_ratio,
    )  # fmt: skip
    return {**SAME_IN_DIFFUSERS, **dict(zip(SIZES_IN_DIFFUSERS, sizes, strict=True)), "sample_size": 32, "interpolation_scale": None}


def scheduler_to_diffusers(settings: Settings) -> dict[str, Any]:
    """The content of a scheduler_config.json with which diffusers' `DPMSolverMultistepScheduler` takes the steps of these settings; its
    first order is Euler's.
    """
    return {
        "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero",
        "flow_shift": settings.flow_shift, "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "flow_prediction",
        "solver_order": 1 if settings.solver == "euler" else 2, "use_flow_sigmas": True,
    }  # fmt: skip
