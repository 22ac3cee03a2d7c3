"""Checkpoint folders: weights in Orbax, the config, the tokenizer, and a manifest of the published checkpoint they came from.

    weights/            Orbax, a flat dictionary path -> array, in chunks of 32 MiB
    config.json         the sizes of each part
    manifest.json       keys, dtypes, files and extras of the published checkpoint that this was read from, if any
    extras.safetensors  published tensors that no network uses, kept for export, if any
    tokenizer/          tokenizer files, if there were any
    settings.json       sampling settings, if they are not the published ones

Everything that this package saves goes through Orbax's `experimental.v1` interface: `Context`, `partial.save` and `load`.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import nnx

from dim_jax.errors import InputError, check, first_line
from dim_jax.models.module import parameters
from dim_jax.processes import is_first, is_multiprocess, shared_folder
from dim_jax.storage.folders import check_finished, new_folder, new_remote_folder
from dim_jax.storage.orbax import disk_error, orbax_path, quiet_orbax
from dim_jax.storage.paths import AnyPath, absolute, as_path, local_path

WEIGHTS, CONFIG, MANIFEST, EXTRAS, TOKENIZER = "weights", "config.json", "manifest.json", "extras.safetensors", "tokenizer"
SETTINGS = "settings.json"
CHUNK = 2**25  # bytes; smaller chunks save memory while saving, and let a sharded restore read only what it needs
GROUP = 2**28  # bytes that are handed to Orbax at once; one larger tensor is a group of its own
PARTIAL = "partial_save"  # ending of the folder that Orbax puts groups in until they are joined


@contextmanager
def _orbax(largest: int = 0) -> Iterator[None]:
    """Orbax with our options for saving and for loading tensors of up to `largest` bytes; its disk errors become OSErrors."""
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK
    context.memory.deepcopy_host_arrays = False  # nobody changes them while they are saved
    # Reads of one tensor must fit the budget, or Orbax refuses them.
    context.memory.read_concurrent_bytes = max(2**30, 2 * largest)
    context.pytree.loading.partial_load = True
    try:
        with quiet_orbax(), context:
            yield
    except ValueError as error:
        if (os_error := disk_error(error)) is None:
            raise
        raise os_error from error


def _wait_until_unchanged(folder: Path, *, seconds: float = 1.0, limit: float = 30.0) -> None:
    """Return once nothing in a folder has changed for `seconds`, or after `limit` seconds.

    If one of Orbax's writes fails, others go on in threads that nobody can join, and create a removed folder again.
    """
    start = since = time.monotonic()
    previous: dict[str, int] = {}
    while (now := time.monotonic()) < min(since + seconds, start + limit):
        sizes = {}
        for directory, _, names in os.walk(folder):
            for file in (os.path.join(directory, name) for name in names):
                with suppress(FileNotFoundError):  # renamed since it was listed
                    sizes[file] = os.path.getsize(file)
        if sizes != previous:
            previous, since = sizes, now
        time.sleep(seconds / 20)


def groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names in order, in groups of up to `GROUP` bytes."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > GROUP:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def write_weights(folder: AnyPath, tensors: Iterable[tuple[str, Any]]) -> None:
    """Save tensors (path, array) as `folder`/weights; at most one group of them is in memory at a time, in a bucket all of them.

    Raises:
        OSError: the disk is full. Nothing writes into `folder` any more, so it can be removed.
    """
    target = orbax_path(folder / WEIGHTS)
    if not isinstance(folder, Path):  # Orbax cannot save in parts to a bucket
        with _orbax():
            ocp.save(target, dict(tensors))
        return
    group: dict[str, Any] = {}
    with quiet_orbax():
        try:
            with _orbax():
                for path, tensor in tensors:
                    group[path] = tensor
                    del tensor  # free it before the next one is assembled
                    if sum(array.nbytes for array in group.values()) > GROUP:
                        ocp.partial.save(target, group)
                        group = {}
                if group:
                    ocp.partial.save(target, group)
                ocp.partial.finalize(target)
        except (OSError, KeyboardInterrupt):
            _wait_until_unchanged(folder)
            raise


def write(
    folder: AnyPath,
    tensors: Iterable[tuple[str, Any]],
    config: Mapping[str, Any],
    *,
    manifest: Mapping[str, Any] | None = None,
    tokenizer: Sequence[Path] = (),
    settings: AnyPath | None = None,
) -> None:
    """Fill an empty folder with a checkpoint; see the module for its files. Of several processes each writes its shards.

    Raises:
        InputError: tensors that were written cannot be read back.
    """
    written = set[str]()
    write_weights(folder, (written.add(name) or (name, tensor) for name, tensor in tensors))
    if not is_first():
        return
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    if manifest is not None:
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if tokenizer:
        (folder / TOKENIZER).mkdir()
        for file in tokenizer:
            (folder / TOKENIZER / file.name).write_bytes(file.read_bytes())
    if settings is not None:
        (folder / SETTINGS).write_bytes(settings.read_bytes())
    if missing := sorted(written - abstract(folder).keys()):
        raise InputError(f"{folder}: {len(missing)} written tensors cannot be read back ({missing[0]} ...). Choose another output.")


def save(
    path: AnyPath | str,
    weights: nnx.Module | Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    manifest: Mapping[str, Any] | None = None,
    tokenizer: Sequence[Path] = (),
    settings: AnyPath | None = None,
    overwrite: bool = False,
) -> None:
    """Save a module (or tensors by path) as a checkpoint folder, which appears complete or not at all. All processes must call it.

    Raises:
        InputError: `path` exists and may not be overwritten, or the disk is full.
    """
    tensors = parameters(weights) if isinstance(weights, nnx.Module) else weights
    target = as_path(path)
    # Several processes write their shards into one folder, of a shared file system or of a bucket.
    if is_multiprocess() and not isinstance(target, Path):
        opened = new_remote_folder(target, overwrite=overwrite)
    else:
        opened = new_folder(target, overwrite=overwrite)
    with shared_folder(opened) as folder:
        write(folder, tensors.items(), config, manifest=manifest, tokenizer=tokenizer, settings=settings)


def is_checkpoint(path: AnyPath) -> bool:
    """Whether `path` is a folder that `save` made."""
    return (path / WEIGHTS).is_dir() and (path / CONFIG).is_file()


def tokenizer_files(path: AnyPath) -> tuple[Path, ...]:
    """The tokenizer files of a checkpoint folder, by name, on this machine."""
    return tuple(sorted(local_path(path / TOKENIZER).iterdir())) if (path / TOKENIZER).is_dir() else ()


def settings_file(path: AnyPath) -> Path | None:
    """The settings.json in a folder with weights in any format, on this machine, if there is one.

    Raises:
        InputError: it is not a file, such as a link to nothing: the model would paint with other settings than its own.
    """
    file = path / SETTINGS
    if isinstance(file, Path) and os.path.lexists(file):
        check(file.is_file(), f"{file}: is not a file that can be read. Restore it, or remove it.")
    return local_path(path / SETTINGS) if (path / SETTINGS).is_file() else None


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says about a tensor; Orbax reads it as a numpy array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return self.size * self.dtype.itemsize


def abstract(path: AnyPath | str) -> dict[str, TensorInfo]:
    """Path -> shape and dtype of every stored tensor, without reading any.

    Raises:
        InputError: `path` is not a checkpoint folder, or it is damaged.
    """
    folder = absolute(as_path(path))
    check_finished(folder)
    if not is_checkpoint(folder):
        raise InputError(f"{folder}: is not a checkpoint folder (it needs {WEIGHTS}/ and {CONFIG}). Give one, or convert yours first.")
    check(
        not any((folder / WEIGHTS).glob(f"{WEIGHTS}.{PARTIAL}.pending*")),
        f"{folder / WEIGHTS}: its tensors were never joined, which once happened in folders with brackets in their names. Join "
        f"them: python -c 'import sys; from dim_jax import checkpoint; checkpoint.join(sys.argv[1])' '{folder}'",
    )
    weights = orbax_path(folder / WEIGHTS)
    try:
        with _orbax():
            metadata = ocp.metadata(weights).metadata
    except (OSError, ValueError, KeyError, ocp.errors.InvalidLayoutError) as error:
        raise InputError(f"{folder / WEIGHTS}: is damaged ({first_line(error)}). Convert or copy it again.") from error
    check(metadata, f"{folder / WEIGHTS}: is damaged (no tensors are listed in it). Convert or copy it again.")
    return {name: TensorInfo(tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in sorted(metadata.items())}


def join(path: AnyPath | str) -> None:
    """Finish a checkpoint folder whose tensors were never joined."""
    weights = absolute(as_path(path)) / WEIGHTS
    weights.rename(weights.with_name(f"{WEIGHTS}.{PARTIAL}"))
    with _orbax():
        ocp.partial.finalize(orbax_path(weights))


def _load(folder: AnyPath, tensors: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    try:
        with _orbax(max(info.size * 4 for info in tensors.values())):
            return ocp.load(orbax_path(folder / WEIGHTS), dict(tensors))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / WEIGHTS}: cannot be read ({first_line(error)}). Convert or copy it again.") from error


def read(path: AnyPath | str, names: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Stored tensors (path, array) in this order, or all, a group at a time.

    Raises:
        InputError: `path` is not a checkpoint folder, or it is damaged.
    """
    folder = absolute(as_path(path))
    stored = abstract(folder)
    for group in groups({name: stored[name].nbytes for name in (stored if names is None else names)}):
        tensors = _load(folder, {name: stored[name] for name in group})
        for name in group:
            yield name, tensors.pop(name)
