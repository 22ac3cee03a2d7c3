"""Published files of a limited size: shards and their index, named as transformers names them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dim_jax.errors import InputError
from dim_jax.weights.files import INDEX, Info, index_of, is_index, make_header, parse_header, total_bytes
from dim_jax.weights.manifest import Manifest

TARGETS = ("dim", "qwen")  # all of their tensors stand in one file or its shards
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as "16MiB" (2**20 bytes each) or "5GB" (10**9 bytes each); `option` is who asks for it.

    Raises:
        InputError: it is none, or less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise InputError(f"{option} {text}: give a number above 0 with its unit, such as 16MiB or 5GB.")
    return size


def sharded(manifest: Manifest, limit: int, where: str) -> Manifest:
    """The same tensors in `model.safetensors`, or, if they take more than `limit` bytes, in shards of up to that and an index.

    The shards are filled in the order of the tensors' names, whatever files they stood in before. As in transformers, the limit is on
    the tensors; the header of a file, some kilobytes, comes on top.

    Args:
        manifest: of a format in `TARGETS`.
        limit: bytes.
        where: for messages.

    Raises:
        InputError: tensors are larger than the limit; all of them are named.
    """
    infos = {name: info for name, (_, _, info) in sorted(manifest.tensors().items())}
    if large := [f"{name} ({info.nbytes:,} bytes)" for name, info in infos.items() if info.nbytes > limit]:
        raise InputError(f"{where}: a shard may hold {limit:,} bytes, less than a tensor: {', '.join(large)}. Allow larger shards.")
    metadata = parse_header(Path(where), next(iter(manifest.headers.values())))[1]
    groups = _groups(infos, limit)
    names = (
        [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)] if len(groups) > 1 else ["model.safetensors"]
    )
    shards = dict(zip(names, groups, strict=True))
    texts = {file: text for file, text in manifest.texts.items() if not is_index(file)}
    if len(shards) > 1:
        texts["model" + INDEX] = index_of(shards)
    elif len(manifest.headers) == 1:
        return replace(manifest, headers=dict(zip(names, manifest.headers.values(), strict=True)), texts=texts)
    return replace(manifest, headers={file: make_header(group, metadata) for file, group in shards.items()}, texts=texts)


def _groups(infos: Mapping[str, Info], limit: int) -> list[dict[str, Info]]:
    """The tensors in order, in groups of up to `limit` bytes."""
    groups: list[dict[str, Info]] = [{}]
    for name, info in infos.items():
        if total_bytes(groups[-1].values()) + info.nbytes > limit:
            groups.append({})
        groups[-1][name] = info
    return groups
