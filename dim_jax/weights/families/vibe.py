"""VIBE (arXiv 2601.02242): Qwen3-VL reads picture, instruction and learned queries; SANA-1.5 sees the picture's latents on channels.

As its makers' `VIBESanaEditingPipeline` keeps it (github.com/ai-forever/VIBE), which builds on diffusers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dim_jax.models.hf_config import HFConfig, Source
from dim_jax.models.meta_connector import META_LAYERS
from dim_jax.models.qwen3 import Qwen3Config
from dim_jax.models.sana_config import SanaConfig, sana_from_diffusers
from dim_jax.processing.chat import Turn
from dim_jax.processing.inputs import EncoderInputs
from dim_jax.processing.processor import Patches, Processor
from dim_jax.settings import Settings
from dim_jax.weights import dc_ae, sana
from dim_jax.weights.families import Family, chat_processor
from dim_jax.weights.table import LINEAR, PATCH_3D, SAME, Row, add_prefix, kernel_and_bias

EDIT, GENERATE = "what will this image be like if {}", "generate the image by description: {}"
PATCH_MULTIPLE = 256  # patches of a batch's largest picture are filled up to it, for each number compiles anew
MIN_PIXELS, MAX_PIXELS = 352**2, 672**2  # of what the encoder reads


@dataclass(frozen=True)
class VibeProcessor(Processor):
    """Turns without a system message, whose prompts stand in a sentence, and after them places for the learned queries; these are what
    becomes the condition. The encoder reads pictures in their own proportions."""

    mode: str = "native"
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS

    def _turn(self, prompt: str, picture_tokens: list[int], *, generation_prompt: bool) -> Turn:
        template = EDIT if picture_tokens else GENERATE
        turn = self.tokenizer.turn(template.format(prompt.strip()), picture_tokens, generation_prompt=generation_prompt, system=False)
        end = len(turn.ids)
        queries = np.full(self.condition_length, self.tokenizer.pad_id, np.int32)
        return Turn(np.concatenate([turn.ids, queries]), (end, end + self.condition_length))

    def _batch(self, turns: Any, patches: list[Patches], lengths: Any, patch_length: int | None) -> EncoderInputs:
        largest = max((len(pixels) for pixels, _ in patches), default=0)
        return super()._batch(turns, patches, lengths, patch_length or -(-largest // PATCH_MULTIPLE) * PATCH_MULTIPLE or None)


def _sana_config(source: Source) -> SanaConfig:
    """SANA's sizes in the config.json of `VIBESanaEditingModel`, whose condition is as long as there are queries."""
    values = HFConfig(source, "transformer/config.json")
    values.only("edit_head_stacks_num", META_LAYERS)
    values.only("input_condition_type", "channel_cat")
    queries = values.get("num_meta_queries", int, 224)
    return sana_from_diffusers(source, queries, same={"_class_name": "VIBESanaEditingModel"}, null_table=False)


def _norm(hf: str, jax: str) -> tuple[Row, Row]:
    return Row(f"{hf}.weight", f"{jax}.scale", SAME), Row(f"{hf}.bias", f"{jax}.bias", SAME)


VISION = (
    *kernel_and_bias("patch_embed.proj", "patch_embed.proj", PATCH_3D),
    Row("pos_embed.weight", "pos_embed.embedding", SAME),
    *_norm("blocks.*.norm1", "blocks.norm1"),
    *_norm("blocks.*.norm2", "blocks.norm2"),
    *kernel_and_bias("blocks.*.attn.qkv", "blocks.attn.qkv"),
    *kernel_and_bias("blocks.*.attn.proj", "blocks.attn.proj"),
    *kernel_and_bias("blocks.*.mlp.linear_fc1", "blocks.mlp.linear_fc1"),
    *kernel_and_bias("blocks.*.mlp.linear_fc2", "blocks.mlp.linear_fc2"),
    *_norm("merger.norm", "merger.norm"),
    *kernel_and_bias("merger.linear_fc1", "merger.mlp.linear_fc1"),
    *kernel_and_bias("merger.linear_fc2", "merger.mlp.linear_fc2"),
    *_norm("deepstack_merger_list.*.norm", "deepstack_merger_list.norm"),
    *kernel_and_bias("deepstack_merger_list.*.linear_fc1", "deepstack_merger_list.mlp.linear_fc1"),
    *kernel_and_bias("deepstack_merger_list.*.linear_fc2", "deepstack_merger_list.mlp.linear_fc2"),
)
TEXT = (
    Row("embed_tokens.weight", "embed_tokens.embedding", SAME),
    Row("layers.*.input_layernorm.weight", "layers.input_layernorm.scale", SAME),
    Row("layers.*.post_attention_layernorm.weight", "layers.post_attention_layernorm.scale", SAME),
    *(Row(f"layers.*.self_attn.{x}_proj.weight", f"layers.self_attn.{x}_proj.kernel", LINEAR) for x in "qkvo"),
    *(Row(f"layers.*.self_attn.{x}_norm.weight", f"layers.self_attn.{x}_norm.scale", SAME) for x in "qk"),
    *(Row(f"layers.*.mlp.{x}_proj.weight", f"layers.mlp.{x}_proj.kernel", LINEAR) for x in ("gate", "up", "down")),
    Row("norm.weight", "norm.scale", SAME),
)
CONNECTOR = (
    Row("meta_queries", "meta_queries", SAME),
    *kernel_and_bias("edit_head.input_proj", "input_proj"),
    *_norm("edit_head.attn_blocks.*.input_norm", "blocks.input_norm"),
    *_norm("edit_head.attn_blocks.*.output_norm", "blocks.output_norm"),
    Row("edit_head.attn_blocks.*.attn.in_proj_weight", "blocks.in_proj.kernel", LINEAR),
    Row("edit_head.attn_blocks.*.attn.in_proj_bias", "blocks.in_proj.bias", SAME),
    *kernel_and_bias("edit_head.attn_blocks.*.attn.out_proj", "blocks.out_proj"),
    *(row for x in "123" for row in kernel_and_bias(f"edit_head.attn_blocks.*.mlp.fc{x}", f"blocks.fc{x}")),
    *_norm("edit_head.output_proj.0", "norm"),
    *kernel_and_bias("edit_head.output_proj.1", "output_proj"),
)
ENCODER = add_prefix(VISION, "model.visual.", "visual.") + add_prefix(TEXT, "model.language_model.", "model.")

FAMILY = Family(
    "VIBE",
    "qwen3_vl",
    Qwen3Config,
    partial(chat_processor, VibeProcessor),
    Settings(num_steps=20, guidance_scale=4.5, image_guidance_scale=1.2),
    add_prefix(ENCODER, "text_encoder/", "encoder.")
    + add_prefix(CONNECTOR, "transformer/", "connector.")
    + add_prefix(sana.DIFFUSERS_ROWS, "transformer/", "sana.")
    + add_prefix(dc_ae.ROWS, "vae/", "autoencoder."),
    ("text_encoder/model.language_model.", "transformer/meta_queries"),
    {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    _sana_config,
    logical_axes=(
        ("encoder.model.layers.self_attn.[qk]_norm.scale", ("layers", "small")),
        ("encoder.visual.patch_embed.proj.bias", ("small",)),
        ("encoder.visual.pos_embed.embedding", ("positions", "width")),
        ("encoder.visual.blocks.mlp.linear_fc1.kernel", ("layers", "width", "mlp")),
        ("encoder.visual.blocks.mlp.linear_fc2.kernel", ("layers", "mlp", "width")),
        ("encoder.visual.merger.norm.*", ("small",)),
        ("encoder.visual.merger.mlp.linear_fc1.kernel", ("width", "mlp")),
        ("encoder.visual.merger.mlp.linear_fc2.kernel", ("mlp", "width")),
        ("encoder.visual.merger.mlp.*.bias", ("small",)),
        ("encoder.visual.deepstack_merger_list.norm.*", ("layers", "small")),
        ("encoder.visual.deepstack_merger_list.mlp.linear_fc1.kernel", ("layers", "width", "mlp")),
        ("encoder.visual.deepstack_merger_list.mlp.linear_fc2.kernel", ("layers", "mlp", "width")),
        ("encoder.visual.deepstack_merger_list.mlp.*.bias", ("layers", "small")),
        ("connector.meta_queries", ("positions", "width")),
        ("connector.input_proj.kernel", ("width", "mlp")),
        ("connector.output_proj.kernel", ("mlp", "width")),
        ("connector.*put_proj.bias", ("small",)),
        ("connector.norm.*", ("small",)),
        ("connector.blocks.*_norm.scale", ("layers", "small")),
        ("connector.blocks.*.bias", ("layers", "small")),
        ("connector.blocks.in_proj.kernel", ("layers", "width", "mlp")),
        ("connector.blocks.out_proj.kernel", ("layers", "mlp", "width")),
        ("connector.blocks.fc[13].kernel", ("layers", "width", "mlp")),
        ("connector.blocks.fc2.kernel", ("layers", "mlp", "width")),
    ),
)
