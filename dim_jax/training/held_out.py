"""Held-out examples in a training run: a sheet of the model's outputs, and the autoencoder's scaling factor at the end.

All processes must call these functions, with the same arrays; the first one alone writes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from PIL import Image

from dim_jax import processes
from dim_jax.batching import Request, Source
from dim_jax.data.example import Example
from dim_jax.edit_result import save_picture
from dim_jax.errors import check
from dim_jax.models.dim import Dim
from dim_jax.models.generate import GenerationSettings, generate
from dim_jax.models.module import with_parameters
from dim_jax.models.precision import compute_dtype
from dim_jax.processes import to_host
from dim_jax.processing.chat import IM_END
from dim_jax.processing.pictures import autoencoder_pixels, cover_crop, to_picture
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.sheets import grid, with_caption
from dim_jax.storage.folders import make_folder, write_text
from dim_jax.storage.paths import AnyPath
from dim_jax.training.objectives import Objective, dim_config, paint_reader
from dim_jax.training.student import painter_params, painter_sizes, sample_settings
from dim_jax.weights.model_config import ModelConfig

BATCH_PIXELS = 2**22  # of a batch: the autoencoder's largest activation takes about 256 bytes for each pixel


def write_sheet(path: AnyPath, objective: Objective, params: Mapping[str, Any], examples: Sequence[Example]) -> AnyPath:
    """Write a model's outputs for examples to `path` with the suffix .png, or .md for the encoder; return that path.

    `params` are all parameters of the objective's model, frozen ones too.
    """
    show = {"painter": _edits, "autoencoder": _reconstructions, "encoder": _answers}[objective.config.objective]
    sheet = show(objective, params, examples)
    path = path.with_suffix(".md" if isinstance(sheet, str) else ".png")
    if processes.is_first():
        make_folder(path.parent)
        if isinstance(sheet, str):
            write_text(path, sheet)
        else:
            save_picture(sheet, path, overwrite=True)
    return path


def _edits(objective: Objective, params: Mapping[str, Any], examples: Sequence[Example]) -> Image.Image:
    """A row for each example: source, edited picture, target, over the prompt."""
    config, model_config = objective.config, painter_sizes(objective.model_config)
    settings = Settings(**sample_settings(config))
    size = (config.data.resolution,) * 2
    reader = paint_reader(config, model_config, objective.processor)
    samples = [reader.make_sample(example, np.random.default_rng(0)) for example in examples]
    sources = [Source(sample.pictures[0]) if sample.pictures else None for sample in samples]
    requests = [Request(sample.prompt, seed, size, source) for seed, (sample, source) in enumerate(zip(samples, sources, strict=True))]
    dtype = compute_dtype(config.model.dtype)
    model = nnx.eval_shape(lambda: Dim(dim_config(model_config), dtype=dtype, rngs=nnx.Rngs(0)))
    dim = with_parameters(objective.adapted(model), painter_params(objective.model_config, params))
    results = Sampler(dim, objective.processor, "training", settings).paint(requests, settings)
    edited = {i: result.picture for i, result in results}
    rows = []
    for i, sample in enumerate(samples):
        pictures = [cover_crop(picture, size) for picture in (*sample.pictures, edited[i], sample.target)]
        rows.append([with_caption(pictures, sample.prompt, zoom=2)])
    return grid(rows)


def _reconstructions(objective: Objective, params: Mapping[str, Any], examples: Sequence[Example]) -> Image.Image:
    """A row for each example: target and reconstruction."""
    pictures = [example.target for example in examples]
    decoded = _map_pictures(_reconstruct, objective, params, pictures)
    return grid([[picture, to_picture(pixels)] for picture, pixels in zip(pictures, decoded, strict=True)])


def _answers(objective: Objective, params: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """A page in Markdown: each prompt with the encoder's answer and the label."""
    processor = objective.processor
    samples = [objective.reader.make_sample(example, np.random.default_rng(0)) for example in examples]
    inputs = processor([sample.prompt for sample in samples], [sample.pictures for sample in samples], generation_prompt=True)
    tokenizer = processor.tokenizer
    settings = GenerationSettings(max_new_tokens=256, stop_tokens=(tokenizer.ids[IM_END],), pad_token=tokenizer.pad_id)
    model: Any = with_parameters(objective.model, params)
    tokens, lengths = (np.asarray(to_host(array)) for array in generate(model.encoder, inputs, settings))
    rows = []
    for example, sample, answer, length in zip(examples, samples, tokens, lengths, strict=True):
        text = tokenizer.decode(answer[:length].tolist())
        rows.append(f"## {example.key}\n\n{sample.prompt}\n\nwritten: {text}\n\nwanted: {sample.answer}\n")
    return "\n".join(rows)


def with_scaling_factor(objective: Objective, params: Mapping[str, Any], examples: Iterable[Example]) -> ModelConfig:
    """The sizes of a trained autoencoder, with the scaling factor that brings the latents of `examples` to unit variance.

    Raises:
        InputError: there are no examples.
    """
    config = objective.model_config.autoencoder
    assert config is not None
    latents = list(_map_pictures(_encode, objective, params, (example.target for example in examples)))
    check(latents, "No held-out picture can be used, and the scaling factor is measured on them. Correct some (bad_samples.jsonl).")
    spread = float(np.std(latents))
    return replace(objective.model_config, autoencoder=replace(config, scaling_factor=config.scaling_factor / spread))


def _map_pictures(
    function: Any, objective: Objective, params: Mapping[str, Any], pictures: Iterable[Image.Image]
) -> Iterator[Float[np.ndarray, "h w c"]]:
    """The output of a function of autoencoder and pixels for each picture, in batches of at most `BATCH_PIXELS`."""
    model: Any = with_parameters(objective.model, params)
    side, remaining = objective.config.data.resolution, iter(pictures)
    while batch := list(islice(remaining, max(1, BATCH_PIXELS // side**2))):
        pixels = np.stack([autoencoder_pixels(picture, (side, side)) for picture in batch])
        yield from np.asarray(to_host(function(model.autoencoder, jnp.asarray(pixels))))


@jax.jit
def _reconstruct(autoencoder: Any, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    return autoencoder.decode(autoencoder.encode(pixels))


@jax.jit
def _encode(autoencoder: Any, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b rows columns c"]:
    return autoencoder.encode(pixels)
