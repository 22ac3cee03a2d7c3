"""Conversion between the published formats and checkpoint folders, a tensor at a time; and the start of training from three parents."""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dim_jax import checkpoint
from dim_jax.console import open_console
from dim_jax.disk import format_bytes
from dim_jax.errors import InputError
from dim_jax.folders import check_finished, new_folder
from dim_jax.paths import AnyPath, as_path
from dim_jax.weights import shards
from dim_jax.weights.arrays import is_finite
from dim_jax.weights.cast import cast
from dim_jax.weights.export import layout, write_file, write_published
from dim_jax.weights.files import NAMES, Info, SafetensorsFile, make_header, total_bytes
from dim_jax.weights.formats import NULL_TABLE
from dim_jax.weights.manifest import Manifest
from dim_jax.weights.mean import mean
from dim_jax.weights.model_config import ModelConfig
from dim_jax.weights.published import Weights, null_rows, open_published, tokenizer_files

TARGETS = ("orbax", "dim", "diffusers", "qwen")


def open_weights(path: AnyPath | str) -> Weights:
    """Open a checkpoint in any format that we know: ours, or a published one.

    Raises:
        InputError: see `published.open_published`; or one of our folders is damaged.
    """
    path = as_path(path)
    check_finished(path)
    if not checkpoint.is_checkpoint(path):
        return open_published(path)
    sizes = ModelConfig.from_json(checkpoint.read_json(path / checkpoint.CONFIG))
    stored = {name: Info(_known(path, name, leaf.dtype), leaf.shape) for name, leaf in checkpoint.abstract(path).items()}
    shapes = sizes.shapes()
    wrong = [f"{name} {info.shape} is unknown" for name, info in stored.items() if name not in shapes]
    wrong += [f"{name} {shape} is missing" for name, shape in shapes.items() if name not in stored]
    wrong += [
        f"{name} is {stored[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in stored and stored[name].shape != shape
    ]
    if wrong:
        raise InputError(f"{path}: {checkpoint.CONFIG} does not fit the weights: {'; '.join(wrong)}. Restore the one that belongs to them.")
    manifest, extras = path / checkpoint.MANIFEST, path / checkpoint.EXTRAS
    extra = SafetensorsFile(extras) if extras.is_file() else None

    def stream(scratch: Path | None = None, only: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        del scratch  # tensors are stored as they are wanted
        problems = []
        for name, tensor in checkpoint.read(path, only):
            if not is_finite(tensor):
                problems.append(name)
            yield name, tensor
            del tensor  # or it would live on while the next ones are loaded
        if problems:
            raise InputError(f"{path}: not finite: {', '.join(problems)}. The checkpoint is damaged, or training diverged before it.")

    return Weights(
        where=str(path),
        title="checkpoint folder",
        sizes=sizes,
        stored=stored,
        stream=stream,
        extras={name: extra.read(name) for name in extra.tensors} if extra else {},
        manifest=Manifest.from_json(checkpoint.read_json(manifest), manifest) if manifest.is_file() else None,
        tokenizer=checkpoint.tokenizer_files(path),
        settings=checkpoint.settings_file(path),
        counts=Counter(name.split(".")[0] for name in stored),
    )


def convert(
    src: AnyPath | str,
    dst: AnyPath | str,
    to: str,
    *,
    dtype: str | None = None,
    max_shard_size: int | None = None,
    tokenizer: AnyPath | str | None = None,
    mean_with: AnyPath | str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> None:
    """Convert the checkpoint `src` to a new folder `dst`.

    Args:
        src: a file or folder in any format.
        dst: the folder to make; it appears whole or not at all.
        to: "orbax" (a checkpoint folder of ours), "dim" (the published naming; SANA alone: NVlabs'), "diffusers" or "qwen".
        dtype: "float32" or "bfloat16", which every tensor is cast to; by default they stay as they are.
        max_shard_size: bytes of tensors in a file of "dim" or "qwen"; more are written as shards with an index. By default there are as
            many files as the source had, if it was published in this format, else one.
        tokenizer: a folder whose tokenizer files go with it, instead of the source's.
        mean_with: a checkpoint like `src`, in the same format; every tensor becomes the mean of both.
        overwrite: replace a checkpoint at `dst`.
        console: where the table of what was read is printed.

    Raises:
        InputError: the source cannot be used (every wrong tensor is named), cannot be held by the target's format or dtype, has a tensor
            that is larger than a shard, `dst` exists, or the disk is full. Nothing is left at `dst` then.
    """
    if to not in TARGETS:
        raise InputError(f"--to {to}: choose one of {', '.join(TARGETS)}.")
    if max_shard_size is not None and to not in shards.TARGETS:
        raise InputError(f"--max-shard-size goes with --to {' and '.join(shards.TARGETS)}, not with {to}. Leave it out.")
    src, dst = as_path(src), as_path(dst)
    source, target = (path.resolve() if isinstance(path, Path) else path for path in (src, dst))
    if target == source or target in source.parents:
        raise InputError(f"{dst} is, or holds, the source {src}. Choose another output.")
    weights = open_weights(src)
    if mean_with is not None:
        weights = mean(weights, open_weights(mean_with))
    if tokenizer is not None:
        weights = replace(weights, tokenizer=tokenizer_in(as_path(tokenizer)))
    _write(weights, dst, to, dtype, max_shard_size, overwrite, console or open_console(stderr=False))


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
    """Make the checkpoint folder with which text-to-image training starts, from three parents and a fresh connector.

    Args:
        encoder: a checkpoint in any format that holds an encoder.
        sana: one that holds a SANA in its text-to-image form; its null table keeps its rows and grows to `condition_length`.
        autoencoder: one that holds an autoencoder.
        dst: the folder to make.
        condition_length: rows of the null table, the longest condition.
        seed: of the connector and of the new rows.
        dtype, tokenizer, overwrite, console: as in `convert`.

    Raises:
        InputError: a parent lacks its part or has the wrong form, or as in `convert`.
    """
    parents = {"encoder": open_weights(encoder), "sana": open_weights(sana), "autoencoder": open_weights(autoencoder)}
    qwen, old, dc_ae = parents["encoder"].sizes.encoder, parents["sana"].sizes.sana, parents["autoencoder"].sizes.autoencoder
    if qwen is None or old is None or dc_ae is None:
        lacking = [f"{parent.where} ({parent.title}) holds no {part}" for part, parent in parents.items() if part not in parent.sizes.parts]
        raise InputError(f"{'; '.join(lacking)}. Give parents that do.")
    if old.is_edit or condition_length < old.condition_length:
        raise InputError(
            f"{parents['sana'].where}: has {old.in_channels} input channels and {old.condition_length} null rows; text-to-image "
            f"training starts from {old.latent_channels} channels and at most {condition_length} rows. Give the text-to-image SANA."
        )
    if dc_ae.latent_channels != old.latent_channels:
        raise InputError(
            f"{parents['autoencoder'].where} has {dc_ae.latent_channels} latent channels, {parents['sana'].where} {old.latent_channels}. "
            "Give parents that belong together."
        )
    grown = replace(old, condition_length=condition_length)
    sizes = ModelConfig(qwen, grown, dc_ae)
    connector = {path: np.asarray(tensor) for path, tensor in sizes.init("connector", seed).items()}
    stored = {path: Info("F32", tensor.shape) for path, tensor in connector.items()}
    for part, parent in parents.items():
        stored |= {path: info for path, info in parent.stored.items() if path.startswith(part + ".")}
    stored[NULL_TABLE] = Info(stored[NULL_TABLE].dtype, (condition_length, grown.caption_channels))

    def stream(scratch: Path | None = None) -> Iterator[tuple[str, np.ndarray]]:
        for part, parent in parents.items():
            for path, tensor in parent.stream(scratch):
                if not path.startswith(part + "."):
                    continue
                if path == NULL_TABLE:
                    new = null_rows(condition_length - len(tensor), tensor.shape[1], seed=seed)
                    tensor = np.concatenate([tensor, new.astype(tensor.dtype)])
                yield path, tensor
        yield from connector.items()

    notes = [f"{part}: {note}" for part, parent in parents.items() for note in parent.notes]
    notes.append(f"connector: drawn at random (seed {seed})")
    notes.append(f"null table: {old.condition_length} rows kept, {condition_length - old.condition_length} drawn at random (seed {seed})")
    weights = Weights(
        where=", ".join(parent.where for parent in parents.values()),
        title="three parents",
        sizes=sizes,
        stored=stored,
        stream=stream,
        extras={name: tensor for parent in parents.values() for name, tensor in parent.extras.items()},
        tokenizer=tokenizer_in(as_path(tokenizer)) if tokenizer is not None else parents["encoder"].tokenizer,
        counts={part: parent.counts[part] for part, parent in parents.items()} | {"connector": len(connector)},
        notes=tuple(notes),
    )
    _write(weights, as_path(dst), "orbax", dtype, None, overwrite, console or open_console(stderr=False))


def _write(
    weights: Weights, dst: AnyPath, to: str, dtype: str | None, max_shard_size: int | None, overwrite: bool, console: Console
) -> None:
    """Print what was read and write it."""
    if to == "orbax":
        checkpoint.orbax_path(dst)
    read = weights
    if dtype is not None:
        weights = cast(weights, dtype)
    manifest = None if to == "orbax" else layout(weights, to)
    if manifest is not None and max_shard_size is not None:
        manifest = shards.sharded(manifest, max_shard_size, weights.where)
    _print(read, console)
    if dtype is not None:
        console.out(f"cast to {dtype}: {format_bytes(total_bytes(weights.stored.values()))}", highlight=False)
    extras = {name: Info(NAMES[tensor.dtype], tensor.shape) for name, tensor in weights.extras.items()}
    needs = total_bytes(weights.stored.values()) if manifest is None else sum(info.nbytes for _, _, info in manifest.tensors().values())
    if manifest is None:
        needs = needs * 3 // 4  # Orbax compresses: even random bfloat16 shrinks to that
    with new_folder(dst, overwrite=overwrite, needs=needs) as folder:
        if manifest is not None:
            write_published(folder, weights, manifest)
        else:
            known = weights.manifest.to_json() if weights.manifest else None
            config, settings = weights.sizes.to_json(), weights.settings
            checkpoint.write(folder, weights.stream(folder), config, manifest=known, tokenizer=weights.tokenizer, settings=settings)
            if extras:
                write_file(folder / checkpoint.EXTRAS, make_header(extras, None), weights.extras)
    console.out(f"wrote {dst}", highlight=False)


def _known(path: AnyPath, name: str, dtype: Any) -> str:
    if np.dtype(dtype) not in NAMES:
        raise InputError(f"{path}: {name} is {dtype}; weights are {', '.join(NAMES.values())}. Save it in one of these.")
    return NAMES[np.dtype(dtype)]


def tokenizer_in(folder: AnyPath) -> tuple[Path, ...]:
    """The tokenizer's files in a folder that may hold others, on this machine.

    Raises:
        InputError: there are none.
    """
    files = tokenizer_files(folder)
    if not any(file.name.startswith(("tokenizer", "vocab")) for file in files):
        raise InputError(
            f"{folder}: no tokenizer in it (tokenizer.json, or vocab.json and merges.txt). Give the folder of the encoder's tokenizer."
        )
    return files


def _print(weights: Weights, console: Console) -> None:
    """The table of what was read."""
    console.out(f"{weights.where} ({weights.title})", highlight=False)
    table = Table()
    for column in ("part", "tensors", "parameters", "dtype", "size"):
        table.add_column(column, justify="left" if column in ("part", "dtype") else "right")
    for part in (*weights.sizes.parts, ""):
        if not part:
            table.add_section()
        infos = [info for path, info in weights.stored.items() if path.startswith(part)]
        dtypes = ", ".join(sorted({info.dtype for info in infos}))
        count = weights.counts[part] if part else sum(weights.counts.values())
        table.add_row(part or "all", f"{count:,}", f"{sum(info.size for info in infos):,}", dtypes, format_bytes(total_bytes(infos)))
    console.print(table, soft_wrap=False)
    for note in weights.notes:
        console.out(note, highlight=False)
    if weights.tokenizer:
        console.out(f"tokenizer: {', '.join(file.name for file in weights.tokenizer)}", highlight=False)
    if weights.settings:
        console.out(f"settings: {json.dumps(checkpoint.read_json(weights.settings))}", highlight=False)
