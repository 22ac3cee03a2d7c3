"""Conversion between published formats and checkpoint folders, a tensor at a time; and the assembly of three checkpoints into one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dim_jax import checkpoint
from dim_jax.checkpoint import TensorInfo
from dim_jax.console import open_console
from dim_jax.errors import InputError, check
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.settings import read_settings
from dim_jax.storage.disk import format_bytes
from dim_jax.storage.folders import new_folder
from dim_jax.storage.orbax import orbax_path
from dim_jax.storage.paths import AnyPath, as_path, read_json, resolve
from dim_jax.weights import export
from dim_jax.weights.files import NAMES, SafetensorsWriter
from dim_jax.weights.formats import NULL_TABLE
from dim_jax.weights.hub_files import locate_checkpoint
from dim_jax.weights.lazy import LazyTensors, from_loader, merge
from dim_jax.weights.loading import require_qwen
from dim_jax.weights.lora_files import is_lora, open_lora, open_loras, write_lora
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.opening import open_weights
from dim_jax.weights.published import Weights, null_rows, tokenizer_in
from dim_jax.weights.transforms import cast, mean, merge_lora

TARGETS = ("orbax", "dim", "diffusers", "qwen")


def convert(
    src: AnyPath | str,
    dst: AnyPath | str,
    to: str,
    *,
    dtype: str | None = None,
    max_shard_size: int | None = None,
    tokenizer: AnyPath | str | None = None,
    mean_with: AnyPath | str | None = None,
    loras: Sequence[str] = (),
    overwrite: bool = False,
    console: Console | None = None,
) -> None:
    """Convert the checkpoint or LoRA `src` to a new folder `dst`.

    Args:
        src: a file or folder in any format, or a model of the hub.
        dst: the folder to make; it appears complete or not at all.
        to: "orbax" (a checkpoint folder of ours), "dim" (the published naming; SANA alone: NVlabs'), "diffusers" or "qwen"; for a LoRA one
            of `lora_files.TARGETS`.
        dtype: "float32" or "bfloat16", which every tensor is cast to; by default they stay as they are.
        max_shard_size: bytes of tensors in a file of "dim" or "qwen"; more are written as shards with an index. By default there are as
            many files as the source had, if it was published in this format, else one.
        tokenizer: a folder with the tokenizer to write, instead of the source's.
        mean_with: a checkpoint of the same sizes; every parameter becomes the mean of the two.
        loras: what is merged into the checkpoint, each as "PATH" or "PATH:WEIGHT".
        overwrite: replace a checkpoint at `dst`.
        console: where the table of what was read is printed.

    Raises:
        InputError: the source cannot be used (every wrong tensor is named, or what in its settings.json cannot be painted with), the
            target's format or dtype cannot hold it, a tensor is larger than a shard, `dst` exists, or the disk is full. Then nothing is
            written to `dst`.
    """
    src, dst, console = locate_checkpoint(src).path, as_path(dst), console or open_console(stderr=False)
    if is_lora(src):
        check(
            not dtype and not max_shard_size and not tokenizer and not mean_with and not loras,
            f"{src}: is a LoRA, whose tensors stay as they are. Give it, DST and --to alone; --lora goes with a checkpoint.",
        )
        write_lora(dst, open_lora(src), to, overwrite=overwrite)
        console.out(f"wrote {dst}", highlight=False)
        return
    check(to in TARGETS, f"--to {to}: choose one of {', '.join(TARGETS)}.")
    if max_shard_size is not None and to not in export.SHARDED:
        raise InputError(f"--max-shard-size goes with --to {' and '.join(export.SHARDED)}, not with {to}. Leave it out.")
    source, target = resolve(src), resolve(dst)
    check(target != source and target not in source.parents, f"{dst} is, or holds, the source {src}. Choose another output.")
    weights = open_weights(src)
    if mean_with is not None:
        weights = mean(weights, open_weights(mean_with))
    if loras:
        weights = merge_lora(weights, open_loras(loras))
    if tokenizer is not None:
        weights = replace(weights, tokenizer=tokenizer_in(as_path(tokenizer)))
    _write(weights, dst, to, dtype, max_shard_size, overwrite, console)


def assemble(
    encoder: AnyPath | str,
    sana: AnyPath | str,
    autoencoder: AnyPath | str,
    dst: AnyPath | str,
    *,
    condition_length: int = 8192,
    seed: int = 0,
    dtype: str | None = None,
    tokenizer: AnyPath | str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> None:
    """Make the checkpoint folder with which text-to-image training starts, from three checkpoints and a new connector.

    Args:
        encoder: a checkpoint in any format that holds an encoder.
        sana: one that holds a SANA in its text-to-image form; its null table keeps its rows and grows to `condition_length`.
        autoencoder: one that holds an autoencoder.
        dst: the folder to make.
        condition_length: rows of the null table, the longest condition.
        seed: of the connector and of the new rows.
        dtype: as in `convert`.
        tokenizer: as in `convert`.
        overwrite: as in `convert`.
        console: as in `convert`.

    Raises:
        InputError: a checkpoint lacks its part or has the wrong form, or as in `convert`.
    """
    parents = {"encoder": open_weights(encoder), "sana": open_weights(sana), "autoencoder": open_weights(autoencoder)}
    qwen, old, dc_ae = parents["encoder"].config.encoder, parents["sana"].config.sana, parents["autoencoder"].config.autoencoder
    if qwen is None or old is None or dc_ae is None:
        missing = [f"{parent.where} ({parent.title}) has no {part}" for part, parent in parents.items() if part not in parent.config.parts]
        raise InputError(f"{'; '.join(missing)}. Give checkpoints that have these parts.")
    check(
        not old.is_edit and not old.guidance_embeds and condition_length >= old.null_rows,
        f"{parents['sana'].where}: has {old.in_channels} input channels and {old.null_rows} null rows; text-to-image "
        f"training starts from {old.latent_channels} channels and at most {condition_length} rows. Give the text-to-image SANA.",
    )
    require_qwen(qwen, "Draw-In-Mind")
    check(
        dc_ae.latent_channels == old.latent_channels,
        f"{parents['autoencoder'].where} has {dc_ae.latent_channels} latent channels, {parents['sana'].where} {old.latent_channels}. "
        "Give checkpoints of the same latent space.",
    )
    config = ModelConfig(qwen, old.grow(edit=False, condition_length=condition_length), dc_ae)
    connector = {path: np.asarray(tensor) for path, tensor in config.init("connector", seed).items()}
    if not old.null_table:
        connector[NULL_TABLE] = np.zeros((0, old.caption_channels), np.float32)
    infos = {path: TensorInfo(tensor.shape, tensor.dtype) for path, tensor in connector.items()}
    parts = [_part(parent, part) for part, parent in parents.items()] + [from_loader(infos, connector.__getitem__)]
    notes = [f"{part}: {note}" for part, parent in parents.items() for note in parent.notes]
    notes.append(f"connector: drawn at random (seed {seed})")
    notes.append(f"null table: {old.null_rows} rows kept, {condition_length - old.null_rows} drawn at random (seed {seed})")
    weights = Weights(
        where=", ".join(parent.where for parent in parents.values()),
        title="three checkpoints",
        config=config,
        tensors=_extend_null_table(merge(("", part) for part in parts), condition_length, seed),
        tokenizer=tokenizer_in(as_path(tokenizer)) if tokenizer is not None else parents["encoder"].tokenizer,
        counts={part: parent.counts[part] for part, parent in parents.items()} | {"connector": len(connector)},
        notes=tuple(notes),
    )
    _write(weights, as_path(dst), "orbax", dtype, None, overwrite, console or open_console(stderr=False))


def _part(weights: Weights, part: str) -> LazyTensors:
    """The tensors of one part."""
    return LazyTensors({path: info for path, info in weights.tensors.items() if path.startswith(f"{part}.")}, weights.tensors.read)


def _extend_null_table(tensors: LazyTensors, length: int, seed: int) -> LazyTensors:
    """The same tensors with new rows at the end of the null table."""
    old = tensors[NULL_TABLE]

    def read(names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in tensors.read(names, scratch):
            if name == NULL_TABLE:
                tensor = np.concatenate([tensor, null_rows(length - len(tensor), tensor.shape[1], seed=seed).astype(tensor.dtype)])
            yield name, tensor
            del tensor  # free it before the next one is read

    return LazyTensors({**tensors, NULL_TABLE: TensorInfo((length, old.shape[1]), old.dtype)}, read)


def _write(
    weights: Weights, dst: AnyPath, to: str, dtype: str | None, max_shard_size: int | None, overwrite: bool, console: Console
) -> None:
    """Print the table of what was read, and write the target."""
    if to == "orbax":
        orbax_path(dst)
    autoencoder = weights.config.autoencoder
    read_settings(weights.settings, autoencoder.factor if autoencoder else 1)  # refused now, not when somebody paints with the result
    for file in weights.tokenizer:
        if file.name == "tokenizer.json":
            ChatTokenizer.from_pretrained(file)
    source = weights
    if dtype is not None:
        weights = cast(weights, dtype)
    plan = None if to == "orbax" else export.plan(weights, to, max_shard_size)
    _print(source, console)
    if dtype is not None:
        console.out(f"cast to {dtype}: {format_bytes(weights.nbytes)}", highlight=False)
    # Orbax compresses: even random bfloat16 shrinks to three quarters.
    with new_folder(dst, overwrite=overwrite, num_bytes=plan.nbytes if plan else weights.tensors.nbytes * 3 // 4) as folder:
        if plan is not None:
            export.write_published(folder, weights, plan)
        else:
            _write_ours(folder, weights)
    console.out(f"wrote {dst}", highlight=False)


def _write_ours(folder: Path, weights: Weights) -> None:
    parameters, extras = set(weights.parameters), {}

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for path, tensor in weights.tensors.read(scratch=folder):
            if path in parameters:
                yield path, tensor
            else:
                extras[path] = tensor
            del tensor  # free it before the next one is read

    manifest = weights.manifest.to_json() if weights.manifest else None
    config, settings = weights.config.to_json(), weights.settings
    checkpoint.write(folder, stream(), config, manifest=manifest, tokenizer=weights.tokenizer, settings=settings)
    if extras:
        with SafetensorsWriter(folder / checkpoint.EXTRAS, {path: weights.tensors[path] for path in extras}) as writer:
            for path, tensor in extras.items():
                writer.write(path, tensor)


def _print(weights: Weights, console: Console) -> None:
    """The table of what was read."""
    console.out(f"{weights.where} ({weights.title})", highlight=False)
    table = Table()
    for column in ("part", "tensors", "parameters", "dtype", "size"):
        table.add_column(column, justify="left" if column in ("part", "dtype") else "right")
    parameters = {path: weights.tensors[path] for path in weights.parameters}
    for part in (*weights.config.parts, ""):
        if not part:
            table.add_section()
        infos = [info for path, info in parameters.items() if path.startswith(part)]
        dtypes = ", ".join(sorted({NAMES[info.dtype] for info in infos}))
        count = weights.counts[part] if part else sum(weights.counts.values())
        size = format_bytes(sum(info.nbytes for info in infos))
        table.add_row(part or "all", f"{count:,}", f"{sum(info.size for info in infos):,}", dtypes, size)
    console.print(table, soft_wrap=False)
    for note in weights.notes:
        console.out(note, highlight=False)
    if weights.tokenizer:
        console.out(f"tokenizer: {', '.join(file.name for file in weights.tokenizer)}", highlight=False)
    if weights.settings:
        console.out(f"settings: {json.dumps(read_json(weights.settings))}", highlight=False)
