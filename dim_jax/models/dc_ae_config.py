"""Sizes of a DC-AE, read from and written to the config.json of diffusers' `AutoencoderDC`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dim_jax.errors import InputError

RES_BLOCK, VIT_BLOCK = "ResBlock", "EfficientViTBlock"
# What a key means when config.json lacks it: the defaults of AutoencoderDC, which published files rely on.
DEFAULTS = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": RES_BLOCK,
    "decoder_block_types": RES_BLOCK,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
}
# Other values exist in AutoencoderDC; no autoencoder that SANA was published with uses them.
ONLY = {
    "in_channels": (3,),
    "upsample_block_type": ("interpolate", "pixel_shuffle"),
    "downsample_block_type": ("Conv",),
    "encoder_out_shortcut": (True,),
    "decoder_in_shortcut": (True,),
    "decoder_conv_act_fn": ("relu", "silu"),
}
ONLY_EACH = {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}  # one for all stages or a list of one each
PER_STAGE = ("encoder_block_types", "decoder_block_types", *ONLY_EACH)


@dataclass(frozen=True)
class Stage:
    """`depth` blocks of width `d` at one resolution; `scales` are the kernel sizes of the coarser q, k and v of a ViT block."""

    block: str
    d: int
    depth: int
    scales: tuple[int, ...] = ()


@dataclass(frozen=True)
class DCAEConfig:
    """Sizes of a DC-AE; stages from the finest resolution to the coarsest.

    `upsample` is "interpolate" or "pixel_shuffle", `decoder_activation` (before the last layer) "relu" or "silu".

    Raises:
        InputError: the sizes do not fit together; the message names the key of config.json.
    """

    encoder: tuple[Stage, ...]
    decoder: tuple[Stage, ...]
    latent_channels: int = 32
    attention_head_dim: int = 32
    upsample: str = "interpolate"
    decoder_activation: str = "relu"
    scaling_factor: float = 0.41407

    def __post_init__(self):
        for side, stages in (("encoder", self.encoder), ("decoder", self.decoder)):
            if not stages:
                raise InputError(f"{side}_block_out_channels: no stages, at least 1 is needed.")
            widths = [stage.d for stage in stages]
            for i, stage in enumerate(stages):
                if stage.block not in (RES_BLOCK, VIT_BLOCK):
                    raise InputError(f"{side}_block_types: {stage.block!r} is not supported, only {RES_BLOCK} and {VIT_BLOCK}.")
                may_be_empty = side == "decoder" and i == 0 < len(stages) - 1  # then the last layer doubles the side
                if stage.depth < (0 if may_be_empty else 1):
                    raise InputError(f"{side}_layers_per_block: stage {i} has {stage.depth} layers, at least 1 is needed.")
                if stage.block == VIT_BLOCK and stage.d % self.attention_head_dim:
                    raise InputError(
                        f"{side}_block_out_channels: {stage.d} is no multiple of attention_head_dim {self.attention_head_dim}."
                    )
                if any(size < 1 or size % 2 == 0 for size in stage.scales):
                    raise InputError(f"{side}_qkv_multiscales: stage {i} has kernel sizes {stage.scales}, only odd ones are supported.")
            for fine, coarse in pairwise(widths):
                # The residual paths average or repeat whole channels when four pixels become one.
                if (4 * fine) % coarse:
                    raise InputError(f"{side}_block_out_channels: four times {fine} is no multiple of the next width {coarse}.")
            if widths[-1] % self.latent_channels:
                raise InputError(f"{side}_block_out_channels: {widths[-1]} is no multiple of latent_channels {self.latent_channels}.")
        if len(self.encoder) != len(self.decoder):
            raise InputError(f"decoder_block_out_channels: {len(self.decoder)} stages, but the encoder has {len(self.encoder)}.")
        if not self.scaling_factor > 0:
            raise InputError(f"scaling_factor: {self.scaling_factor} is not positive.")

    @property
    def factor(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.encoder) - 1)

    @property
    def fine_stages(self) -> int:
        """How many of the finest stages may run in tiles: those before the first with attention, and at most half of all."""
        blocks = [{one.block, other.block} for one, other in zip(self.encoder, self.decoder, strict=True)]
        return next((i for i, kinds in enumerate(blocks) if VIT_BLOCK in kinds or 2 * i >= len(blocks)), 0)

    @property
    def cell(self) -> int:
        """Pixels a side, per point of the grid between fine and coarse stages."""
        return 2**self.fine_stages

    def rim(self, stages: tuple[Stage, ...]) -> int:
        """Cells (points of that grid) that the fine stages see at most around one: each 3 x 3 convolution reaches one point further.

        Two convolutions a block, one for the change of resolution (counted at the coarser side of it), and one for the pixels.
        """
        pixels = 1 + sum(2**i * (2 * stage.depth + 2) for i, stage in enumerate(stages[: self.fine_stages]))
        return -(-pixels // self.cell)

    @classmethod
    def f32c32(cls) -> "DCAEConfig":
        """The autoencoder of SANA 1.5 and of Draw-In-Mind (mit-han-lab/dc-ae-f32c32-sana-1.1): 312 M parameters."""
        widths = (128, 256, 512, 512, 1024, 1024)
        return cls(_stages(widths, (2, 2, 2, 3, 3, 3), vit_from=3), _stages(widths, (3,) * 6, vit_from=3))

    @classmethod
    def tiny(cls) -> "DCAEConfig":
        """Four stages (8 pixels a cell), 0.47 M parameters, for tests."""
        widths = (16, 32, 32, 64)
        encoder, decoder = _stages(widths, (1, 2, 1, 2), vit_from=2), _stages(widths, (2, 1, 2, 1), vit_from=2)
        return cls(encoder, decoder, latent_channels=8, attention_head_dim=16)

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> "DCAEConfig":
        """The sizes in the config.json of an `AutoencoderDC`, given as its path or its content.

        Raises:
            InputError: the file cannot be read, or a key has a value that is not supported; the message names it.
        """
        where = "config.json" if isinstance(source, Mapping) else str(source)
        found = dict(source) if isinstance(source, Mapping) else _read(Path(source))
        found = {key: value for key, value in found.items() if not key.startswith("_")}
        if unknown := sorted(found.keys() - DEFAULTS.keys()):
            raise InputError(f"{where}: unknown keys {unknown}. Is it the config.json of an AutoencoderDC?")
        values = DEFAULTS | found
        for key, value in values.items():
            if not _like(value, DEFAULTS[key]) and not (key in PER_STAGE and _like(value, ("",))):
                raise InputError(f"{where}: {key} is {value!r}, expected something like {DEFAULTS[key]!r}.")
        for key, allowed in ONLY.items():
            if values[key] not in allowed:
                raise InputError(f"{where}: {key} is {values[key]!r}; supported: {', '.join(map(repr, allowed))}.")
        for key, allowed in ONLY_EACH.items():
            if set([values[key]] if isinstance(values[key], str) else values[key]) != {allowed}:
                raise InputError(f"{where}: {key} is {values[key]!r}; supported: {allowed!r} in every stage.")
        try:
            return cls(
                encoder=_stages_from_hf(values, "encoder"),
                decoder=_stages_from_hf(values, "decoder"),
                latent_channels=values["latent_channels"],
                attention_head_dim=values["attention_head_dim"],
                upsample=values["upsample_block_type"],
                decoder_activation=values["decoder_conv_act_fn"],
                scaling_factor=values["scaling_factor"],
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The content of a config.json that `AutoencoderDC` loads; `from_hf` reads the same sizes back."""
        sides = {"encoder": self.encoder, "decoder": self.decoder}
        return {
            "_class_name": "AutoencoderDC",
            "in_channels": 3,
            "latent_channels": self.latent_channels,
            "attention_head_dim": self.attention_head_dim,
            **{f"{side}_block_types": [stage.block for stage in stages] for side, stages in sides.items()},
            **{f"{side}_block_out_channels": [stage.d for stage in stages] for side, stages in sides.items()},
            **{f"{side}_layers_per_block": [stage.depth for stage in stages] for side, stages in sides.items()},
            **{f"{side}_qkv_multiscales": [list(stage.scales) for stage in stages] for side, stages in sides.items()},
            "upsample_block_type": self.upsample,
            "downsample_block_type": "Conv",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
            "encoder_out_shortcut": True,
            "decoder_in_shortcut": True,
            "decoder_conv_act_fn": self.decoder_activation,
            "scaling_factor": self.scaling_factor,
        }


def _stages(widths: tuple[int, ...], depths: tuple[int, ...], *, vit_from: int) -> tuple[Stage, ...]:
    """Residual blocks at the fine resolutions, EfficientViT blocks with one coarser scale of 5 from stage `vit_from`."""
    return tuple(
        Stage(VIT_BLOCK, d, depth, (5,)) if i >= vit_from else Stage(RES_BLOCK, d, depth)
        for i, (d, depth) in enumerate(zip(widths, depths, strict=True))
    )


def _stages_from_hf(values: Mapping[str, Any], side: str) -> tuple[Stage, ...]:
    widths = values[f"{side}_block_out_channels"]
    blocks = values[f"{side}_block_types"]
    columns = {
        "block_types": [blocks] * len(widths) if isinstance(blocks, str) else blocks,
        "layers_per_block": values[f"{side}_layers_per_block"],
        "qkv_multiscales": values[f"{side}_qkv_multiscales"],
    }
    for key, column in columns.items():
        if len(column) != len(widths):
            raise InputError(f"{side}_{key}: {len(column)} entries, but {side}_block_out_channels has {len(widths)} stages.")
    # Only a ViT block has scales: AutoencoderDC ignores those of other stages, and so the default list may name some.
    return tuple(
        Stage(block, d, depth, tuple(scales) if block == VIT_BLOCK else ())
        for d, block, depth, scales in zip(widths, *columns.values(), strict=True)
    )


def _like(value: Any, example: Any) -> bool:
    """Whether a JSON value has the type of `example`; a list has any length and items like the example's last."""
    if isinstance(example, tuple):
        return isinstance(value, (list, tuple)) and all(_like(item, example[-1]) for item in value)
    return type(value) is type(example) or (type(example) is float and type(value) is int)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a JSON {type(content).__name__}, expected an object of settings.")
    return content
