"""Rows of Qwen2.5-VL: published tensors <-> our `Qwen`. `*` is the layer, stacked on axis 0."""

from dim_jax.weights.table import LINEAR, PATCH_3D, SAME, Row, biased, prefixed

VISION = (
    Row("patch_embed.proj.weight", "patch_embed.proj.kernel", PATCH_3D),
    Row("blocks.*.norm1.weight", "blocks.norm1.scale", SAME),
    Row("blocks.*.norm2.weight", "blocks.norm2.scale", SAME),
    *biased("blocks.*.attn.qkv", "blocks.attn.qkv"),
    *biased("blocks.*.attn.proj", "blocks.attn.proj"),
    *biased("blocks.*.mlp.gate_proj", "blocks.mlp.gate_proj"),
    *biased("blocks.*.mlp.up_proj", "blocks.mlp.up_proj"),
    *biased("blocks.*.mlp.down_proj", "blocks.mlp.down_proj"),
    Row("merger.ln_q.weight", "merger.ln_q.scale", SAME),
    *biased("merger.mlp.0", "merger.fc1"),
    *biased("merger.mlp.2", "merger.fc2"),
)
TEXT = (
    Row("embed_tokens.weight", "embed_tokens.embedding", SAME),
    Row("layers.*.input_layernorm.weight", "layers.input_layernorm.scale", SAME),
    Row("layers.*.post_attention_layernorm.weight", "layers.post_attention_layernorm.scale", SAME),
    *biased("layers.*.self_attn.q_proj", "layers.self_attn.q_proj"),
    *biased("layers.*.self_attn.k_proj", "layers.self_attn.k_proj"),
    *biased("layers.*.self_attn.v_proj", "layers.self_attn.v_proj"),
    Row("layers.*.self_attn.o_proj.weight", "layers.self_attn.o_proj.kernel", LINEAR),
    Row("layers.*.mlp.gate_proj.weight", "layers.mlp.gate_proj.kernel", LINEAR),
    Row("layers.*.mlp.up_proj.weight", "layers.mlp.up_proj.kernel", LINEAR),
    Row("layers.*.mlp.down_proj.weight", "layers.mlp.down_proj.kernel", LINEAR),
    Row("norm.weight", "norm.scale", SAME),
)
HEAD = (Row("lm_head.weight", "lm_head.kernel", LINEAR),)  # of an untied model

# The names in published files, and those of state_dict() in transformers from 4.52 on.
ROWS = prefixed(VISION, "visual.", "visual.") + prefixed(TEXT, "model.", "model.") + HEAD
NEW_ROWS = prefixed(VISION, "model.visual.", "visual.") + prefixed(TEXT, "model.language_model.", "model.") + HEAD
