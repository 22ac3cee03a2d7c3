"""The edit that both sides compute: a bundled picture and prompt, noise from numpy; the same on every machine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.data.inputs import EncoderInputs
from dim_jax.data.pictures import open_picture
from dim_jax.data.processor import Processor
from dim_jax.errors import InputError
from dim_jax.models.dim import DimConfig
from dim_jax.settings import Settings
from dim_jax.weights.bundled import bundled_checkpoint

PROMPT = "White hair."
STEPS, RESOLUTION = 30, 256


@dataclass(frozen=True)
class Case:
    """Attributes:
    settings: numbers of the edit, as a file of fingerprints has them.
    inputs: what our encoder reads.
    """

    config: DimConfig
    settings: Mapping[str, Any]
    picture: Image.Image
    inputs: EncoderInputs

    @property
    def noise(self) -> Float[np.ndarray, "h w c"]:
        """Of the velocities and of the edit."""
        cells = self.settings["resolution"] // self.config.autoencoder.factor
        # RandomState's numbers are frozen; those of a Generator may change with numpy.
        return np.random.RandomState(0).standard_normal((cells, cells, self.config.sana.latent_channels)).astype(np.float32)


def make_settings(usual: Settings, processor: Processor, resolution: int | None) -> dict[str, Any]:
    """Numbers of the edit for a checkpoint that paints as `usual`; by default as large as 256 px, the checkpoint's own and its condition
    allow."""
    chosen = resolution or min(RESOLUTION, usual.resolution)
    while resolution is None and replace(processor, resolution=chosen).condition_tokens(PROMPT, pictures=1) > processor.condition_length:
        chosen //= 2
    return {"resolution": chosen, "num_steps": STEPS, "guidance_scale": usual.guidance_scale, "flow_shift": usual.flow_shift}


def make_case(config: DimConfig, processor: Processor, settings: Mapping[str, Any]) -> Case:
    """The edit with these settings.

    Raises:
        InputError: the resolution is not a multiple of the autoencoder's factor, or the condition is too short for it.
    """
    side = settings["resolution"]
    if side % config.autoencoder.factor:
        raise InputError(f"--resolution {side}: it must be a multiple of {config.autoencoder.factor} pixels for this autoencoder.")
    picture = open_picture(bundled_checkpoint() / "samples/woman.png")
    inputs = replace(processor, resolution=side)([PROMPT], [[picture]])
    return Case(config, settings, picture, inputs)
