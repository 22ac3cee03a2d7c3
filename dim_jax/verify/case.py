"""The edit that both sides compute: a bundled picture and prompt, noise from numpy; the same on every machine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.errors import InputError
from dim_jax.models.dim import DimConfig
from dim_jax.processing.inputs import EncoderInputs
from dim_jax.processing.pictures import open_picture
from dim_jax.processing.processor import Processor
from dim_jax.settings import Settings
from dim_jax.weights.bundled import bundled_checkpoint

PROMPT = "White hair."
STEPS, RESOLUTION = 30, 256


@dataclass(frozen=True)
class Case:
    """Attributes:
    settings: of the edit, as in a file of fingerprints.
    inputs: of our encoder.
    """

    config: DimConfig
    settings: Mapping[str, Any]
    picture: Image.Image
    inputs: EncoderInputs

    @property
    def noise(self) -> Float[np.ndarray, "h w c"]:
        """The noise of the velocities and of the edit."""
        cells = self.settings["resolution"] // self.config.autoencoder.factor
        # RandomState's numbers are frozen; those of a Generator may change with numpy.
        return np.random.RandomState(0).standard_normal((cells, cells, self.config.sana.latent_channels)).astype(np.float32)


def make_settings(checkpoint: Settings, processor: Processor, resolution: int | None) -> dict[str, Any]:
    """Settings of the edit, from those of the checkpoint. The default resolution is the largest of at most 256 px and the checkpoint's own
    whose condition fits."""
    size = resolution or min(RESOLUTION, checkpoint.resolution)
    while resolution is None and replace(processor, resolution=size).condition_tokens(PROMPT, pictures=1) > processor.condition_length:
        size //= 2
    return {"resolution": size, "num_steps": STEPS, "guidance_scale": checkpoint.guidance_scale, "flow_shift": checkpoint.flow_shift}


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
