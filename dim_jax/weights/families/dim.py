"""Draw-In-Mind (arXiv 2509.01986): Qwen2.5-VL, a two-layer connector, SANA-1.5 with a learned null condition."""

from functools import partial

from dim_jax.models.qwen import QwenConfig
from dim_jax.processing.processor import Processor
from dim_jax.weights.families import Family, chat_processor

FAMILY = Family("Draw-In-Mind", "qwen2_5_vl", QwenConfig, partial(chat_processor, Processor))
