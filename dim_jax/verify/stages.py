"""The stages of an edit, the part that each shows, and how far two computations of it may differ."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

Stages = dict[str, np.ndarray]  # stage -> what came out of it
Tensors = dict[str, np.ndarray]  # our path -> parameter

SIGMAS = (0.875, 0.5, 0.125)  # exact in float32, so that both sides see the same integer timestep
VELOCITIES = {sigma: f"velocity at {sigma}" for sigma in SIGMAS}


class Stage(NamedTuple):
    """`part` is at fault where this stage differs and those that it `needs` do not. The others are tolerances, by the dtype of ours."""

    part: str
    needs: tuple[str, ...]
    float32: float
    bfloat16: float


# Root mean square of the difference, in parts of the signal. float32: as tests/parity (its rtol); bfloat16: several times what was
# measured (docs/verify.md).
STAGES = {
    "tokens": Stage("tokenizer", (), 0, 0),
    "patches": Stage("processor", (), 1e-6, 1e-6),
    "encoder states": Stage("encoder", ("tokens", "patches"), 1e-4, 0.05),
    "condition": Stage("connector", ("encoder states",), 1e-4, 0.05),
    "source latents": Stage("autoencoder", (), 1e-4, 0.05),
    **{name: Stage("sana", ("condition", "source latents"), 1e-4, 0.1) for name in VELOCITIES.values()},
    "latents": Stage("sampler", tuple(VELOCITIES.values()), 1e-3, 0.3),
    "picture": Stage("autoencoder", ("latents",), 1e-3, 0.3),
}


def blamed(failed: Collection[str]) -> dict[str, str]:
    """Part -> the stage that shows it: of the stages that failed, those that saw nothing wrong."""
    first = [name for name, stage in STAGES.items() if name in failed and not set(stage.needs) & set(failed)]
    return {STAGES[name].part: name for name in reversed(first)}
