"""Where every tensor of a published Qwen2.5-VL stands in our `Qwen`; rows only. `*` is the layer, stacked on axis 0."""

from dim_jax.weights.table import LINEAR, PATCH_3D, SAME, Row, prefixed

VISION = (
    Row("patch_embed.proj.weight", "patch_embed.proj.kernel", PATCH_3D),
    Row("blocks.*.norm1.weight", "blocks.norm1.scale", SAME),
    Row("blocks.*.norm2.weight", "blocks.norm2.scale", SAME),
    Row("blocks.*.attn.qkv.weight", "blocks.attn.qkv.kernel", LINEAR),
    Row("blocks.*.attn.qkv.bias", "blocks.attn.qkv.bias", SAME),
    Row("blocks.*.attn.proj.weight", "blocks.attn.proj.kernel", LINEAR),
    Row("blocks.*.attn.proj.bias", "blocks.attn.proj.bias", SAME),
    Row("blocks.*.mlp.gate_proj.weight", "blocks.mlp.gate_proj.kernel", LINEAR),
    Row("blocks.*.mlp.gate_proj.bias", "blocks.mlp.gate_proj.bias", SAME),
    Row("blocks.*.mlp.up_proj.weight", "blocks.mlp.up_proj.kernel", LINEAR),
    Row("blocks.*.mlp.up_proj.bias", "blocks.mlp.up_proj.bias", SAME),
    Row("blocks.*.mlp.down_proj.weight", "blocks.mlp.down_proj.kernel", LINEAR),
    Row("blocks.*.mlp.down_proj.bias", "blocks.mlp.down_proj.bias", SAME),
    Row("merger.ln_q.weight", "merger.ln_q.scale", SAME),
    Row("merger.mlp.0.weight", "merger.fc1.kernel", LINEAR),
    Row("merger.mlp.0.bias", "merger.fc1.bias", SAME),
    Row("merger.mlp.2.weight", "merger.fc2.kernel", LINEAR),
    Row("merger.mlp.2.bias", "merger.fc2.bias", SAME),
)
TEXT = (
    Row("embed_tokens.weight", "embed_tokens.embedding", SAME),
    Row("layers.*.input_layernorm.weight", "layers.input_layernorm.scale", SAME),
    Row("layers.*.post_attention_layernorm.weight", "layers.post_attention_layernorm.scale", SAME),
    Row("layers.*.self_attn.q_proj.weight", "layers.self_attn.q_proj.kernel", LINEAR),
    Row("layers.*.self_attn.q_proj.bias", "layers.self_attn.q_proj.bias", SAME),
    Row("layers.*.self_attn.k_proj.weight", "layers.self_attn.k_proj.kernel", LINEAR),
    Row("layers.*.self_attn.k_proj.bias", "layers.self_attn.k_proj.bias", SAME),
    Row("layers.*.self_attn.v_proj.weight", "layers.self_attn.v_proj.kernel", LINEAR),
    Row("layers.*.self_attn.v_proj.bias", "layers.self_attn.v_proj.bias", SAME),
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
