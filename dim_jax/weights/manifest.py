"""The manifest of a published checkpoint, for writing it again: names, dtypes and files of its tensors, configs, aliases, extras."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dim_jax.errors import InputError, check, prefix_errors
from dim_jax.storage.paths import AnyPath, resolve_within
from dim_jax.weights.arrays import is_finite
from dim_jax.weights.files import DTYPES, INDEX, NAMES, DTypeName
from dim_jax.weights.formats import DIFFUSERS_PARTS, FORMATS, TEXT_ENCODER, Format
from dim_jax.weights.lazy import LazyTensors
from dim_jax.weights.table import TensorMapping, tensor_mappings, to_hf


@dataclass(frozen=True)
class Manifest:
    """Attributes:
    format: name of the published format.
    files: file -> the names of its tensors -> dtype of each, a key of DTYPES.
    configs: file -> its text.
    aliases: tensor -> the tensor that it is a copy of.
    kept: extra tensor -> its name in a checkpoint folder.
    initialized: our parameters that the format cannot hold, initialized at random.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: str
    files: dict[str, dict[str, DTypeName]]
    configs: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    initialized: list[str] = field(default_factory=list)

    @property
    def published(self) -> Format:
        """The format itself."""
        return FORMATS[self.format]

    @classmethod
    def from_json(cls, data: Any, path: AnyPath) -> "Manifest":
        """Read what `to_json` returns, or its earlier form with whole headers; `path` is for errors.

        Raises:
            InputError: it is not a manifest, or names a file outside of its folder.
        """
        try:
            manifest = TypeAdapter(cls).validate_python(_without_headers(data) if "headers" in data else data)
            known = manifest.format in FORMATS
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError):
            known = False
        if not known:
            raise InputError(
                f"{path}: is not a manifest of this version with a known format ({', '.join(FORMATS)}). Restore it, or remove it to export "
                "in the usual files."
            )
        for name in (*manifest.files, *manifest.configs):
            with prefix_errors(path):
                resolve_within(path.parent, name)
        return manifest

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    def tensors(self) -> dict[str, tuple[str, DTypeName]]:
        """Name -> file and dtype of every tensor in the files."""
        return {folder_of(file) + name: (file, dtype) for file, names in self.files.items() for name, dtype in names.items()}

    def cast(self, dtype: np.dtype) -> "Manifest":
        """The same checkpoint with all tensors in `dtype`; configs that state a dtype state this one."""
        stated = re.compile(r'("(?:torch_)?dtype"\s*:\s*)"\w+"')
        return replace(
            self,
            files={file: dict.fromkeys(names, NAMES[dtype]) for file, names in self.files.items()},
            configs={file: stated.sub(rf'\1"{dtype.name}"', text) for file, text in self.configs.items()},
        )


def _without_headers(data: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of the earlier form in the form of today: names and dtypes of each header, texts without the indices of shards."""
    headers = {file: json.loads(header) for file, header in data["headers"].items()}
    files = {file: {name: info["dtype"] for name, info in header.items() if name != "__metadata__"} for file, header in headers.items()}
    configs = {file: text for file, text in data.get("texts", {}).items() if not INDEX.search(file)}
    common = {name: data[name] for name in ("format", "aliases", "kept") if name in data}
    return {**common, "files": files, "configs": configs, "initialized": data.get("drawn", [])}


def folder_of(file: str) -> str:
    """The prefix of the tensors of a file: "transformer/", "vae/" or "text_encoder/" for diffusers, else ""."""
    part, slash, _ = file.partition("/")
    return part + slash if slash and part in (*DIFFUSERS_PARTS, TEXT_ENCODER) else ""


def common_dtypes(mappings: Mapping[str, TensorMapping], dtypes: Mapping[str, np.dtype]) -> dict[str, np.dtype]:
    """Our path -> the narrowest dtype that holds all of its published tensors without loss.

    Stacked layers may have different dtypes; only float32 holds both bfloat16 and float16.
    """
    sets: dict[str, set[np.dtype]] = {}
    for name, mapping in mappings.items():
        sets.setdefault(mapping.path, set()).add(dtypes[name])
    return {path: kinds.pop() if len(kinds) == 1 else DTYPES["F32"] for path, kinds in sets.items()}


def check_finite(tensors: LazyTensors, manifest: Manifest | None, message: Callable[[list[str]], str]) -> LazyTensors:
    """The same tensors; reading them ends with an InputError if some are not finite.

    `message` makes its text from the names of all bad tensors: the published names if there is a manifest.
    """

    def read(names: Sequence[str], scratch: Path | None) -> Iterator[tuple[str, np.ndarray]]:
        bad = []
        for path, tensor in tensors.read(names, scratch):
            if not is_finite(tensor):
                bad += _bad_names(manifest, path, tensor)
            yield path, tensor
            del tensor  # free it before the next one is read
        check(not bad, message(bad))

    return LazyTensors(tensors, read)


def _bad_names(manifest: Manifest | None, path: str, tensor: np.ndarray) -> list[str]:
    """The published names of the tensors in one of ours that are not finite; our path if there are no names."""
    names = {ours: name for name, ours in manifest.kept.items()} if manifest else {}
    if manifest is None or not manifest.published.matching([path]):
        return [names.get(path, path)]
    parts = to_hf(tensor_mappings(manifest.published.rows, {path: tensor.shape}), {path: tensor}.__getitem__)
    return [name for name, part in parts if not is_finite(part)]
