"""Opens a published checkpoint: reads the headers, detects the format and checks every tensor, before any data is read."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import numpy as np

from dim_jax import checkpoint
from dim_jax.checkpoint import TensorInfo
from dim_jax.errors import InputError, check, listed, prefix_errors
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.hf_config import HFConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import GUIDANCE_IN_DIFFUSERS, SanaConfig, sana_from_diffusers
from dim_jax.rng import NULL_ROWS, key_seed
from dim_jax.storage.paths import AnyPath, entries, local_path, read_json
from dim_jax.weights import formats
from dim_jax.weights.arrays import same_bits
from dim_jax.weights.families import encoder_config, families
from dim_jax.weights.files import EXTRA_FILE, NAMES, check_file_type, find_safetensors, no_weights_error, open_safetensors, read_text
from dim_jax.weights.formats import DIFFUSERS_MODELS, DIFFUSERS_SANAS, EMBEDDING, NULL_TABLE, Format
from dim_jax.weights.lazy import LazyTensors, merge
from dim_jax.weights.manifest import Manifest, check_finite, common_dtypes, folder_of
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.pth import open_pth
from dim_jax.weights.table import Shape, TensorMapping, by_path, from_hf, tensor_mappings

MODEL_INDEX = "model_index.json"  # of diffusers: names the parts
PIPELINE_FILES = (MODEL_INDEX, formats.SCHEDULER, "text_encoder/generation_config.json")  # that come back with a pipeline
SANA_FILES = ("sana_edit.json", "sana_t2i.json")
CONFIG_FILES = ("config.json", "qwen.config.json", "dc_ae.config.json", *SANA_FILES)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "generation_config.json", "tokenizer.model",
)  # fmt: skip
PTH_AS = "model.safetensors"  # pickles are not written
SANA_NULL_ROWS = 300  # prompt tokens of the published SANA 1.5
DAMAGED = "The checkpoint is damaged; fetch it again, or train it again."


@dataclass(frozen=True)
class Weights:
    """Weights of any format in our layout, read lazily.

    Attributes:
        where: for messages.
        title: the format, for messages.
        config: the parts and their sizes.
        tensors: our path -> shape, dtype and data of every parameter, and of small tensors that no network uses. Reading them ends
            with an InputError if some are not finite.
        manifest: of the published checkpoint that they come from, if any.
        tokenizer: tokenizer files.
        settings: the file of sampling settings (`dim_jax.settings`), if there is one.
        counts: tensors of each part, as they are stored.
        notes: remarks for people about what was read.
    """

    where: str
    title: str
    config: ModelConfig
    tensors: LazyTensors
    manifest: Manifest | None = None
    tokenizer: tuple[Path, ...] = ()
    settings: Path | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> list[str]:
        """Paths of the tensors that a network has."""
        shapes = self.config.shapes()
        return [path for path in self.tensors if path in shapes]

    @property
    def nbytes(self) -> int:
        """Size of the parameters."""
        return sum(self.tensors[path].nbytes for path in self.parameters)

    def stream(self, only: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """The parameters (path, array), or `only` some, each read once and assembled when it is yielded."""
        return self.tensors.read([path for path in self.parameters if only is None or path in only])


def open_published(path: AnyPath) -> Weights:
    """Open a file or folder in any published format.

    Raises:
        InputError: the files are missing or damaged, the format is unknown, the configs are wrong, or tensors are unknown, missing or of
            another shape; names all of them.
    """
    check(path.exists(), f"{path}: there is no such file or folder. Check the path.")
    where = path if path.is_dir() else path.parent
    files = _open_tensors(path)
    hf = merge((folder_of(file), tensors) for file, tensors in files.items())
    form = formats.detect(hf)
    if form is None:
        first = ", ".join(list(hf)[:5]) or "none"
        raise InputError(
            f"{path}: its tensors ({first} ...) are of no known format: {', '.join(sorted({f.title for f in formats.FORMATS.values()}))}."
        )
    config = _config(form, where, hf)
    shapes = config.shapes()
    initialized = [NULL_TABLE] if NULL_TABLE in shapes and _lacks_null_table(form, hf) else []
    mappings = tensor_mappings(form.rows, {name: shape for name, shape in shapes.items() if name not in initialized})
    tied = config.encoder is not None and form.lm_head in hf and form.lm_head not in mappings  # the output layer is a copy of the embedding
    aliases = {str(form.lm_head): next(name for name, mapping in mappings.items() if mapping.path == EMBEDDING)} if tied else {}
    dropped = [name for name in hf if form.dropped and name.startswith(form.dropped)]
    kept = {name: ours for name, ours in form.kept.items() if name in hf}
    expected = {name: mapping.shape for name, mapping in mappings.items()}
    if errors := mismatches({name: info for name, info in hf.items() if name not in {*aliases, *kept, *dropped}}, expected):
        raise InputError(
            f"{path} ({form.title}): {listed(errors, '; ')}. Fetch the checkpoint again; one of another size than the published one needs "
            f"its configs beside it ({', '.join(CONFIG_FILES)})."
        )
    whole_files = PIPELINE_FILES if form in formats.PIPELINES else (formats.SCHEDULER,) if form in DIFFUSERS_MODELS else ()
    manifest = Manifest(
        form.name,
        {
            file: {name: NAMES[info.dtype] for name, info in tensors.items() if folder_of(file) + name not in dropped}
            for file, tensors in files.items()
        },
        {
            folder + name: read_text(where / folder / name)
            for folder in sorted({folder_of(file) for file in files} | {""})
            for name in (*CONFIG_FILES, *(() if folder else whole_files))
            if (where / folder / name).is_file()
        },
        aliases,
        kept,
        initialized,
    )
    return Weights(
        where=str(path),
        title=form.title,
        config=config,
        tensors=check_finite(
            _in_our_layout(hf, mappings, manifest, shapes, path),
            manifest,
            lambda bad: f"{path}: {listed([f'{name} is not finite' for name in bad], '; ')}. {DAMAGED}",
        ),
        manifest=manifest,
        tokenizer=(tokenizer_in(folder) if (folder := where / checkpoint.TOKENIZER).is_dir() else tokenizer_files(where))
        if config.encoder
        else (),
        settings=checkpoint.settings_file(where),
        counts=Counter(mapping.path.split(".")[0] for mapping in mappings.values()),
        notes=_notes(manifest, dropped, shapes),
    )


def _in_our_layout(
    hf: LazyTensors, mappings: Mapping[str, TensorMapping], manifest: Manifest, shapes: Mapping[str, Shape], path: AnyPath
) -> LazyTensors:
    """Our tensors, assembled from published ones; with those that are initialized, and known extras."""
    dtypes = common_dtypes(mappings, {name: info.dtype for name, info in hf.items()})
    infos = {name: TensorInfo(shapes[name], dtype) for name, dtype in dtypes.items()}
    infos |= {name: TensorInfo(shapes[name], np.dtype(np.float32)) for name in manifest.initialized}
    extras = {ours: name for name, ours in manifest.kept.items()}
    infos |= {ours: hf[name] for ours, name in extras.items()}
    members = by_path(mappings)

    def load(name: str) -> np.ndarray:
        tensor = hf.load(name)
        for alias, target in manifest.aliases.items():
            if target == name and not same_bits(hf.load(alias), tensor):
                raise InputError(f"{path}: {alias} differs from {target}, but must be a copy of it. {DAMAGED}")
        return tensor.astype(dtypes[mappings[name].path], copy=False)

    def read(names: Collection[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        for name in names:
            if name in members:
                yield from from_hf(members[name], load, scratch)
            elif name in extras:
                yield name, hf.load(extras[name])
            else:
                yield name, null_rows(*shapes[name], seed=0)

    return LazyTensors(infos, read)


def mismatches(infos: Mapping[str, TensorInfo], expected: Mapping[str, Shape]) -> list[str]:
    """What is wrong with the names and shapes of tensors."""
    problems = [f"{name} {info.shape} is unknown" for name, info in infos.items() if name not in expected]
    problems += [f"{name} {shape} is missing" for name, shape in expected.items() if name not in infos]
    return problems + [
        f"{name} is {infos[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in infos and infos[name].shape != shape
    ]


def tokenizer_files(folder: AnyPath) -> tuple[Path, ...]:
    """The files of a tokenizer in a folder that may hold others, on this machine.

    Raises:
        InputError: one is damaged.
    """
    files = tuple(local_path(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file())
    for file in files:
        check_file_type(file)
        if file.suffix == ".json":
            with prefix_errors(f"{folder}: no tokenizer could be loaded"):
                read_json(file)
    return files


def tokenizer_in(folder: AnyPath) -> tuple[Path, ...]:
    """The same for a folder that must have a tokenizer.

    Raises:
        InputError: there is no tokenizer, or one of its files is damaged.
    """
    files = tokenizer_files(folder)
    names = {file.name for file in files}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        content = ", ".join(path.name for path in entries(folder)[:8]) or "nothing"
        raise InputError(f"{folder}: has no tokenizer (tokenizer.json, or vocab.json and merges.txt), only {content}. Fetch it.")
    return files


def null_rows(t: int, c: int, *, seed: int) -> np.ndarray:
    """New rows (t, c) of a null table in float32, initialized as for training."""
    return np.asarray(jax.random.normal(jax.random.key(key_seed(seed, NULL_ROWS)), (t, c)) / c**0.5)


def _open_tensors(path: AnyPath) -> dict[str, LazyTensors]:
    """The files of tensors at `path`, from its folder."""
    if path.is_file():
        return {path.name: open_safetensors(path)} if path.suffix == ".safetensors" else {PTH_AS: open_pth(path)}
    files = find_safetensors(path)
    index = HFConfig(path / MODEL_INDEX).values if (path / MODEL_INDEX).is_file() else {}
    folders = [part for part in formats.DIFFUSERS_PARTS if (path / part).is_dir() or index.get(part, [None, None]) != [None, None]]
    parts = {part: find_safetensors(path / part) for part in folders}
    empty = [part for part, tensors in parts.items() if not tensors]
    if empty and (not files or len(empty) < len(parts)):
        raise no_weights_error(path / empty[0])
    if len(empty) < len(parts):
        if (path / formats.TEXT_ENCODER).is_dir():
            parts[formats.TEXT_ENCODER] = find_safetensors(path / formats.TEXT_ENCODER)
        files = {f"{part}/{file}": tensors for part in parts for file, tensors in parts[part].items()}
        if (path / EXTRA_FILE).is_file():
            return files | {EXTRA_FILE: open_safetensors(path / EXTRA_FILE)}
        if (path / "qwen.config.json").is_file():
            raise InputError(f"{path / EXTRA_FILE}: is missing; it has encoder, connector and null table. Fetch it.")
        return files
    if files:
        return files
    pickles = sorted((*path.glob("*.pth"), *path.glob("checkpoints/*.pth")))
    check(len(pickles) <= 1, f"{path}: several checkpoints ({', '.join(file.name for file in pickles)}). Name the file that you mean.")
    if not pickles:
        raise no_weights_error(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    return {PTH_AS: open_pth(pickles[0])}


def _lacks_null_table(form: Format, hf: LazyTensors) -> bool:
    """Whether this is a SANA of diffusers without a null table."""
    return form in DIFFUSERS_SANAS or (form in DIFFUSERS_MODELS and "decoder.model.y_embedder.y_embedding" not in hf)


def _config(form: Format, where: AnyPath, hf: LazyTensors) -> ModelConfig:
    """The configs beside the tensors, or the published ones."""
    if any(name.startswith(f"{formats.TEXT_ENCODER}/") for name in hf):
        return _pipeline_config(form, where)
    if form.target == "qwen":
        return ModelConfig(encoder=QwenConfig.from_hf(_require_file(where / "config.json")))
    if form is formats.DIFFUSERS_DC_AE:
        return ModelConfig(autoencoder=DCAEConfig.from_hf(_require_file(where / "config.json")))
    embeds = form in (formats.DIFFUSERS_GUIDANCE, formats.DIFFUSERS_GUIDANCE_SANA)
    sana_config = partial(sana_from_diffusers, same=GUIDANCE_IN_DIFFUSERS if embeds else {}, guidance_embeds=embeds)
    if form in DIFFUSERS_SANAS:
        return ModelConfig(sana=sana_config(_require_file(where / "config.json"), SANA_NULL_ROWS))
    if form in DIFFUSERS_MODELS:
        null = hf.get("decoder.model.y_embedder.y_embedding")
        has = lambda prefix: any(name.startswith(prefix) for name in hf)  # noqa: E731
        return ModelConfig(
            encoder=QwenConfig.from_hf(_require_file(where / "qwen.config.json")) if has("mllm.") else None,
            sana=sana_config(_require_file(where / "transformer/config.json"), null.shape[0] if null else SANA_NULL_ROWS)
            if has("transformer/")
            else None,
            autoencoder=DCAEConfig.from_hf(_require_file(where / "vae/config.json")) if has("vae/") else None,
        )
    sana = _published_sana(where, hf, "" if form is formats.NVLABS else "decoder.model.")
    if form is formats.NVLABS:
        return ModelConfig(sana=sana)
    qwen, dc_ae = where / "qwen.config.json", where / "dc_ae.config.json"
    return ModelConfig(
        encoder=QwenConfig.from_hf(qwen) if qwen.is_file() else QwenConfig.qwen_3b(),
        sana=sana,
        autoencoder=DCAEConfig.from_hf(dc_ae) if dc_ae.is_file() else DCAEConfig.f32c32(),
    )


def _pipeline_config(form: Format, where: AnyPath) -> ModelConfig:
    """The sizes of a pipeline of a family; its scheduler must be one that the family's settings stand for."""
    encoder = encoder_config(_require_file(where / formats.TEXT_ENCODER / "config.json"))
    family = families().get(form.name)
    titles = ", ".join(other.title for other in families().values() if other.rows)
    if family is None or family.sana_config is None:
        raise InputError(f"{where}: its transformer and text encoder are not of one family. Pipelines that can be read are {titles}.")
    scheduler = HFConfig(_require_file(where / formats.SCHEDULER))
    for key, value in family.scheduler.items():
        scheduler.only(key, value)
    return ModelConfig(
        encoder,
        family.sana_config(_require_file(where / "transformer/config.json")),
        DCAEConfig.from_hf(_require_file(where / "vae/config.json")),
    )


def _require_file(path: AnyPath) -> AnyPath:
    check(path.is_file(), f"{path}: is missing; it has the sizes of the model. Fetch it with the weights.")
    return path


def _published_sana(where: AnyPath, hf: LazyTensors, prefix: str) -> SanaConfig:
    """SANA's sizes: input channels and null rows from the tensors; the others from a JSON file beside it that agrees."""
    kernel, null = hf.get(prefix + "x_embedder.proj.weight"), hf.get(prefix + "y_embedder.y_embedding")
    channels = kernel.shape[1] if kernel and len(kernel.shape) == 4 else None
    rows = null.shape[0] if null and len(null.shape) == 2 else None
    files = [where / name for name in SANA_FILES if (where / name).is_file()]
    configs = [SanaConfig.from_json(file) for file in files]
    for config in configs:
        if channels in (config.in_channels, None) and rows in (config.condition_length, None):
            return config
    if configs:
        stated = "; ".join(
            f"{file.name}: {config.in_channels} and {config.condition_length}" for file, config in zip(files, configs, strict=True)
        )
        raise InputError(
            f"{where}: the tensors have {channels} input channels and {rows} null rows, but {stated}. Use the JSON file of this checkpoint."
        )
    return SanaConfig.sana_1600m(edit=channels == 64, condition_length=rows or 8192)


def _notes(manifest: Manifest, dropped: list[str], shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    notes = [f"tied: {name} repeats {target}" for name, target in manifest.aliases.items()]
    notes += [f"kept: {name}, a buffer that no network uses" for name in manifest.kept]
    if dropped:
        notes.append(f"dropped: {len(dropped)} tensors of a text encoder that the model does not use ({dropped[0]} ...)")
    notes += [f"drawn at random: {name} {shapes[name]}, which diffusers does not hold" for name in manifest.initialized]
    return tuple(notes)
