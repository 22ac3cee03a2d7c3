"""A Draw-In-Mind checkpoint: the rows of its parts after the prefixes that it gives them."""

from dim_jax.weights import dc_ae, qwen, sana
from dim_jax.weights.table import add_prefix, kernel_and_bias

CONNECTOR = (*kernel_and_bias("0", "fc1"), *kernel_and_bias("2", "fc2"))

ROWS = (
    add_prefix(qwen.ROWS, "mllm.", "encoder.")
    + add_prefix(CONNECTOR, "projector.", "connector.")
    + add_prefix(sana.ROWS, "decoder.model.", "sana.")
    + add_prefix(dc_ae.ROWS, "decoder.vae.", "autoencoder.")
)
