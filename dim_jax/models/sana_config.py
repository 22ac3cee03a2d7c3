"""Sizes of a SANA, and the config files that hold them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dim_jax.errors import InputError, check
from dim_jax.models.hf_config import HFConfig, Source
from dim_jax.storage.paths import AnyPath


@dataclass(frozen=True)
class SanaConfig:
    """Sizes of one SANA; `in_channels` is `latent_channels` for text to image and twice that for edits.

    `null_table`: it has learned a null condition of `condition_length` rows. `guidance_embeds`: the guidance scale is an input, as SANA-
    Sprint is (arXiv 2503.09641), and needs no unconditional branch. `velocities`: how many it predicts for each latent, on a grid of times
    (`diffusion.policy`); more than 1 only while it is distilled, so no file says so.
    """

    in_channels: int
    latent_channels: int
    width: int
    depth: int
    cross_heads: int
    linear_head_dim: int
    caption_channels: int
    condition_length: int
    mlp_ratio: float = 2.5
    null_table: bool = True
    guidance_embeds: bool = False
    velocities: int = 1

    @classmethod
    def sana_1600m(cls, *, edit: bool = False, condition_length: int = 8192) -> "SanaConfig":
        """SANA1.5-1.6B as Draw-In-Mind trains it."""
        return cls(64 if edit else 32, 32, 2240, 20, 20, 32, 2304, condition_length)

    @classmethod
    def sana_4800m(cls, *, condition_length: int = 300) -> "SanaConfig":
        """SANA1.5-4.8B, the 1.6B with three times the blocks."""
        return replace(cls.sana_1600m(condition_length=condition_length), depth=60)

    @classmethod
    def nano(cls, *, edit: bool = False, condition_length: int = 256) -> "SanaConfig":
        """6.3 M parameters for latents of 16 channels; trained on emoji (docs/nano.md)."""
        return cls(32 if edit else 16, 16, 256, 6, 4, 32, 256, condition_length, mlp_ratio=2.0)

    @classmethod
    def tiny(cls, *, edit: bool = False, condition_length: int = 256) -> "SanaConfig":
        """0.2 M parameters for the tiny autoencoder's 8 channels, for tests."""
        return cls(16 if edit else 8, 8, 64, 2, 2, 32, 48, condition_length)

    @classmethod
    def from_json(cls, source: AnyPath | dict) -> "SanaConfig":
        """Read `sana_edit.json` or `sana_t2i.json`: the sizes under "config", the input channels beside it.

        Raises:
            InputError: the file is not JSON, a key is missing, unknown or of another type, or the sizes contradict each other.
        """
        read = HFConfig(source, "the SANA config")
        sizes = read.child("config")
        known = [field.name for field in fields(cls) if field.name not in ("in_channels", "velocities")]
        if unknown := sorted(set(sizes.values) - {*known, "in_channels"}):
            raise InputError(f"{sizes.name}: unknown keys {', '.join(unknown)}. Expected are {', '.join(known)}.")
        config = sizes.build(cls, in_channels=read.get("in_channels", int))
        wrong = {key: value for key, value in asdict(config).items() if not isinstance(value, bool) and value <= 0}
        check(
            not wrong and config.in_channels in (config.latent_channels, 2 * config.latent_channels),
            f"{read.name}: {wrong or 'in_channels'}: sizes are positive and in_channels is latent_channels ({config.latent_channels}) "
            "or twice that.",
        )
        check(
            config.width % config.cross_heads == 0 and config.width % config.linear_head_dim == 0,
            f"{read.name}: width {config.width} does not divide into {config.cross_heads} cross_heads and heads of "
            f"linear_head_dim {config.linear_head_dim}.",
        )
        return config

    def to_json(self) -> dict:
        """What `from_json` reads; flags that have their default are left out."""
        assert self.velocities == 1  # the form of training alone
        defaults = {field.name: field.default for field in fields(self) if field.type is bool or field.name == "velocities"}
        sizes = {key: value for key, value in asdict(self).items() if defaults.get(key) is not value}
        return {"in_channels": sizes.pop("in_channels"), "config": sizes}

    def grow(self, *, edit: bool, condition_length: int, guidance_embeds: bool = False, velocities: int = 1) -> "SanaConfig":
        """The sizes of a larger form: source channels for edits, more rows of the null table, an embedder of the guidance scale, several
        velocities.

        Raises:
            InputError: the model would shrink, or takes the guidance scale as an input and no longer would.
        """
        check(
            self.is_edit <= edit and condition_length >= self.null_rows and velocities >= self.velocities,
            f"SANA with {self.in_channels} input channels and {self.null_rows} null rows cannot shrink to edit={edit} and "
            f"{condition_length} rows. Give at least these sizes.",
        )
        check(
            self.guidance_embeds <= guidance_embeds,
            "This SANA takes the guidance scale as an input, as it was distilled (guidance_embeds), and learns no more without. "
            "Take the one that it was distilled from, or distil on, with a range of scales (config.distill).",
        )
        channels = self.latent_channels * (1 + edit)
        return replace(
            self, in_channels=channels, condition_length=condition_length, null_table=True, guidance_embeds=guidance_embeds,
            velocities=velocities,
        )  # fmt: skip

    def widened(self, width: int) -> "SanaConfig":
        """The same with another width, and more or fewer heads of the same width.

        Raises:
            InputError: the width is not that of whole heads.
        """
        cross_head_dim = self.width // self.cross_heads
        step = math.lcm(cross_head_dim, self.linear_head_dim)
        check(width > 0 and width % step == 0, f"A SANA of width {width} has no whole heads. Give a multiple of {step}.")
        return replace(self, width=width, cross_heads=width // cross_head_dim)

    @property
    def null_rows(self) -> int:
        """Rows of the learned null condition."""
        return self.condition_length if self.null_table else 0

    @property
    def is_edit(self) -> bool:
        """Whether the network reads source latents."""
        return self.in_channels == 2 * self.latent_channels

    @property
    def reads_sigma(self) -> bool:
        """Whether its timestep is sigma itself, as SANA-Sprint's. A Draw-In-Mind that takes the guidance scale keeps its null table, and
        the timesteps of the model that it was distilled from."""
        return self.guidance_embeds and not self.null_table


# The config.json of diffusers' SanaTransformer2DModel: what is the same in every SANA 1.5, and sizes with diffusers' defaults.
SAME_IN_DIFFUSERS = {
    "_class_name": "SanaTransformer2DModel", "dropout": 0.0, "attention_bias": False, "patch_size": 1, "norm_elementwise_affine": False,
    "norm_eps": 1e-6, "guidance_embeds": False, "qk_norm": "rms_norm_across_heads", "timestep_scale": 1.0,
}  # fmt: skip
GUIDANCE_EMBEDS_SCALE = 0.1  # of the guidance scale as a network's input, in every published SANA-Sprint
GUIDANCE_IN_DIFFUSERS = {"guidance_embeds": True, "guidance_embeds_scale": GUIDANCE_EMBEDS_SCALE}  # where the network takes the scale
SIZES_IN_DIFFUSERS = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
    "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240, "caption_channels": 2304,
    "mlp_ratio": 2.5,
}  # fmt: skip


def sana_from_diffusers(source: Source, condition_length: int, same: Mapping[str, Any] = {}, **flags: bool) -> SanaConfig:
    """The sizes in the config.json (path or content) of diffusers' `SanaTransformer2DModel`, which does not know the null table.

    `same`: what all models of a family have, where it is not `SAME_IN_DIFFUSERS`; `flags` of the result.

    Raises:
        InputError: the file cannot be read, or asks for what no SANA 1.5 has; the message names the key.
    """
    values = HFConfig(source, "transformer/config.json")
    for key, value in {**SAME_IN_DIFFUSERS, **same}.items():
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
        **flags,
    }  # fmt: skip
    return SanaConfig.from_json({"in_channels": sizes["in_channels"], "config": config})


def sana_to_diffusers(config: SanaConfig, same: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The content of a config.json that diffusers' `SanaTransformer2DModel` loads; `same` as in `sana_from_diffusers`."""
    width, heads, head_dim = config.width, config.cross_heads, config.linear_head_dim
    sizes = (
        config.in_channels, config.latent_channels, width // head_dim, head_dim, config.depth, heads, width // heads, width,
        config.caption_channels, config.mlp_ratio,
    )  # fmt: skip
    return {
        **SAME_IN_DIFFUSERS,
        **same,
        **dict(zip(SIZES_IN_DIFFUSERS, sizes, strict=True)),
        "sample_size": 32,
        "interpolation_scale": None,
    }
