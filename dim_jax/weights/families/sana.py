"""SANA-1.5 (arXiv 2501.18427) of any size, as diffusers' `SanaPipeline` keeps it: Gemma 2 reads a text, and SANA projects its states."""

from functools import partial

from dim_jax.models.gemma import GemmaConfig
from dim_jax.models.sana_config import sana_from_diffusers
from dim_jax.processing.text import TextProcessor
from dim_jax.settings import Settings
from dim_jax.weights import dc_ae, sana
from dim_jax.weights.families import Family
from dim_jax.weights.table import LINEAR, SAME, Row, add_prefix

TOKENS = 300  # of a prompt, at most
TEXT_ENCODER = (
    Row("embed_tokens.weight", "embed_tokens.embedding", SAME),
    Row("layers.*.input_layernorm.weight", "layers.input_layernorm.scale", SAME),
    Row("layers.*.post_attention_layernorm.weight", "layers.post_attention_layernorm.scale", SAME),
    Row("layers.*.pre_feedforward_layernorm.weight", "layers.pre_feedforward_layernorm.scale", SAME),
    Row("layers.*.post_feedforward_layernorm.weight", "layers.post_feedforward_layernorm.scale", SAME),
    *(Row(f"layers.*.self_attn.{x}_proj.weight", f"layers.self_attn.{x}_proj.kernel", LINEAR) for x in "qkvo"),
    *(Row(f"layers.*.mlp.{x}_proj.weight", f"layers.mlp.{x}_proj.kernel", LINEAR) for x in ("gate", "up", "down")),
    Row("norm.weight", "norm.scale", SAME),
)
OTHER_ROWS = add_prefix(TEXT_ENCODER, "text_encoder/", "encoder.model.") + add_prefix(dc_ae.ROWS, "vae/", "autoencoder.")

FAMILY = Family(
    "SANA-1.5",
    "gemma2",
    GemmaConfig,
    TextProcessor.for_model,
    Settings(num_steps=20, guidance_scale=4.5),
    OTHER_ROWS + add_prefix(sana.DIFFUSERS_ROWS, "transformer/", "sana."),
    ("text_encoder/embed_tokens.", "transformer/time_embed.emb."),
    {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    partial(sana_from_diffusers, condition_length=TOKENS, null_table=False),
)
