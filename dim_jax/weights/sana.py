"""Rows of SANA, with the names of NVlabs (in Draw-In-Mind after `decoder.model.`) and with those of diffusers."""

from dataclasses import replace

from dim_jax.weights.table import DEPTHWISE, LINEAR, POINTWISE, SAME, Row, kernel_and_bias

ROWS = (
    *kernel_and_bias("x_embedder.proj", "x_embedder.proj", POINTWISE),
    *kernel_and_bias("t_embedder.mlp.0", "t_embedder.fc1"),
    *kernel_and_bias("t_embedder.mlp.2", "t_embedder.fc2"),
    *kernel_and_bias("cfg_embedder.mlp.0", "guidance_embedder.fc1"),
    *kernel_and_bias("cfg_embedder.mlp.2", "guidance_embedder.fc2"),
    *kernel_and_bias("t_block.1", "t_block"),
    Row("y_embedder.y_embedding", "y_embedder.y_embedding", SAME),
    *kernel_and_bias("y_embedder.y_proj.fc1", "y_embedder.y_proj.fc1"),
    *kernel_and_bias("y_embedder.y_proj.fc2", "y_embedder.y_proj.fc2"),
    Row("attention_y_norm.weight", "attention_y_norm.scale", SAME),
    Row("blocks.*.scale_shift_table", "blocks.scale_shift_table", SAME),
    Row("blocks.*.attn.qkv.weight", "blocks.attn.qkv.kernel", LINEAR),
    Row("blocks.*.attn.q_norm.weight", "blocks.attn.q_norm.scale", SAME),
    Row("blocks.*.attn.k_norm.weight", "blocks.attn.k_norm.scale", SAME),
    *kernel_and_bias("blocks.*.attn.proj", "blocks.attn.proj"),
    *kernel_and_bias("blocks.*.cross_attn.q_linear", "blocks.cross_attn.q_linear"),
    *kernel_and_bias("blocks.*.cross_attn.kv_linear", "blocks.cross_attn.kv_linear"),
    Row("blocks.*.cross_attn.q_norm.weight", "blocks.cross_attn.q_norm.scale", SAME),
    Row("blocks.*.cross_attn.k_norm.weight", "blocks.cross_attn.k_norm.scale", SAME),
    *kernel_and_bias("blocks.*.cross_attn.proj", "blocks.cross_attn.proj"),
    *kernel_and_bias("blocks.*.mlp.inverted_conv.conv", "blocks.mlp.inverted_conv", POINTWISE),
    *kernel_and_bias("blocks.*.mlp.depth_conv.conv", "blocks.mlp.depth_conv", DEPTHWISE),
    Row("blocks.*.mlp.point_conv.conv.weight", "blocks.mlp.point_conv.kernel", POINTWISE),
    Row("final_layer.scale_shift_table", "final_layer.scale_shift_table", SAME),
    *kernel_and_bias("final_layer.linear", "final_layer.linear"),
)

_BLOCK = "transformer_blocks.*."

# diffusers keeps queries, keys and values apart, and cannot hold the null table.
DIFFUSERS_ROWS = (
    *kernel_and_bias("patch_embed.proj", "x_embedder.proj", POINTWISE),
    *kernel_and_bias("time_embed.emb.timestep_embedder.linear_1", "t_embedder.fc1"),
    *kernel_and_bias("time_embed.emb.timestep_embedder.linear_2", "t_embedder.fc2"),
    *kernel_and_bias("time_embed.linear", "t_block"),
    *kernel_and_bias("caption_projection.linear_1", "y_embedder.y_proj.fc1"),
    *kernel_and_bias("caption_projection.linear_2", "y_embedder.y_proj.fc2"),
    Row("caption_norm.weight", "attention_y_norm.scale", SAME),
    Row(_BLOCK + "scale_shift_table", "blocks.scale_shift_table", SAME),
    Row(tuple(f"{_BLOCK}attn1.to_{x}.weight" for x in "qkv"), "blocks.attn.qkv.kernel", LINEAR),
    Row(_BLOCK + "attn1.norm_q.weight", "blocks.attn.q_norm.scale", SAME),
    Row(_BLOCK + "attn1.norm_k.weight", "blocks.attn.k_norm.scale", SAME),
    *kernel_and_bias(_BLOCK + "attn1.to_out.0", "blocks.attn.proj"),
    *kernel_and_bias(_BLOCK + "attn2.to_q", "blocks.cross_attn.q_linear"),
    Row(tuple(f"{_BLOCK}attn2.to_{x}.weight" for x in "kv"), "blocks.cross_attn.kv_linear.kernel", LINEAR),
    Row(tuple(f"{_BLOCK}attn2.to_{x}.bias" for x in "kv"), "blocks.cross_attn.kv_linear.bias", SAME),
    Row(_BLOCK + "attn2.norm_q.weight", "blocks.cross_attn.q_norm.scale", SAME),
    Row(_BLOCK + "attn2.norm_k.weight", "blocks.cross_attn.k_norm.scale", SAME),
    *kernel_and_bias(_BLOCK + "attn2.to_out.0", "blocks.cross_attn.proj"),
    *kernel_and_bias(_BLOCK + "ff.conv_inverted", "blocks.mlp.inverted_conv", POINTWISE),
    *kernel_and_bias(_BLOCK + "ff.conv_depth", "blocks.mlp.depth_conv", DEPTHWISE),
    Row(_BLOCK + "ff.conv_point.weight", "blocks.mlp.point_conv.kernel", POINTWISE),
    Row("scale_shift_table", "final_layer.scale_shift_table", SAME),
    *kernel_and_bias("proj_out", "final_layer.linear"),
)

# Those of a network that takes the guidance scale as an input: the timestep's embedder lies one level higher, the scale's beside it.
_TIME = "time_embed.emb.timestep_embedder."
GUIDANCE_DIFFUSERS_ROWS = (
    *(replace(row, hf=row.parts[0].replace(".emb.", ".")) if row.parts[0].startswith(_TIME) else row for row in DIFFUSERS_ROWS),
    *kernel_and_bias("time_embed.guidance_embedder.linear_1", "guidance_embedder.fc1"),
    *kernel_and_bias("time_embed.guidance_embedder.linear_2", "guidance_embedder.fc2"),
)
