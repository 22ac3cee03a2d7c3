"""Sizes of a DC-AE, read from and written to the config.json of diffusers' `AutoencoderDC`."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dim_jax.errors import check, prefix_errors
from dim_jax.models.hf_config import HFConfig, Source

RES_BLOCK, VIT_BLOCK = "ResBlock", "EfficientViTBlock"
# Values of keys that config.json lacks: the defaults of AutoencoderDC, which published files rely on.
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
        for key in ("latent_channels", "attention_head_dim", "scaling_factor"):
            check(getattr(self, key) > 0, f"{key}: {getattr(self, key)} must be positive.")
        for side, stages in (("encoder", self.encoder), ("decoder", self.decoder)):
            widths = f"{side}_block_out_channels"
            check(all(stage.d > 0 for stage in stages), f"{widths}: a width is not positive.")
            for i, stage in enumerate(stages):
                kinds, head = (RES_BLOCK, VIT_BLOCK), self.attention_head_dim
                check(stage.block in kinds, f"{side}_block_types: {stage.block!r} is not supported, only {' and '.join(kinds)}.")
                may_be_empty = side == "decoder" and i == 0 < len(stages) - 1  # then the last layer doubles the side
                fewest = 0 if may_be_empty else 1
                check(stage.depth >= fewest, f"{side}_layers_per_block: stage {i} has {stage.depth} layers, not {fewest} or more.")
                whole_heads = stage.block != VIT_BLOCK or stage.d % head == 0
                check(whole_heads, f"{widths}: {stage.d} is not a multiple of attention_head_dim {head}.")
                odd = all(size > 0 and size % 2 for size in stage.scales)
                check(odd, f"{side}_qkv_multiscales: stage {i} has kernel sizes {stage.scales}, only odd ones are supported.")
            for fine, coarse in pairwise(stage.d for stage in stages):
                # The residual paths average or repeat whole channels when four pixels become one.
                check((4 * fine) % coarse == 0, f"{widths}: four times {fine} is not a multiple of the next width {coarse}.")
            last, latent = stages[-1].d, self.latent_channels
            check(last % latent == 0, f"{widths}: {last} is not a multiple of latent_channels {latent}.")
        decoder_stages, encoder_stages = len(self.decoder), len(self.encoder)
        check(
            decoder_stages == encoder_stages, f"decoder_block_out_channels: {decoder_stages} stages, but the encoder has {encoder_stages}."
        )

    @property
    def factor(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.encoder) - 1)

    @property
    def fine_stages(self) -> int:
        """How many of the finest stages may run in tiles: those before the first with attention, and at most half of all."""
        blocks = [
            {encoder_stage.block, decoder_stage.block} for encoder_stage, decoder_stage in zip(self.encoder, self.decoder, strict=True)
        ]
        return next((i for i, kinds in enumerate(blocks) if VIT_BLOCK in kinds or 2 * i >= len(blocks)), 0)

    @property
    def cell(self) -> int:
        """Pixels a side, per point of the grid between fine and coarse stages."""
        return 2**self.fine_stages

    def halo(self, stages: tuple[Stage, ...]) -> int:
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
    def nano(cls) -> "DCAEConfig":
        """Four stages (8 pixels a cell), 16 channels, 2.5 M parameters; trained on emoji (docs/nano.md)."""
        widths = (32, 64, 128, 128)
        encoder, decoder = _stages(widths, (1, 1, 1, 2), vit_from=3), _stages(widths, (1, 1, 1, 2), vit_from=3)
        return cls(encoder, decoder, latent_channels=16, attention_head_dim=32, scaling_factor=1.0)

    @classmethod
    def tiny(cls) -> "DCAEConfig":
        """Four stages (8 pixels a cell), 0.47 M parameters, for tests."""
        widths = (16, 32, 32, 64)
        encoder, decoder = _stages(widths, (1, 2, 1, 2), vit_from=2), _stages(widths, (2, 1, 2, 1), vit_from=2)
        return cls(encoder, decoder, latent_channels=8, attention_head_dim=16)

    @classmethod
    def from_hf(cls, source: Source) -> "DCAEConfig":
        """From the config.json of an `AutoencoderDC` (a path, or its values).

        Raises:
            InputError: the file cannot be read, or a key is unknown or has a value that is not supported; the message names it.
        """
        read = HFConfig(source, "config.json")
        given = {key: value for key, value in read.values.items() if not key.startswith("_") and value is not None}
        unknown = sorted(given.keys() - DEFAULTS.keys())
        check(not unknown, f"{read.name}: unknown keys {unknown}. Is it the config.json of an AutoencoderDC?")
        values = HFConfig(DEFAULTS | given, read.name)
        for key, allowed in ONLY.items():
            values.only(key, *allowed)
        sides = {side: values.get(f"{side}_block_out_channels", tuple[int, ...]) for side in ("encoder", "decoder")}
        for side, widths in sides.items():
            check(widths != (), f"{values.name}: {side}_block_out_channels is empty.")
        for key, allowed in ONLY_EACH.items():
            wrong = set(_column(values, key, str, len(sides["decoder"]))) - {allowed}
            check(not wrong, f"{values.name}: {key} has {', '.join(sorted(wrong))}, but only {allowed} is supported.")
        with prefix_errors(values.name):
            return cls(
                **{side: _stages_from_hf(values, side, widths) for side, widths in sides.items()},
                latent_channels=values.get("latent_channels", int),
                attention_head_dim=values.get("attention_head_dim", int),
                upsample=values.get("upsample_block_type", str),
                decoder_activation=values.get("decoder_conv_act_fn", str),
                scaling_factor=values.get("scaling_factor", float),
            )

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


def _stages_from_hf(values: HFConfig, side: str, widths: tuple[int, ...]) -> tuple[Stage, ...]:
    depths = values.get(f"{side}_layers_per_block", tuple[int, ...])
    check(len(depths) == len(widths), f"{side}_layers_per_block has {len(depths)} entries for {len(widths)} stages.")
    blocks = _column(values, f"{side}_block_types", str, len(widths))
    scales = _column(values, f"{side}_qkv_multiscales", list | tuple, len(widths))
    check(all(type(size) is int for sizes in scales for size in sizes), f"{side}_qkv_multiscales has {scales}, expected lists of integers.")
    # Only a ViT block has scales: AutoencoderDC ignores those of other stages, and so the default list may name some.
    return tuple(
        Stage(block, d, depth, tuple(sizes) if block == VIT_BLOCK else ())
        for d, block, depth, sizes in zip(widths, blocks, depths, scales, strict=True)
    )


def _column(values: HFConfig, key: str, kind: Any, count: int) -> list[Any]:
    """One entry for each of `count` stages; a single string stands for all."""
    value = values.values[key]
    if kind is str and isinstance(value, str):
        return [value] * count
    well_formed = isinstance(value, list | tuple) and len(value) == count and all(isinstance(item, kind) for item in value)
    check(well_formed, f"{key} is {value!r}, expected {'a string or ' if kind is str else ''}a list of {count}, one for each stage.")
    return list(value)
