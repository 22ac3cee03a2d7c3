"""The data sets as TFDS builders that write ArrayRecord, without TensorFlow.

Importing this registers `dim_t2i`, `dim_edit`, `ultra_edit`, `sharegpt4o_image` and `emoji` with TFDS (docs/tfds.md). They are thin: rows
and pictures come from `data/sources` and `data/pairs.py`, and what they wrote is read by `data/sources/prepared.py`.
"""

from dim_jax.data.builders.build import build
from dim_jax.data.builders.sets import SETS, DimEdit, DimT2i, Emoji, Sharegpt4oImage, UltraEdit

__all__ = ["SETS", "DimEdit", "DimT2i", "Emoji", "Sharegpt4oImage", "UltraEdit", "build"]
