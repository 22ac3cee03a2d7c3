"""Rows of DC-AE: diffusers' `AutoencoderDC` <-> `dim_jax.models.dc_ae.DCAE`. A `*` is a stage or a block; none is stacked."""

from dim_jax.weights.table import CONV, DEPTHWISE, LINEAR, POINTWISE, SAME, Row, add_prefix, kernel_and_bias

NORM = (Row("weight", "scale", SAME), Row("bias", "bias", SAME))  # (d,)

BLOCK = (
    # ResBlock
    *kernel_and_bias("conv1", "conv1", CONV),
    Row("conv2.weight", "conv2.kernel", CONV),
    *add_prefix(NORM, "norm.", "norm."),
    # EfficientViTBlock: the three projections are one of ours, (3d, d) <-> (d, 3d)
    Row(("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"), "attn.to_qkv.kernel", LINEAR),
    Row("attn.to_qkv_multiscale.*.proj_in.weight", "attn.to_qkv_multiscale.*.proj_in.kernel", DEPTHWISE),
    Row("attn.to_qkv_multiscale.*.proj_out.weight", "attn.to_qkv_multiscale.*.proj_out.kernel", POINTWISE),  # (3d, k, 1, 1) <-> (k, 3d)
    Row("attn.to_out.weight", "attn.to_out.kernel", LINEAR),
    *add_prefix(NORM, "attn.norm_out.", "attn.norm_out."),
    *kernel_and_bias("conv_out.conv_inverted", "conv_out.conv_inverted", POINTWISE),
    *kernel_and_bias("conv_out.conv_depth", "conv_out.conv_depth", DEPTHWISE),
    Row("conv_out.conv_point.weight", "conv_out.conv_point.kernel", POINTWISE),
    *add_prefix(NORM, "conv_out.norm.", "conv_out.norm."),
    # Down and Up
    *kernel_and_bias("conv", "conv", CONV),
)

ROWS = (
    *kernel_and_bias("encoder.conv_in", "encoder.conv_in", CONV),
    *add_prefix(BLOCK, "encoder.down_blocks.*.*.", "encoder.down_blocks.*.*."),
    *kernel_and_bias("encoder.conv_out", "encoder.conv_out", CONV),
    *kernel_and_bias("decoder.conv_in", "decoder.conv_in", CONV),
    *add_prefix(BLOCK, "decoder.up_blocks.*.*.", "decoder.up_blocks.*.*."),
    *add_prefix(NORM, "decoder.norm_out.", "decoder.norm_out."),
    *kernel_and_bias("decoder.conv_out", "decoder.conv_out", CONV),
    *kernel_and_bias("decoder.conv_out.conv", "decoder.conv_out.conv", CONV),  # where the last layer doubles the side
)
