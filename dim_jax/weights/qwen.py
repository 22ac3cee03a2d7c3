"""Rows of Qwen2.5-VL: published tensors <-> our `Qwen`. `*` is the layer, stacked on axis 0."""

from dim_jax.weights.table import LINEAR, PATCH_3D, SAME, Row, add_prefix, kernel_and_bias

VISION = (
    Row("patch_embed.proj.weight", "patch_embed.proj.kernel", PATCH_3D),
    Row("blocks.*.norm1.weight", "blocks.norm1.scale", SAME),
    Row("blocks.*.norm2.weight", "blocks.norm2.scale", SAME),
    *kernel_and_bias("blocks.*.attn.qkv", "blocks.attn.qkv"),
    *kernel_and_bias("blocks.*.attn.proj", "blocks.attn.proj"),
    *kernel_and_bias("blocks.*.mlp.gate_proj", "blocks.mlp.gate_proj"),
    *kernel_and_bias("blocks.*.mlp.up_proj", "blocks.mlp.up_proj"),
    *kernel_and_bias("blocks.*.mlp.down_proj", "blocks.mlp.down_proj"),
    Row("merger.ln_q.weight", "merger.ln_q.scale", SAME),
    *kernel_and_bias("merger.mlp.0", "merger.fc1"),
    *kernel_and_bias("merger.mlp.2", "merger.fc2"),
)
TEXT = (
    Row("embed_tokens.weight", "embed_tokens.embedding", SAME),
    Row("layers.*.input_layernorm.weight", "layers.input_layernorm.scale", SAME),
    Row("layers.*.post_attention_layernorm.weight", "layers.post_attention_layernorm.scale", SAME),
    *kernel_and_bias("layers.*.self_attn.q_proj", "layers.self_attn.q_proj"),
    *kernel_and_bias("layers.*.self_attn.k_proj", "layers.self_attn.k_proj"),
    *kernel_and_bias("layers.*.self_attn.v_proj", "layers.self_attn.v_proj"),
    Row("layers.*.self_attn.o_proj.weight", "layers.self_attn.o_proj.kernel", LINEAR),
    Row("layers.*.mlp.gate_proj.weight", "layers.mlp.gate_proj.kernel", LINEAR),
    Row("layers.*.mlp.up_proj.weight", "layers.mlp.up_proj.kernel", LINEAR),
    Row("layers.*.mlp.down_proj.weight", "layers.mlp.down_proj.kernel", LINEAR),
    Row("norm.weight", "norm.scale", SAME),
)
HEAD = (Row("lm_head.weight", "lm_head.kernel", LINEAR),)  # of an untied model

# The names in published files, and those of state_dict() in transformers from 4.52 on.
ROWS = add_prefix(VISION, "visual.", "visual.") + add_prefix(TEXT, "model.", "model.") + HEAD
NEW_ROWS = add_prefix(VISION, "model.visual.", "visual.") + add_prefix(TEXT, "model.language_model.", "model.") + HEAD
