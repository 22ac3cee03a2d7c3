"""Writing published checkpoints, with the names, dtypes and files of the original, or with the defaults of a format."""

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import split_state_dict_into_shards_factory

from dim_jax import checkpoint
from dim_jax.checkpoint import TensorInfo
from dim_jax.errors import InputError, check, listed
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import GUIDANCE_IN_DIFFUSERS, sana_to_diffusers
from dim_jax.settings import read_settings
from dim_jax.weights.files import DTYPES, EXTRA_FILE, NAMES, SafetensorsWriter
from dim_jax.weights.formats import DIFFUSERS, DIFFUSERS_GUIDANCE, DIFFUSERS_PARTS, DIM, EMBEDDING, NVLABS, QWEN, SCHEDULER, Format
from dim_jax.weights.manifest import Manifest, common_dtypes, folder_of
from dim_jax.weights.model_config import scheduler_to_diffusers
from dim_jax.weights.published import Weights
from dim_jax.weights.table import TensorMapping, by_path, tensor_mappings, to_hf

SHARDED = ("dim", "qwen")  # formats whose tensors are all in one file or its shards


class Export(NamedTuple):
    """What to write: the manifest, the mapping, shape and dtype of each published tensor, and its file."""

    manifest: Manifest
    mappings: Mapping[str, TensorMapping]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return sum(info.nbytes for info in self.tensors.values())


def plan(weights: Weights, to: str, max_shard_size: int | None = None) -> Export:
    """The tensors and files to write: as in the original if the format is the same, else the defaults.

    Raises:
        InputError: the format cannot hold these weights, their manifest is of other weights, or a tensor is larger than a shard.
    """
    original = weights.manifest if weights.manifest and weights.manifest.published.target == to else None
    if original is None and not isinstance(weights.config.encoder, QwenConfig | None):
        raise InputError(
            f"{weights.where}: a model with a {weights.config.encoder.to_hf()['model_type']} encoder cannot be written as {to}. Choose "
            "orbax, or diffusers if it was read from there."
        )
    manifest = original or _default_manifest(weights, to)
    form, shapes = manifest.published, {path: weights.tensors[path].shape for path in weights.parameters}
    ours = [path for path in form.matching(shapes) if path not in manifest.initialized]
    mappings = tensor_mappings(form.rows, {path: shapes[path] for path in ours})
    tensors = {name: TensorInfo(mapping.shape, weights.tensors[mapping.path].dtype) for name, mapping in mappings.items()}
    tensors |= {alias: tensors[name] for alias, name in manifest.aliases.items() if name in tensors}
    tensors |= {name: weights.tensors[path] for name, path in manifest.kept.items() if path in weights.tensors}
    files = {name: _default_file(form, name) for name in tensors}
    if original:
        stated = original.tensors()
        problems = [f"{name} is not in these weights" for name in stated if name not in tensors]
        problems += [f"{name} is only in these weights" for name in tensors if name not in stated]
        if not problems:
            dtypes = common_dtypes(mappings, {name: DTYPES[dtype] for name, (_, dtype) in stated.items()})
            dtypes_here = {path: weights.tensors[path].dtype for path in ours}
            problems = [
                f"{path} was {NAMES[dtypes[path]]}, here it is {NAMES[dtypes_here[path]]}"
                for path in ours
                if dtypes[path] != dtypes_here[path]
            ]
        check(
            not problems,
            f"{weights.where}: manifest.json belongs to other weights: {listed(problems, '; ')}. Remove it to "
            "export with default names and files.",
        )
        tensors = {name: TensorInfo(tensors[name].shape, DTYPES[dtype]) for name, (_, dtype) in stated.items()}
        files = {name: file for name, (file, _) in stated.items()}
    if max_shard_size is not None:
        if large := [f"{name} ({info.nbytes:,} bytes)" for name, info in sorted(tensors.items()) if info.nbytes > max_shard_size]:
            raise InputError(
                f"{weights.where}: the shard size of {max_shard_size:,} bytes is less than these tensors: {listed(large)}. Allow "
                "larger shards."
            )
        files = split_state_dict_into_shards_factory(
            dict(sorted(tensors.items())),
            get_storage_size=lambda info: info.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        ).tensor_to_filename
    return Export(manifest, mappings, tensors, files)


def _default_manifest(weights: Weights, to: str) -> Manifest:
    """The default manifest of a format, without files."""
    config = weights.config
    check(
        to != "dim" or config.is_whole or config.parts == ("sana",),
        f"{weights.where} holds only {', '.join(config.parts)}, not a whole Draw-In-Mind. Assemble one, or choose another format.",
    )
    if (to == "qwen" and config.encoder is None) or (to == "diffusers" and config.sana is None and config.autoencoder is None):
        raise InputError(f"{weights.where} holds only {', '.join(config.parts)}, nothing that {to} can hold. Choose another format.")
    embeds = config.sana is not None and config.sana.guidance_embeds
    diffusers = DIFFUSERS_GUIDANCE if embeds else DIFFUSERS
    form = {"dim": DIM if config.is_whole else NVLABS, "diffusers": diffusers, "qwen": QWEN}[to]
    encoder = config.encoder and replace(config.encoder, dtype=weights.tensors[EMBEDDING].dtype.name).to_hf()
    sana, autoencoder = config.sana, config.autoencoder and config.autoencoder.to_hf()
    configs: dict[str, Any] = {}
    if form is QWEN:
        configs["config.json"] = encoder
    if form in (DIM, diffusers):
        configs["qwen.config.json"] = encoder
    if form is diffusers:
        transformer = sana and sana_to_diffusers(sana, GUIDANCE_IN_DIFFUSERS if embeds else {})
        configs["transformer/config.json"], configs["vae/config.json"] = transformer, autoencoder
        configs[SCHEDULER] = sana and scheduler_to_diffusers(read_settings(weights.settings))
    if form is DIM:
        configs["dc_ae.config.json"] = autoencoder
    if form in (DIM, NVLABS) and sana:
        configs["sana_edit.json" if sana.is_edit else "sana_t2i.json"] = sana.to_json()
    return Manifest(
        form.name,
        files={},
        configs={file: json.dumps(content, indent=2) + "\n" for file, content in configs.items() if content},
        kept={name: path for name, path in form.kept.items() if path in weights.tensors},
    )


def _default_file(form: Format, name: str) -> str:
    folder = folder_of(name)
    return f"{folder}diffusion_pytorch_model.safetensors" if folder else EXTRA_FILE if form.target == "diffusers" else "model.safetensors"


def write_published(folder: Path, weights: Weights, export: Export) -> None:
    """Fill a folder with the files of a published checkpoint."""
    manifest, members = export.manifest, by_path(export.mappings)
    kept = {path: name for name, path in manifest.kept.items()}
    aliases: dict[str, list[str]] = {}
    for alias, name in manifest.aliases.items():
        aliases.setdefault(name, []).append(alias)
    files: dict[str, dict[str, TensorInfo]] = {}
    for name, file in export.files.items():
        files.setdefault(file, {})[name.removeprefix(folder_of(file))] = export.tensors[name]
    for file in (*files, *manifest.configs):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = {file: stack.enter_context(SafetensorsWriter(folder / file, tensors)) for file, tensors in files.items()}
        for path, tensor in weights.tensors.read(scratch=folder):
            parts = to_hf(members.get(path, {}), {path: tensor}.__getitem__) if path not in kept else [(kept[path], tensor)]
            for name, part in parts:
                for target in (name, *aliases.get(name, ())):
                    file = export.files[target]
                    writers[file].write(target.removeprefix(folder_of(file)), part)
                del part
            del tensor, parts  # free it before the next one is assembled
    _write_indices(folder, files)
    for file, text in manifest.configs.items():
        (folder / file).write_bytes(text.encode())
    tokenizer_folder = folder if manifest.published.target == "qwen" else folder / checkpoint.TOKENIZER
    if weights.tokenizer:
        tokenizer_folder.mkdir(exist_ok=True)
    for file in weights.tokenizer:
        shutil.copyfile(file, tokenizer_folder / file.name)
    if weights.settings is not None and manifest.published.target != "qwen":
        shutil.copyfile(weights.settings, folder / checkpoint.SETTINGS)


def _write_indices(folder: Path, files: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    """The index beside shards, as huggingface_hub writes it, for each folder that has several files."""
    for prefix in {folder_of(file) for file in files}:
        shards = {file.removeprefix(prefix): tensors for file, tensors in files.items() if folder_of(file) == prefix and file != EXTRA_FILE}
        if len(shards) > 1:
            stem = "diffusion_pytorch_model" if prefix.removesuffix("/") in DIFFUSERS_PARTS else "model"
            size = sum(info.nbytes for tensors in shards.values() for info in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / prefix / f"{stem}.safetensors.index.json").write_text(text)
