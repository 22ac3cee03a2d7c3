"""The stages of an edit, the part that each tests, and the tolerances of two computations of it."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

Stages = dict[str, np.ndarray]  # stage -> its output
Tensors = dict[str, np.ndarray]  # our path -> parameter

SIGMAS = (0.875, 0.5, 0.125)  # exact in float32, so that both sides see the same integer timestep
VELOCITIES = {sigma: f"velocity at {sigma}" for sigma in SIGMAS}


class Stage(NamedTuple):
    """If this stage differs and those that it `needs` do not, `part` is wrong. The other fields are tolerances by our dtype."""

    part: str
    needs: tuple[str, ...]
    float32: float
    bfloat16: float


# Root mean square of the difference, relative to the signal. float32: as tests/parity (its rtol); bfloat16: several times what was
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


def faulty_parts(failed: Collection[str]) -> dict[str, str]:
    """Wrong part -> the failed stage that shows it; its inputs come from stages that did not fail."""
    first = [name for name, stage in STAGES.items() if name in failed and not set(stage.needs) & set(failed)]
    return {STAGES[name].part: name for name in reversed(first)}
