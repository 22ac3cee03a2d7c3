"""Where a checkpoint or a LoRA lies that is named by a path or, on the Hugging Face hub, as ORG/NAME[@REVISION]; and its files there."""

from dim_jax import checkpoint
from dim_jax.storage.hub import Located, locate
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.formats import DIFFUSERS_PARTS, SCHEDULER, TEXT_ENCODER
from dim_jax.weights.published import CONFIG_FILES, TOKENIZER_FILES

# What our readers open. A pattern's * stands for / too.
FILES = (
    "*.safetensors", "*.safetensors.index*.json", "*.pth", *CONFIG_FILES, *TOKENIZER_FILES, "model_index.json", "adapter_config.json",
    SCHEDULER, checkpoint.SETTINGS, checkpoint.MANIFEST,
    *(f"{part}/*" for part in (*DIFFUSERS_PARTS, TEXT_ENCODER, checkpoint.TOKENIZER, checkpoint.WEIGHTS)),
)  # fmt: skip
NOT_READ = ("text_encoder_*/*",)  # of other pipelines: no family has a second one


def locate_checkpoint(path: AnyPath | str, revision: str | None = None) -> Located:
    """A checkpoint or LoRA at a path, which is taken as it is, or the files of one on the hub, fetched to its library's cache.

    Raises:
        InputError: see `dim_jax.storage.hub.locate`.
    """
    return locate(path, FILES, revision=revision, ignored=NOT_READ)
