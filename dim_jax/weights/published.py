"""Opening a published checkpoint: its headers are read, its format detected and every tensor accounted for, before any data is read."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from dim_jax import checkpoint
from dim_jax.errors import InputError
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.hf_config import HFConfig
from dim_jax.models.qwen import QwenConfig
from dim_jax.models.sana_config import SanaConfig
from dim_jax.paths import AnyPath, entries, local
from dim_jax.rng import NULL_ROWS, key_seed
from dim_jax.weights import formats
from dim_jax.weights.arrays import is_finite, same_bits
from dim_jax.weights.files import (
    DTYPES,
    Info,
    SafetensorsFile,
    ShardedFiles,
    check_beginning,
    find_safetensors,
    make_header,
    no_weights,
    read_text,
)
from dim_jax.weights.formats import DIFFUSERS, NULL_TABLE, Format
from dim_jax.weights.manifest import Manifest, common_dtypes, folder_of
from dim_jax.weights.model_config import ModelConfig, sana_from_diffusers
from dim_jax.weights.pth import TorchFile
from dim_jax.weights.table import TensorMapping, from_hf, tensor_mappings

EXTRA_FILE = "dim_extra.safetensors"
MODEL_INDEX = "model_index.json"  # of diffusers: names the parts
SANA_FILES = ("sana_edit.json", "sana_t2i.json")
CONFIG_FILES = ("config.json", "qwen.config.json", "dc_ae.config.json", *SANA_FILES)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "generation_config.json",
)  # fmt: skip
SANA_NULL_ROWS = 300  # prompt tokens of the published SANA 1.5


@dataclass(frozen=True)
class Weights:
    """Weights from anywhere, in our layout, read when they are asked for.

    Attributes:
        where: for messages.
        title: kind of checkpoint, for people.
        sizes: the parts and their configs.
        stored: our path -> dtype and shape, as a checkpoint folder stores it.
        stream: our tensors (path, array), all or `only` some, each put together when its turn comes; large ones in a file in the folder
            that it is given, if any, instead of in memory. Raises InputError at its end if tensors were not finite or aliases not equal,
            naming all.
        extras: name -> small tensors that no network uses.
        manifest: of the published checkpoint that they come from, if any.
        tokenizer: tokenizer files.
        settings: the file that says how it is meant to paint (`dim_jax.settings`), if there is one.
        counts: tensors read of each part.
        notes: what a person should know of what was read.
    """

    where: str
    title: str
    sizes: ModelConfig
    stored: Mapping[str, Info]
    stream: Callable[..., Iterator[tuple[str, np.ndarray]]]
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    manifest: Manifest | None = None
    tokenizer: tuple[Path, ...] = ()
    settings: Path | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_published(path: AnyPath) -> Weights:
    """Open a file or folder in any published format.

    Raises:
        InputError: the files are missing or damaged, no format fits, the configs do not, or tensors are unknown, missing or misshapen: all
            of them are named.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder.")
    where = path if path.is_dir() else path.parent
    found = _find(path)
    tensors = {prefix + name: (file, name) for prefix, sharded in found for file in sharded.files for name in file.tensors}
    infos = {name: file.tensors[raw] for name, (file, raw) in tensors.items()}
    form = formats.detect(infos)
    if form is None:
        some = ", ".join(list(infos)[:5]) or "none"
        raise InputError(
            f"{path}: its tensors ({some} ...) are of no known format: {', '.join(sorted({f.title for f in formats.FORMATS.values()}))}."
        )
    sizes = _sizes(form, where, infos)
    shapes = sizes.shapes()
    drawn = [NULL_TABLE] if NULL_TABLE in shapes and _lacks_null_table(form, infos) else []
    table = tensor_mappings(form.rows, {name: shape for name, shape in shapes.items() if name not in drawn})
    aliases = _aliases(form, sizes, infos, table)
    dropped = [name for name in infos if form.dropped and name.startswith(form.dropped)]
    _check(path, form, infos, table, {*aliases, *form.kept, *dropped})
    kept = {name: ours for name, ours in form.kept.items() if name in infos}
    dtypes = common_dtypes(table, infos)
    stored = {name: Info(_dtype_name(dtypes[name]), shapes[name]) for name in dtypes}
    stored |= {name: Info("F32", shapes[name]) for name in drawn}
    read = {name: (lambda file=file, raw=raw: file.read(raw)) for name, (file, raw) in tensors.items()}

    def stream(scratch: Path | None = None, only: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        problems = []

        def finite(name: str) -> np.ndarray:
            tensor = read[name]()
            if not is_finite(tensor):
                problems.append(f"{name} is not finite")
            return tensor.astype(dtypes[table[name].path], copy=False) if name in table else tensor

        yield from from_hf({name: slot for name, slot in table.items() if only is None or slot.path in only}, finite, scratch)
        for name in drawn:
            yield name, null_rows(*shapes[name], seed=0)
        for name in kept if only is None else ():
            finite(name)
        problems.extend(
            f"{name} differs from {target}, which it must repeat"
            for name, target in aliases.items()
            if (only is None or table[target].path in only) and not same_bits(read[name](), read[target]())
        )
        if problems:
            raise InputError(f"{path}: {'; '.join(problems)}. The checkpoint is damaged; fetch it again, or train it again.")

    return Weights(
        where=str(path),
        title=form.title,
        sizes=sizes,
        stored=stored,
        stream=stream,
        extras={ours: read[name]() for name, ours in kept.items()},
        manifest=_manifest(form, where, found, aliases, kept, dropped, drawn),
        tokenizer=_tokenizer(where) if sizes.encoder else (),
        settings=checkpoint.settings_file(where),
        counts=Counter(slot.path.split(".")[0] for slot in table.values()),
        notes=_notes(aliases, kept, dropped, drawn, shapes),
    )


def tokenizer_files(folder: AnyPath) -> tuple[Path, ...]:
    """The files of a tokenizer in a folder that may hold others, on this machine.

    Raises:
        InputError: one is damaged.
    """
    files = tuple(local(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file())
    for file in files:
        check_beginning(file)
        if file.suffix == ".json":
            try:
                checkpoint.read_json(file)
            except InputError as error:
                raise InputError(f"{folder}: no tokenizer could be loaded ({error})") from error
    return files


def _tokenizer(where: AnyPath) -> tuple[Path, ...]:
    """The tokenizer files beside weights: in a folder of their own, or with them.

    Raises:
        InputError: there is such a folder, and no tokenizer in it.
    """
    if not (folder := where / checkpoint.TOKENIZER).is_dir():
        return tokenizer_files(where)
    files = tokenizer_files(folder)
    names = {file.name for file in files}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        there = ", ".join(path.name for path in entries(folder)) or "nothing"
        raise InputError(f"{folder}: no tokenizer in it (tokenizer.json, or vocab.json and merges.txt), only {there}. Fetch it.")
    return files


def null_rows(t: int, c: int, *, seed: int) -> np.ndarray:
    """Fresh rows (t, c) of a null table, float32, distributed as training starts them."""
    return np.asarray(jax.random.normal(jax.random.key(key_seed(seed, NULL_ROWS)), (t, c)) / c**0.5)


def _find(path: AnyPath) -> list[tuple[str, ShardedFiles]]:
    """The files of tensors at `path`, each group with its folder as it stands before tensors' names.

    Raises:
        InputError: there are none, or they are damaged.
    """
    if path.is_file():
        return [("", ShardedFiles((SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path),)))]
    whole = find_safetensors(path)
    named = HFConfig(path / MODEL_INDEX).values if (path / MODEL_INDEX).is_file() else {}
    held = [part for part in formats.DIFFUSERS_PARTS if (path / part).is_dir() or named.get(part, [None, None]) != [None, None]]
    parts = {part: find_safetensors(path / part) for part in held}
    found = [(f"{part}/", sharded) for part, sharded in parts.items() if sharded]
    if (found or not whole) and (lacking := [part for part, sharded in parts.items() if not sharded]):
        raise no_weights(path / lacking[0])
    if found:
        if (path / EXTRA_FILE).is_file():
            return [*found, ("", ShardedFiles((SafetensorsFile(path / EXTRA_FILE),)))]
        if (path / "qwen.config.json").is_file():
            raise InputError(f"{path / EXTRA_FILE}: is missing; encoder, connector and null table stand in it. Fetch it.")
        return found
    if whole:
        return [("", whole)]
    pickles = sorted((*path.glob("*.pth"), *path.glob("checkpoints/*.pth")))
    if len(pickles) > 1:
        raise InputError(f"{path}: several checkpoints ({', '.join(file.name for file in pickles)}). Name the file that you mean.")
    if not pickles:
        raise no_weights(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    return [("", ShardedFiles((TorchFile(pickles[0]),)))]


def _lacks_null_table(form: Format, infos: Mapping[str, Info]) -> bool:
    """Whether this is a SANA from diffusers, without a null table beside it."""
    return form is formats.DIFFUSERS_SANA or (form is DIFFUSERS and "decoder.model.y_embedder.y_embedding" not in infos)


def _sizes(form: Format, where: AnyPath, infos: Mapping[str, Info]) -> ModelConfig:
    """The configs beside the tensors, or the published ones.

    Raises:
        InputError: a config is missing that the format cannot do without, or disagrees with the tensors.
    """
    if form.to == "qwen":
        return ModelConfig(encoder=QwenConfig.from_hf(_needed(where / "config.json")))
    if form is formats.DIFFUSERS_DC_AE:
        return ModelConfig(autoencoder=DCAEConfig.from_hf(_needed(where / "config.json")))
    if form is formats.DIFFUSERS_SANA:
        return ModelConfig(sana=sana_from_diffusers(_needed(where / "config.json"), SANA_NULL_ROWS))
    if form is DIFFUSERS:
        null = infos.get("decoder.model.y_embedder.y_embedding")
        held = lambda prefix: any(name.startswith(prefix) for name in infos)  # noqa: E731
        return ModelConfig(
            encoder=QwenConfig.from_hf(_needed(where / "qwen.config.json")) if held("mllm.") else None,
            sana=sana_from_diffusers(_needed(where / "transformer/config.json"), null.shape[0] if null else SANA_NULL_ROWS)
            if held("transformer/")
            else None,
            autoencoder=DCAEConfig.from_hf(_needed(where / "vae/config.json")) if held("vae/") else None,
        )
    sana = _published_sana(where, infos, "" if form is formats.NVLABS else "decoder.model.")
    if form is formats.NVLABS:
        return ModelConfig(sana=sana)
    qwen, dc_ae = where / "qwen.config.json", where / "dc_ae.config.json"
    return ModelConfig(
        encoder=QwenConfig.from_hf(qwen) if qwen.is_file() else QwenConfig.qwen_3b(),
        sana=sana,
        autoencoder=DCAEConfig.from_hf(dc_ae) if dc_ae.is_file() else DCAEConfig.f32c32(),
    )


def _needed(path: AnyPath) -> AnyPath:
    if not path.is_file():
        raise InputError(f"{path}: is missing; the sizes of the model stand in it. Fetch it with the weights.")
    return path


def _published_sana(where: AnyPath, infos: Mapping[str, Info], prefix: str) -> SanaConfig:
    """SANA's sizes: input channels and null rows from the tensors; all of them from a json beside it, where it agrees."""
    kernel, null = infos.get(prefix + "x_embedder.proj.weight"), infos.get(prefix + "y_embedder.y_embedding")
    channels = kernel.shape[1] if kernel and len(kernel.shape) == 4 else None
    rows = null.shape[0] if null and len(null.shape) == 2 else None
    files = [where / name for name in SANA_FILES if (where / name).is_file()]
    configs = [SanaConfig.from_json(file) for file in files]
    for config in configs:
        if channels in (config.in_channels, None) and rows in (config.condition_length, None):
            return config
    if configs:
        said = "; ".join(
            f"{file.name}: {config.in_channels} and {config.condition_length}" for file, config in zip(files, configs, strict=True)
        )
        raise InputError(
            f"{where}: the tensors have {channels} input channels and {rows} null rows, but {said}. Use the json of this checkpoint."
        )
    return SanaConfig.sana_1600m(edit=channels == 64, condition_length=rows or 8192)


def _aliases(form: Format, sizes: ModelConfig, infos: Mapping[str, Info], table: Mapping[str, TensorMapping]) -> dict[str, str]:
    """The tied output layer, where the checkpoint holds it."""
    if form.head is None or form.head not in infos or form.head in table or sizes.encoder is None:
        return {}
    return {form.head: next(name for name, slot in table.items() if slot.path == formats.EMBEDDING)}


def _check(path: AnyPath, form: Format, infos: Mapping[str, Info], table: Mapping[str, TensorMapping], known: set[str]) -> None:
    """Every tensor has its place and its shape, and every place its tensor.

    Raises:
        InputError: naming all that have not.
    """
    wrong = [f"{name} {info.shape} is unknown" for name, info in infos.items() if name not in table and name not in known]
    wrong += [f"{name} {slot.shape} is missing" for name, slot in table.items() if name not in infos]
    wrong += [
        f"{name} is {infos[name].shape}, expected {slot.shape}"
        for name, slot in table.items()
        if name in infos and infos[name].shape != slot.shape
    ]
    if wrong:
        raise InputError(
            f"{path} ({form.title}): {'; '.join(wrong)}. Fetch the checkpoint again; one of another size than the published one needs its "
            f"configs beside it ({', '.join(CONFIG_FILES)})."
        )


def _dtype_name(dtype: np.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def _manifest(
    form: Format,
    where: AnyPath,
    found: list[tuple[str, ShardedFiles]],
    aliases: dict[str, str],
    kept: dict[str, str],
    dropped: list[str],
    drawn: list[str],
) -> Manifest:
    headers, texts = {}, {}
    for prefix, sharded in found:
        for file in sharded.files:
            # A .pth file goes back as safetensors: pickles cannot be written to the byte.
            name = str(file.path.relative_to(where / prefix)) if file.header is not None else "model.safetensors"
            headers[prefix + name] = file.header if file.header is not None else make_header(file.tensors, {"format": "pt"})
        if sharded.index is not None:
            texts[prefix + sharded.index[0]] = sharded.index[1]
    for folder in sorted({folder_of(file) for file in headers} | {""}):
        for name in CONFIG_FILES:
            if (where / folder / name).is_file():
                texts[folder + name] = read_text(where / folder / name)
    manifest = Manifest(form.name, headers, texts, aliases, kept, [], drawn)
    return manifest.without(dropped) if dropped else manifest


def _notes(
    aliases: Mapping[str, str], kept: Mapping[str, str], dropped: list[str], drawn: list[str], shapes: Mapping[str, tuple]
) -> tuple[str, ...]:
    notes = [f"tied: {name} repeats {target}" for name, target in aliases.items()]
    notes += [f"kept: {name}, a buffer that no network uses" for name in kept]
    if dropped:
        notes.append(f"dropped: {len(dropped)} tensors of a text encoder that the painter does not use ({dropped[0]} ...)")
    notes += [f"drawn at random: {name} {shapes[name]}, which diffusers does not hold" for name in drawn]
    return tuple(notes)
