"""The checkpoint that comes with the package: a nano Draw-In-Mind for 64 px emoji, in the published naming."""

from importlib import resources
from pathlib import Path

from dim_jax.errors import check

NANO = Path(str(resources.files("dim_jax") / "nano"))


def bundled_checkpoint() -> Path:
    """Folder of the checkpoint.

    Raises:
        InputError: this installation lacks it.
    """
    check(NANO.is_dir(), f"{NANO}: the bundled model is missing. Install the package again, or name a checkpoint (--checkpoint).")
    return NANO
