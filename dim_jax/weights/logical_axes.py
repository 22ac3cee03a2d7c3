"""The names of every parameter's axes: one table, path -> logical axes, and the default rules, logical axis -> mesh axis.

    sana.blocks.attn.qkv.kernel (20, 2240, 6720)
    table:  layers,  width,  linear_heads
    rules:  "",      fsdp,   tensor        ("": every device has all of it)

Nothing replicates by default: a parameter without a row is an error, and one that every device holds has a row that says so.
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from functools import cache

from dim_jax.errors import InputError
from dim_jax.models.lora import is_factor
from dim_jax.weights.families import families
from dim_jax.weights.model_config import REPA, TEACHER

LIKE = {TEACHER: "sana", REPA: "connector"}  # parts that have another one's parameters

# `*` is any run of characters. `width` enters and leaves a layer, `mlp` is inside of one; `small` is too small to be cut.
_VECTOR, _VECTORS = ("small",), ("layers", "small")
_CONV = ("taps", "taps", "inputs", "channels")
LOGICAL_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("encoder.model.embed_tokens.embedding", ("vocabulary", "width")),
    ("encoder.model.layers.self_attn.q_proj.kernel", ("layers", "width", "text_heads")),
    ("encoder.model.layers.self_attn.[kv]_proj.kernel", ("layers", "width", "kv_heads")),
    ("encoder.model.layers.self_attn.o_proj.kernel", ("layers", "text_heads", "width")),
    ("encoder.model.layers.self_attn.*.bias", _VECTORS),
    ("encoder.model.layers.mlp.gate_proj.kernel", ("layers", "width", "mlp")),
    ("encoder.model.layers.mlp.up_proj.kernel", ("layers", "width", "mlp")),
    ("encoder.model.layers.mlp.down_proj.kernel", ("layers", "mlp", "width")),
    ("encoder.model.layers.*layernorm.scale", _VECTORS),
    ("encoder.model.norm.scale", _VECTOR),
    ("encoder.lm_head.kernel", ("width", "vocabulary")),
    ("encoder.visual.patch_embed.proj.kernel", ("taps", "taps", "taps", "taps", "width")),
    ("encoder.visual.blocks.attn.qkv.kernel", ("layers", "width", "vision_heads")),
    ("encoder.visual.blocks.attn.proj.kernel", ("layers", "vision_heads", "width")),
    ("encoder.visual.blocks.mlp.gate_proj.kernel", ("layers", "width", "mlp")),
    ("encoder.visual.blocks.mlp.up_proj.kernel", ("layers", "width", "mlp")),
    ("encoder.visual.blocks.mlp.down_proj.kernel", ("layers", "mlp", "width")),
    ("encoder.visual.blocks.*.bias", _VECTORS),
    ("encoder.visual.blocks.norm[12].scale", _VECTORS),
    ("encoder.visual.merger.fc1.kernel", ("width", "mlp")),
    ("encoder.visual.merger.fc2.kernel", ("mlp", "width")),
    ("encoder.visual.merger.fc[12].bias", _VECTOR),
    ("encoder.visual.merger.ln_q.scale", _VECTOR),
    ("connector.fc1.kernel", ("width", "mlp")),
    ("connector.fc2.kernel", ("mlp", "width")),
    ("connector.fc[12].bias", _VECTOR),
    ("sana.x_embedder.proj.kernel", ("latents", "width")),
    ("sana.x_embedder.proj.bias", _VECTOR),
    ("sana.t_embedder.fc1.kernel", ("width", "mlp")),
    ("sana.t_embedder.fc2.kernel", ("mlp", "width")),
    ("sana.t_embedder.*.bias", _VECTOR),
    ("sana.t_block.kernel", ("width", "modulation")),
    ("sana.t_block.bias", _VECTOR),
    ("sana.y_embedder.y_embedding", ("positions", "width")),
    ("sana.y_embedder.y_proj.fc1.kernel", ("width", "mlp")),
    ("sana.y_embedder.y_proj.fc2.kernel", ("mlp", "width")),
    ("sana.y_embedder.y_proj.*.bias", _VECTOR),
    ("sana.attention_y_norm.scale", _VECTOR),
    ("sana.blocks.attn.qkv.kernel", ("layers", "width", "linear_heads")),
    ("sana.blocks.attn.proj.kernel", ("layers", "linear_heads", "width")),
    ("sana.blocks.cross_attn.q_linear.kernel", ("layers", "width", "cross_heads")),
    ("sana.blocks.cross_attn.kv_linear.kernel", ("layers", "width", "cross_heads")),
    ("sana.blocks.cross_attn.proj.kernel", ("layers", "cross_heads", "width")),
    ("sana.blocks.mlp.inverted_conv.kernel", ("layers", "width", "mlp")),
    ("sana.blocks.mlp.depth_conv.kernel", ("layers", "taps", "taps", "mlp")),
    ("sana.blocks.mlp.point_conv.kernel", ("layers", "mlp", "width")),
    ("sana.blocks.*.bias", _VECTORS),
    ("sana.blocks.*_norm.scale", _VECTORS),
    ("sana.blocks.scale_shift_table", ("layers", "small", "small")),
    ("sana.final_layer.linear.kernel", ("width", "latents")),
    ("sana.final_layer.linear.bias", _VECTOR),
    ("sana.final_layer.scale_shift_table", ("small", "small")),
    ("autoencoder.*.conv.kernel", _CONV),
    ("autoencoder.*.conv[12].kernel", _CONV),
    ("autoencoder.*.conv_in.kernel", _CONV),
    ("autoencoder.*.conv_out.kernel", ("taps", "taps", "channels", "outputs")),
    ("autoencoder.*.to_qkv.kernel", ("inputs", "channels")),
    ("autoencoder.*.to_qkv_multiscale.*.proj_in.kernel", ("taps", "taps", "channels")),
    ("autoencoder.*.to_qkv_multiscale.*.proj_out.kernel", ("inputs", "channels")),
    ("autoencoder.*.to_out.kernel", ("inputs", "channels")),
    ("autoencoder.*.conv_inverted.kernel", ("inputs", "channels")),
    ("autoencoder.*.conv_depth.kernel", ("taps", "taps", "channels")),
    ("autoencoder.*.conv_point.kernel", ("inputs", "channels")),
    ("autoencoder.*.scale", _VECTOR),
    ("autoencoder.*.bias", _VECTOR),
    *(row for family in families().values() for row in family.logical_axes),
)

# Logical axis -> the mesh axis that cuts it; "": none. What painting does, and the default of `config.sharding.rules`.
RULES: Mapping[str, str] = {
    **dict.fromkeys(("width", "channels"), "fsdp"),
    **dict.fromkeys(("mlp", "vocabulary", "text_heads", "kv_heads", "vision_heads", "linear_heads", "cross_heads"), "tensor"),
    **dict.fromkeys(("layers", "small", "taps", "inputs", "outputs", "latents", "modulation", "positions"), ""),
}


@cache
def logical_axes(path: str) -> tuple[str, ...]:
    """The names of a parameter's axes. The factors of an adapter have its kernel's, and a rank that is too small to be cut; the scales of a
    quantized kernel have its outputs', and groups of inputs that are too few; those of parts of a run alone are another part's (`LIKE`).

    Raises:
        InputError: the table has no row for it, or more than one.
    """
    if is_factor(path):
        layer, _, name = path.rpartition(".")
        *stack, rows, columns = logical_axes(f"{layer}.kernel")
        return (*stack, rows, "small") if name == "lora_a" else (*stack, "small", columns)
    part, _, name = path.partition(".")
    if part in LIKE:
        return logical_axes(f"{LIKE[part]}.{name}")
    if path.endswith(".kernel_scale"):
        *stack, _, columns = logical_axes(path.removesuffix("_scale"))
        return (*stack, "small", columns)
    matches = [(pattern, axes) for pattern, axes in LOGICAL_AXES if fnmatchcase(path, pattern)]
    if len(matches) != 1:
        rows = " and ".join(pattern for pattern, _ in matches) or "none"
        raise InputError(f"{path}: each parameter has one row in the table of {__name__}, this one: {rows}. Correct the table.")
    return matches[0][1]


def check_rules(rules: Mapping[str, str], mesh_axes: Collection[str]) -> None:
    """Refuse rules that do not give each logical axis a mesh axis or "".

    Raises:
        InputError: names those without a rule, those that are none, or the mesh axis that there is not.
    """
    logical = {axis for _, axes in LOGICAL_AXES for axis in axes}
    if differ := sorted(logical ^ rules.keys()):
        raise InputError(f"config.sharding.rules: {', '.join(differ)}: logical axes are {', '.join(sorted(logical))}; give each a rule.")
    for axis, mesh_axis in rules.items():
        if mesh_axis not in ("", *mesh_axes):
            raise InputError(f"config.sharding.rules.{axis} is '{mesh_axis}', but mesh axes are {', '.join(mesh_axes)}, and '' is none.")
