"""What a cache was made by: the frozen parts' weights, and whatever else changes what they compute. Another one is refused by name."""

import json
from collections.abc import Mapping
from typing import Any

from dim_jax.data.cache import CACHE, CachedSource, Layout, Storage, part_folders, read_layout
from dim_jax.data.chat import render
from dim_jax.data.pipeline import MixtureComponent
from dim_jax.errors import InputError
from dim_jax.storage.folders import new_file
from dim_jax.storage.local_cache import check_disk_space
from dim_jax.storage.paths import AnyPath, read_json
from dim_jax.training.model_init import ModelInit
from dim_jax.training.objectives import CACHED, Objective

FORMAT = 1  # of the files
# Of configs in published form: they change no value. Token ids follow from the tokenizer.
NAMES = ("architectures", "model_type", "torch_dtype", "_class_name", "bos_token_id", "eos_token_id")


def fingerprint(model_init: ModelInit, objective: Objective) -> dict[str, Any]:
    """All that a cache's values depend on but its rows. Reads the frozen parts' weights once, a tensor at a time.

    Which buckets and batches there are is not in it: padding changes nothing but rounding.
    """
    config, processor, sizes = objective.config, objective.processor, objective.model_config.to_json()
    return {
        "format": FORMAT,
        **{f"{part} weights": digest for part, digest in model_init.digests(config.seed, CACHED).items()},
        **{f"{part}.{key}": value for part in CACHED for key, value in sizes[part].items() if key not in NAMES},
        "tokenizer": processor.tokenizer.digest,
        "chat": render("PROMPT", [1]),
        "pictures": [processor.mode, processor.min_pixels, processor.max_pixels],
        "model.condition_length": config.model.condition_length,
        "model.dtype": config.model.dtype,
        "data.resolution": config.data.resolution,
        "data.max_aspect_ratio": config.data.max_aspect_ratio,
        "data.text": config.data.text,
    }


def begin_cache(folder: AnyPath, made_by: Mapping[str, Any], storage: Storage, *, begun: bool) -> None:
    """Write cache.json, or go on with the one that is there, where shards were written (`begun`).

    Raises:
        InputError: it is another one; names what differs.
    """
    wanted = json.loads(json.dumps({"hidden states": storage, **made_by}))
    path = folder / CACHE
    if begun and path.exists():
        _compare(folder, read_json(path), wanted, "Choose another folder (--into), or remove this one.")
        return
    with new_file(path) as scratch:
        scratch.write_text(json.dumps(wanted, indent=1) + "\n")


def cached_parts(folder: AnyPath, parts: list[MixtureComponent], made_by: Mapping[str, Any]) -> list[MixtureComponent]:
    """The same parts of a mixture, their rows from the cache.

    Raises:
        InputError: there is no cache, it was made by something else (names what differs), or a part or some of its shards are not in it; or
            it is in a bucket, and too large for copies of its shards.
    """
    if not (folder / CACHE).exists():
        raise InputError(f"{folder}: is not a cache ({CACHE} is missing). Write it first: dim cache --config ... --into {folder}")
    known = read_json(folder / CACHE)
    known.pop("hidden states", None)
    _compare(folder, known, json.loads(json.dumps(made_by)), "Write another cache (dim cache --into), and name it in data.cache.")
    places = part_folders(folder, [part.name for part in parts])
    layouts = [_finished(folder, part, place) for part, place in zip(parts, places, strict=True)]
    check_disk_space([layout.path(shard) for layout in layouts for shard in range(layout.shards)])
    return [
        part._replace(source=CachedSource(layout, part.source, part.kind == "edit")) for part, layout in zip(parts, layouts, strict=True)
    ]


def _finished(folder: AnyPath, part: MixtureComponent, place: AnyPath) -> Layout:
    layout = read_layout(place, len(part.source))
    missing = [] if layout is None else layout.missing()
    if layout is None or missing:
        said = "is not in it" if layout is None else f"lacks {len(missing)} of {layout.shards} shards, such as {layout.path(missing[0])}"
        raise InputError(f"{folder}: {part.name} {said}. The same call of dim cache goes on: dim cache --config ... --into {folder}")
    return layout


def _compare(folder: AnyPath, known: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str) -> None:
    differ = [
        f"{key} is {known.get(key)!r} there, {wanted.get(key)!r} here"
        for key in dict.fromkeys((*wanted, *known))
        if known.get(key) != wanted.get(key)
    ]
    if differ:
        raise InputError(f"{folder}: the cache was made by something else: {'; '.join(differ)}. {remedy}")
