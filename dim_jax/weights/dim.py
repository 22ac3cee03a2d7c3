"""A Draw-In-Mind checkpoint: the rows of its parts after the prefixes that it gives them."""

from dim_jax.weights import dc_ae, qwen, sana
from dim_jax.weights.table import biased, prefixed

CONNECTOR = (*biased("0", "fc1"), *biased("2", "fc2"))

ROWS = (
    prefixed(qwen.ROWS, "mllm.", "encoder.")
    + prefixed(CONNECTOR, "projector.", "connector.")
    + prefixed(sana.ROWS, "decoder.model.", "sana.")
    + prefixed(dc_ae.ROWS, "decoder.vae.", "autoencoder.")
)
