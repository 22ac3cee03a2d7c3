"""Sizes of a SANA, and the config files that hold them."""

from dataclasses import asdict, dataclass, replace

from dim_jax.errors import InputError, check
from dim_jax.models.hf_config import HFConfig
from dim_jax.storage.paths import AnyPath


@dataclass(frozen=True)
class SanaConfig:
    """Sizes of one SANA; `in_channels` is `latent_channels` for text to image and twice that for edits."""

    in_channels: int
    latent_channels: int
    width: int
    depth: int
    cross_heads: int
    linear_head_dim: int
    caption_channels: int
    condition_length: int
    mlp_ratio: float = 2.5

    @classmethod
    def sana_1600m(cls, *, edit: bool = False, condition_length: int = 8192) -> "SanaConfig":
        """SANA1.5-1.6B as Draw-In-Mind trains it."""
        return cls(64 if edit else 32, 32, 2240, 20, 20, 32, 2304, condition_length)

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
        if unknown := sorted(set(sizes.values) - set(cls.__annotations__)):
            raise InputError(f"{sizes.name}: unknown keys {', '.join(unknown)}. Expected are {', '.join(list(cls.__annotations__)[1:])}.")
        config = sizes.build(cls, in_channels=read.get("in_channels", int))
        wrong = {key: value for key, value in asdict(config).items() if value <= 0}
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
        """What `from_json` reads."""
        sizes = asdict(self)
        return {"in_channels": sizes.pop("in_channels"), "config": sizes}

    def grow(self, *, edit: bool, condition_length: int) -> "SanaConfig":
        """The sizes of a larger form: source channels for edits, more rows of the null table.

        Raises:
            InputError: the model would shrink.
        """
        check(
            self.is_edit <= edit and condition_length >= self.condition_length,
            f"SANA with {self.in_channels} input channels and {self.condition_length} null rows cannot shrink to edit={edit} and "
            f"{condition_length} rows. Give at least these sizes.",
        )
        return replace(self, in_channels=self.latent_channels * (1 + edit), condition_length=condition_length)

    @property
    def is_edit(self) -> bool:
        """Whether the network reads source latents."""
        return self.in_channels == 2 * self.latent_channels
