"""The published formats: the tensors that identify each, their places in our modules, and known extras."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dim_jax.weights import dc_ae, dim, qwen, sana
from dim_jax.weights.families import families
from dim_jax.weights.table import SAME, Row, add_prefix

POS_EMBED = "sana.pos_embed"  # an unused buffer that the published class requires: kept for export
DIFFUSERS_PARTS = ("transformer", "vae")  # folders of weights of diffusers
SCHEDULER = "scheduler/scheduler_config.json"  # of diffusers: written for its users, and kept on the way back
TEXT_ENCODER = "text_encoder"  # and of transformers, in a pipeline of another family
NULL_TABLE = "sana.y_embedder.y_embedding"
EMBEDDING = "encoder.model.embed_tokens.embedding"
# Of a checkpoint whose encoder was saved under the names that transformers uses since 4.52.
NEW_DIM_ROWS = add_prefix(qwen.NEW_ROWS, "mllm.", "encoder.") + tuple(row for row in dim.ROWS if not row.jax.startswith("encoder."))


@dataclass(frozen=True)
class Format:
    """A published format. Tensors of files in a subfolder are named with it ("transformer/proj_out.weight").

    Attributes:
        name: in manifests.
        title: for people.
        target: what `convert(..., to=...)` calls it.
        rows: published tensors and ours.
        prefixes: a checkpoint has this format if the name of a tensor begins with one of these.
        needs_all: the same, with each of them.
        kept: known extra -> its name in a checkpoint folder.
        lm_head: the output layer of a language model that is tied to its embedding; an alias, if the checkpoint has it.
        dropped: prefixes of known tensors that the model does not use.
    """

    name: str
    title: str
    target: str
    rows: tuple[Row, ...]
    prefixes: tuple[str, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    lm_head: str | None = None
    dropped: tuple[str, ...] = ()
    needs_all: bool = False

    def matches(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names are of this format."""
        hits = (any(name.startswith(prefix) for name in names) for prefix in self.prefixes)
        return all(hits) if self.needs_all else any(hits)

    def matching(self, paths: Iterable[str]) -> list[str]:
        """Those of our paths that have a row here."""
        pattern = re.compile("|".join(re.escape(row.jax).replace(r"\*", r"\d+") for row in self.rows))
        return [path for path in paths if pattern.fullmatch(path)]


def _dim(name: str, rows: tuple[Row, ...], prefixes: tuple[str, ...]) -> Format:
    kept = {"decoder.model.pos_embed": POS_EMBED}
    return Format(name, "Draw-In-Mind", "dim", rows, prefixes, kept, "mllm.lm_head.weight", ("decoder.text_encoder.",))


def _qwen(name: str, rows: tuple[Row, ...], prefixes: tuple[str, ...]) -> Format:
    return Format(name, "transformers Qwen2.5-VL", "qwen", add_prefix(rows, "", "encoder."), prefixes, lm_head="lm_head.weight")


DIM = _dim("dim", dim.ROWS, ("mllm.", "projector.", "decoder.model.", "decoder.vae."))
DIM_NEW = _dim("dim-new-names", NEW_DIM_ROWS, ("mllm.model.language_model.", "mllm.model.visual."))
SANA, DC_AE = add_prefix(sana.DIFFUSERS_ROWS, "", "sana."), add_prefix(dc_ae.ROWS, "", "autoencoder.")
NVLABS = Format(
    "nvlabs", "NVlabs SANA", "dim", add_prefix(sana.ROWS, "", "sana."), ("x_embedder.", "y_embedder."), {"pos_embed": POS_EMBED}
)
QWEN = _qwen("qwen", qwen.ROWS, ("visual.", "model.layers.", "model.embed_tokens."))
QWEN_NEW = _qwen("qwen-new-names", qwen.NEW_ROWS, ("model.language_model.", "model.visual."))
GUIDANCE_EMBEDDER = "time_embed.guidance_embedder."  # only of a network that takes the guidance scale as an input
DIFFUSERS_SANA = Format("diffusers-sana", "diffusers SANA", "diffusers", SANA, ("transformer_blocks.", "patch_embed."))
DIFFUSERS_DC_AE = Format(
    "diffusers-dc-ae", "diffusers DC-AE", "diffusers", DC_AE, ("encoder.conv_in.", "decoder.conv_in.", "encoder.down_blocks.")
)
# What diffusers cannot hold is beside its folders, with the names of Draw-In-Mind.
DIFFUSERS = Format(
    "diffusers",
    "diffusers",
    "diffusers",
    (
        *add_prefix(SANA, "transformer/", ""),
        *add_prefix(DC_AE, "vae/", ""),
        Row("decoder.model.y_embedder.y_embedding", NULL_TABLE, SAME),
        *(row for row in dim.ROWS if row.jax.startswith(("encoder.", "connector."))),
    ),
    ("transformer/", "vae/"),
    {"decoder.model.pos_embed": POS_EMBED},
    "mllm.lm_head.weight",
)
GUIDANCE_SANA = add_prefix(sana.GUIDANCE_DIFFUSERS_ROWS, "", "sana.")
DIFFUSERS_GUIDANCE_SANA = replace(DIFFUSERS_SANA, name="diffusers-guidance-sana", rows=GUIDANCE_SANA, prefixes=(GUIDANCE_EMBEDDER,))
DIFFUSERS_GUIDANCE = replace(
    DIFFUSERS,
    name="diffusers-guidance",
    rows=add_prefix(GUIDANCE_SANA, "transformer/", "") + DIFFUSERS.rows[len(SANA) :],
    prefixes=(f"transformer/{GUIDANCE_EMBEDDER}",),
)
PIPELINES = tuple(
    Format(name, f"diffusers {family.title}", "diffusers", family.rows, family.marks, lm_head="text_encoder/lm_head.weight", needs_all=True)
    for name, family in families().items()
    if family.rows
)
# The whole model, and SANA alone; with and without an embedder of the guidance scale.
DIFFUSERS_MODELS, DIFFUSERS_SANAS = (DIFFUSERS, DIFFUSERS_GUIDANCE), (DIFFUSERS_SANA, DIFFUSERS_GUIDANCE_SANA)
# Tried in this order, since earlier formats may have the prefixes of later ones.
_ORDER = (
    *PIPELINES, DIFFUSERS_GUIDANCE, DIFFUSERS, DIM_NEW, DIM, DIFFUSERS_GUIDANCE_SANA, DIFFUSERS_SANA, NVLABS, DIFFUSERS_DC_AE, QWEN_NEW,
    QWEN,
)  # fmt: skip
FORMATS = {form.name: form for form in _ORDER}


def detect(names: Iterable[str]) -> Format | None:
    """The format of a checkpoint whose tensors have these names; None if it is unknown."""
    names = list(names)
    return next((form for form in FORMATS.values() if form.matches(names)), None)
