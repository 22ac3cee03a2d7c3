"""Families of models that paint as Draw-In-Mind does, with encoder, connector, SANA and DC-AE: a file each (docs/families.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dim_jax.errors import check
from dim_jax.models.dim import DimConfig
from dim_jax.models.hf_config import HFConfig, Source
from dim_jax.models.sana_config import SanaConfig
from dim_jax.plugins import load_plugins
from dim_jax.processing.processor import Processor
from dim_jax.settings import Settings
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.table import Row


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: for people.
        model_type: of its encoder, in transformers' config.json.
        encoder: the class of the encoder's sizes, a key of `models.dim.NETWORKS`.
        processor: makes what the encoder reads, from a tokenizer and the sizes of a model.
        settings: how its published models paint.
        rows: the tensors of its pipeline of diffusers, named with their folder ("text_encoder/norm.weight"); none where its formats are
            those of `weights.formats`.
        marks: a folder holds such a pipeline if the name of a tensor begins with each of these.
        scheduler: what scheduler/scheduler_config.json may say, key by key.
        sana_config: reads transformer/config.json.
        guidance_embeds: whether its published SANA takes the guidance scale as an input; it tells families with the same encoder apart.
        logical_axes: of parameters that no other family has (`dim_jax.weights.logical_axes`).
    """

    title: str
    model_type: str
    encoder: Any
    processor: Callable[[str | AnyPath, DimConfig], Any]
    settings: Settings = field(default_factory=Settings)
    rows: tuple[Row, ...] = ()
    marks: tuple[str, ...] = ()
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    sana_config: Callable[[Source], SanaConfig] | None = None
    guidance_embeds: bool = False
    logical_axes: tuple[tuple[str, tuple[str, ...]], ...] = ()


@cache
def families() -> dict[str, Family]:
    """Name -> family."""
    return load_plugins(__name__, "FAMILY")


def encoder_config(source: Source, name: str = "config.json") -> Any:
    """The sizes of an encoder from transformers' config.json (a path, or its values, which errors call `name`).

    Raises:
        InputError: no family has such an encoder, or the file is wrong.
    """
    values, encoders = HFConfig(source, name), {family.model_type: family.encoder for family in families().values()}
    model_type = values.get("model_type", str)
    known = ", ".join(f"{family.model_type} ({family.title})" for family in families().values())
    check(model_type in encoders, f"{values.name}: model_type is {model_type!r}, but no family has such an encoder. Encoders are {known}.")
    return encoders[model_type].from_hf(source)


def family_of(config: DimConfig) -> Family:
    """The family of a model with these sizes."""
    same_encoder = [family for family in families().values() if isinstance(config.encoder, family.encoder)]
    return next((family for family in same_encoder if family.guidance_embeds == config.sana.guidance_embeds), same_encoder[0])


def chat_processor(kind: type[Processor], tokenizer: str | AnyPath, config: DimConfig, **fields: Any) -> Processor:
    """A processor with a chat template, for an encoder that reads pictures.

    Raises:
        InputError: the tokenizer cannot be loaded, or is not the encoder's.
    """
    encoder = config.encoder
    processor = kind.from_pretrained(str(tokenizer), condition_length=config.sana.condition_length, layout=encoder.vision.layout, **fields)
    vocabulary, image = encoder.text.vocab_size, encoder.image_token_id
    check(
        processor.tokenizer.image_id == image and processor.tokenizer.max_id < vocabulary,
        f"{tokenizer}: its tokenizer has <|image_pad|> = {processor.tokenizer.image_id} and ids up to "
        f"{processor.tokenizer.max_id}, the encoder has {image} and {vocabulary} ids. "
        "Use the tokenizer that the encoder was trained with.",
    )
    return processor
