"""SANA-Sprint (arXiv 2503.09641), as diffusers' `SanaSprintPipeline` keeps it: SANA takes the guidance scale and paints in two steps."""

from dataclasses import replace
from functools import partial

from dim_jax.models.sana_config import GUIDANCE_IN_DIFFUSERS, sana_from_diffusers
from dim_jax.settings import Settings
from dim_jax.weights import sana
from dim_jax.weights.families.sana import FAMILY as SANA
from dim_jax.weights.families.sana import OTHER_ROWS, TOKENS
from dim_jax.weights.table import add_prefix

FAMILY = replace(
    SANA,
    title="SANA-Sprint",
    settings=Settings(num_steps=2, guidance_scale=4.5, solver="scm"),
    rows=OTHER_ROWS + add_prefix(sana.GUIDANCE_DIFFUSERS_ROWS, "transformer/", "sana."),
    marks=("text_encoder/embed_tokens.", "transformer/time_embed.guidance_embedder."),
    scheduler={"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5},
    sana_config=partial(sana_from_diffusers, condition_length=TOKENS, same=GUIDANCE_IN_DIFFUSERS, null_table=False, guidance_embeds=True),
    guidance_embeds=True,
    logical_axes=(
        ("sana.guidance_embedder.fc1.kernel", ("width", "mlp")),
        ("sana.guidance_embedder.fc2.kernel", ("mlp", "width")),
        ("sana.guidance_embedder.*.bias", ("small",)),
    ),
)
