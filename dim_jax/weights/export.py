"""Writing published checkpoints: the files that weights came from, to the byte, or the usual files of a format."""

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dim_jax import checkpoint
from dim_jax.errors import InputError
from dim_jax.weights.files import DTYPES, NAMES, Info, SafetensorsWriter, make_header
from dim_jax.weights.formats import DIFFUSERS, DIM, EMBEDDING, NVLABS, QWEN, Format
from dim_jax.weights.manifest import Manifest, checked_mappings
from dim_jax.weights.model_config import sana_to_diffusers
from dim_jax.weights.published import EXTRA_FILE, Weights
from dim_jax.weights.table import tensor_mappings, to_hf


def layout(weights: Weights, to: str) -> Manifest:
    """The files to write: those that the weights came from where the format is the same, else the usual ones.

    Raises:
        InputError: the format cannot hold these weights, or their manifest is of other ones.
    """
    if weights.manifest is not None and weights.manifest.published.to == to:
        return weights.manifest
    sizes = weights.sizes
    if to == "dim" and not sizes.is_whole and sizes.parts != ("sana",):
        raise InputError(
            f"{weights.where} holds only {', '.join(sizes.parts)}, which is no Draw-In-Mind. Assemble one, or choose another format."
        )
    if (to == "qwen" and sizes.encoder is None) or (to == "diffusers" and sizes.sana is None and sizes.autoencoder is None):
        raise InputError(f"{weights.where} holds only {', '.join(sizes.parts)}, nothing that {to} can hold. Choose another format.")
    form = {"dim": DIM if sizes.is_whole else NVLABS, "diffusers": DIFFUSERS, "qwen": QWEN}[to]
    return Manifest(
        form.name, *_usual_files(form, weights), kept={name: ours for name, ours in form.kept.items() if ours in weights.extras}
    )


def _usual_files(form: Format, weights: Weights) -> tuple[dict[str, str], dict[str, str]]:
    """Headers and texts of the files in which we write a format."""
    shapes = {path: info.shape for path, info in weights.stored.items()}
    table = tensor_mappings(form.rows, {path: shapes[path] for path in form.matching(shapes)})
    infos = {name: Info(weights.stored[slot.path].dtype, slot.shape) for name, slot in table.items()}
    for name, ours in form.kept.items():
        if ours in weights.extras:
            infos[name] = Info(NAMES[weights.extras[ours].dtype], weights.extras[ours].shape)
    groups: dict[str, dict[str, Info]] = {}
    for name, info in infos.items():
        folder, _, raw = name.rpartition("/")
        file = f"{folder}/diffusion_pytorch_model.safetensors" if folder else EXTRA_FILE if form is DIFFUSERS else "model.safetensors"
        groups.setdefault(file, {})[raw] = info
    headers = {file: make_header(tensors, {"format": "pt"}) for file, tensors in groups.items()}
    sizes = weights.sizes
    encoder = sizes.encoder and replace(sizes.encoder, dtype=DTYPES[weights.stored[EMBEDDING].dtype].name).to_hf()
    configs: dict[str, Any] = {}
    if form is QWEN:
        configs["config.json"] = encoder
    if form is DIFFUSERS:
        configs["qwen.config.json"] = encoder
        configs["transformer/config.json"] = sizes.sana and sana_to_diffusers(sizes.sana)
        configs["vae/config.json"] = sizes.autoencoder and sizes.autoencoder.to_hf()
    if form in (DIM, NVLABS) and sizes.sana:
        configs["sana_edit.json" if sizes.sana.is_edit else "sana_t2i.json"] = sizes.sana.to_json()
    if form is DIM:
        configs["qwen.config.json"], configs["dc_ae.config.json"] = encoder, sizes.autoencoder and sizes.autoencoder.to_hf()
    return headers, {file: json.dumps(config, indent=2) + "\n" for file, config in configs.items() if config}


def write_published(folder: Path, weights: Weights, manifest: Manifest) -> None:
    """Fill a folder with the files of a manifest."""
    shapes = {path: info.shape for path, info in weights.stored.items()}
    dtypes = {path: DTYPES[info.dtype] for path, info in weights.stored.items()}
    table = checked_mappings(manifest, shapes, dtypes, weights.where)
    by_path: dict[str, dict] = {}
    for name, slot in table.items():
        by_path.setdefault(slot.path, {})[name] = slot
    repeats: dict[str, list[str]] = {}
    for name, target in manifest.aliases.items():
        repeats.setdefault(target, []).append(name)
    for file in chain(manifest.headers, manifest.texts):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = {file: stack.enter_context(SafetensorsWriter(folder / file, header)) for file, header in manifest.headers.items()}
        homes = {name: (writers[file], raw) for name, (file, raw, _) in manifest.tensors().items()}

        def put(path: str, tensor: np.ndarray) -> None:
            for name, part in to_hf(by_path.get(path, {}), {path: tensor}.__getitem__):
                for target in (name, *repeats.get(name, ())):
                    writer, raw = homes[target]
                    writer.write(raw, part)

        for path, tensor in weights.stream(folder):
            put(path, tensor)
            del tensor  # or it would live on while the next one is put together
        for name, ours in manifest.kept.items():
            writer, raw = homes[name]
            writer.write(raw, weights.extras[ours])
    for file, text in manifest.texts.items():
        (folder / file).write_bytes(text.encode())
    place = folder if manifest.published.to == "qwen" else folder / checkpoint.TOKENIZER
    if weights.tokenizer:
        place.mkdir(exist_ok=True)
    for file in weights.tokenizer:
        shutil.copyfile(file, place / file.name)
    if weights.settings is not None and manifest.published.to != "qwen":
        shutil.copyfile(weights.settings, folder / checkpoint.SETTINGS)


def write_file(path: Path, header: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file of tensors that are all at hand."""
    with SafetensorsWriter(path, header) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
