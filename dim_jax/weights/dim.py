"""A Draw-In-Mind checkpoint: the rows of its parts after the prefixes that it gives them."""

from dim_jax.weights import dc_ae, qwen, sana
from dim_jax.weights.table import LINEAR, SAME, Row, prefixed

CONNECTOR = (
    Row("0.weight", "fc1.kernel", LINEAR),
    Row("0.bias", "fc1.bias", SAME),
    Row("2.weight", "fc2.kernel", LINEAR),
    Row("2.bias", "fc2.bias", SAME),
)

ROWS = (
    prefixed(qwen.ROWS, "mllm.", "encoder.")
    + prefixed(CONNECTOR, "projector.", "connector.")
    + prefixed(sana.ROWS, "decoder.model.", "sana.")
    + prefixed(dc_ae.ROWS, "decoder.vae.", "autoencoder.")
)
