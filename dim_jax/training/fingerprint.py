"""Fingerprints of caches: the frozen components' weights and all settings that change their outputs. Other caches are refused."""

import json
from collections.abc import Mapping
from typing import Any

from dim_jax.data.cache import CACHE_FILE, CachedSource, HiddenDtype, ShardLayout, component_folders, read_shard_layout
from dim_jax.data.pipeline import MixtureComponent
from dim_jax.errors import InputError, check
from dim_jax.processing.chat import render
from dim_jax.storage.folders import write_json
from dim_jax.storage.local_cache import check_disk_space
from dim_jax.storage.paths import AnyPath, read_object
from dim_jax.training.model_init import ModelInit
from dim_jax.training.objectives import CACHED, Objective

FORMAT = 1  # of the files
# Keys of published configs that change no value. Token ids follow from the tokenizer.
IGNORED_KEYS = ("architectures", "model_type", "torch_dtype", "_class_name", "bos_token_id", "eos_token_id")


def fingerprint(model_init: ModelInit, objective: Objective) -> dict[str, Any]:
    """All that a cache's values depend on, except its rows. Reads the frozen components' weights once, a tensor at a time.

    Buckets and batch sizes are not part of it: padding changes rounding only.
    """
    config, processor, sizes = objective.config, objective.processor, objective.model_config.to_json()
    return {
        "format": FORMAT,
        **{f"{part} weights": digest for part, digest in model_init.digests(config.seed, CACHED).items()},
        **{f"{part}.{key}": value for part in CACHED for key, value in sizes[part].items() if key not in IGNORED_KEYS},
        "tokenizer": processor.tokenizer.digest,
        "chat": render("PROMPT", [1]),
        "pictures": [processor.mode, processor.min_pixels, processor.max_pixels],
        "model.condition_length": config.model.condition_length,
        "model.dtype": config.model.dtype,
        "data.resolution": config.data.resolution,
        "data.max_aspect_ratio": config.data.max_aspect_ratio,
        "data.text": config.data.text,
    }


def write_fingerprint(folder: AnyPath, current: Mapping[str, Any], hidden_dtype: HiddenDtype, *, has_shards: bool) -> None:
    """Write cache.json, or check the existing one if shards were written (`has_shards`).

    Raises:
        InputError: it has another fingerprint; names the differences.
    """
    expected = json.loads(json.dumps({"hidden states": hidden_dtype, **current}))
    path = folder / CACHE_FILE
    if has_shards and path.exists():
        _compare(folder, read_object(path), expected, "Choose another folder (--into), or remove this one.")
        return
    write_json(path, expected)


def cached_mixture(folder: AnyPath, mixture: list[MixtureComponent], current: Mapping[str, Any]) -> list[MixtureComponent]:
    """The same mixture with its rows from the cache.

    Raises:
        InputError: there is no cache, it has another fingerprint (names the differences), or lacks a source or shards; or it is in a
            bucket, and the disk is too small for copies of its shards.
    """
    if not (folder / CACHE_FILE).exists():
        raise InputError(f"{folder}: is not a cache ({CACHE_FILE} is missing). Write it first: dim cache --config ... --into {folder}")
    recorded = read_object(folder / CACHE_FILE)
    recorded.pop("hidden states", None)
    _compare(folder, recorded, json.loads(json.dumps(current)), "Write another cache (dim cache --into), and name it in data.cache.")
    folders = component_folders(folder, [member.name for member in mixture])
    layouts = [_complete_layout(folder, member, subfolder) for member, subfolder in zip(mixture, folders, strict=True)]
    check_disk_space([layout.path(shard) for layout in layouts for shard in range(layout.shards)])
    return [
        member._replace(source=CachedSource(layout, member.source, member.kind == "edit"))
        for member, layout in zip(mixture, layouts, strict=True)
    ]


def _complete_layout(folder: AnyPath, member: MixtureComponent, subfolder: AnyPath) -> ShardLayout:
    layout = read_shard_layout(subfolder, len(member.source))
    missing = [] if layout is None else layout.missing()
    if layout is None or missing:
        problem = "is not in it" if layout is None else f"lacks {len(missing)} of {layout.shards} shards, such as {layout.path(missing[0])}"
        raise InputError(f"{folder}: {member.name} {problem}. Continue it with the same command: dim cache --config ... --into {folder}")
    return layout


def _compare(folder: AnyPath, recorded: Mapping[str, Any], expected: Mapping[str, Any], remedy: str) -> None:
    differ = [
        f"{key} is {recorded.get(key)!r} there, {expected.get(key)!r} here"
        for key in dict.fromkeys((*expected, *recorded))
        if recorded.get(key) != expected.get(key)
    ]
    check(not differ, f"{folder}: the cache has another fingerprint: {'; '.join(differ)}. {remedy}")
