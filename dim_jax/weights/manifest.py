"""What must be known to write a published checkpoint: its files to the byte, aliases and extras."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dim_jax.errors import InputError
from dim_jax.paths import AnyPath
from dim_jax.weights.files import DTYPES, NAMES, Info, index_of, is_index, make_header, parse_header
from dim_jax.weights.formats import DIFFUSERS_PARTS, FORMATS, Format
from dim_jax.weights.table import Shape, TensorMapping, tensor_mappings


@dataclass(frozen=True)
class Manifest:
    """Attributes:
    format: name of the published format.
    headers: file -> the text of its safetensors header, so that the file can be written again to the byte.
    texts: file -> content of the configs and of the index of shards.
    aliases: tensor -> the tensor that it repeats.
    kept: extra tensor -> its name among the extras of a checkpoint folder.
    dropped: names of tensors that were left out.
    drawn: our parameters that the format cannot hold and that were drawn at random.
    """

    format: str
    headers: dict[str, str]
    texts: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)

    @property
    def published(self) -> Format:
        """The format itself."""
        return FORMATS[self.format]

    @classmethod
    def from_json(cls, data: Any, path: AnyPath) -> "Manifest":
        """Read what `to_json` returns; `path` is for messages.

        Raises:
            InputError: it is no manifest.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(data, Mapping) or not {"format", "headers"} <= set(data) <= names or data["format"] not in FORMATS:
            raise InputError(
                f"{path}: is no manifest of a known format ({', '.join(FORMATS)}). Restore it, or remove it to export in the usual layout."
            )
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    def tensors(self) -> dict[str, tuple[str, str, Info]]:
        """Name -> (file, name in the file, info) of every tensor in the files."""
        found = {}
        for file, header in self.headers.items():
            for raw, (info, _) in parse_header(Path(file), header)[0].items():
                found[folder_of(file) + raw] = (file, raw, info)
        return found

    def without(self, dropped: Iterable[str]) -> "Manifest":
        """The same checkpoint without some of its tensors."""
        gone = set(dropped)
        return replace(self._with({name: info for name, (_, _, info) in self.tensors().items() if name not in gone}), dropped=sorted(gone))

    def cast(self, dtype: str) -> "Manifest":
        """The same checkpoint with all tensors in `dtype`, a key of DTYPES; configs that state a dtype state this one."""
        cast = self._with({name: info._replace(dtype=dtype) for name, (_, _, info) in self.tensors().items()})
        stated = re.compile(r'("(?:torch_)?dtype"\s*:\s*)"\w+"')
        texts = {file: text if is_index(file) else stated.sub(rf'\1"{DTYPES[dtype].name}"', text) for file, text in cast.texts.items()}
        return replace(cast, texts=texts)

    def _with(self, infos: Mapping[str, Info]) -> "Manifest":
        """The same files with these tensors, which are some of theirs; what does not change stays to the byte."""
        files: dict[str, dict[str, Info]] = {}
        for name, (file, raw, _) in self.tensors().items():
            if name in infos:
                files.setdefault(file, {})[raw] = infos[name]
        headers, texts = {}, dict(self.texts)
        for file, left in files.items():
            spans, metadata = parse_header(Path(file), self.headers[file])
            same = left == {raw: info for raw, (info, _) in spans.items()}
            headers[file] = self.headers[file] if same else make_header(left, metadata)
        changed = {folder_of(file) for file, header in self.headers.items() if headers.get(file) != header}
        for index in texts:
            if is_index(index) and (folder := folder_of(index)) in changed:
                texts[index] = index_of({file.removeprefix(folder): files[file] for file in headers if folder_of(file) == folder})
        return replace(self, headers=headers, texts=texts)


def folder_of(file: str) -> str:
    """What the tensors' names of a file begin with: "transformer/" or "vae/" of a file of diffusers, else ""."""
    part, slash, _ = file.partition("/")
    return part + slash if slash and part in DIFFUSERS_PARTS else ""


def common_dtypes(slots: Mapping[str, TensorMapping], infos: Mapping[str, Info]) -> dict[str, np.dtype]:
    """Our path -> the narrowest dtype that holds all of its published tensors without loss.

    Layers that are stacked may have different dtypes; bfloat16 and float16 only meet in float32.
    """
    found: dict[str, set[np.dtype]] = {}
    for name, slot in slots.items():
        found.setdefault(slot.path, set()).add(DTYPES[infos[name].dtype])
    return {path: dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32) for path, dtypes in found.items()}


def checked_mappings(
    manifest: Manifest, shapes: Mapping[str, Shape], dtypes: Mapping[str, np.dtype], where: str
) -> dict[str, TensorMapping]:
    """Slots of the manifest's tensors in weights with these shapes and dtypes (of our paths); aliases and extras have none.

    Raises:
        InputError: the manifest is not one of these weights.
    """
    tensors = {name: info for name, (_, _, info) in manifest.tensors().items()}
    ours = [path for path in manifest.published.matching(shapes) if path not in manifest.drawn]
    found = tensor_mappings(manifest.published.rows, {path: shapes[path] for path in ours})
    expected = {**found, **dict.fromkeys(manifest.aliases), **dict.fromkeys(manifest.kept)}
    wrong = [f"{name} is not in these weights" for name in tensors if name not in expected]
    wrong += [f"{name} is only in these weights" for name in expected if name not in tensors]
    wrong += [
        f"{name} is {tensors[name].shape}, here {slot.shape}"
        for name, slot in found.items()
        if name in tensors and tensors[name].shape != slot.shape
    ]
    if not wrong:
        stored = common_dtypes(found, tensors)
        wrong = [f"{path} came as {NAMES[stored[path]]}, here it is {NAMES[dtypes[path]]}" for path in ours if stored[path] != dtypes[path]]
    if wrong:
        raise InputError(f"{where}: manifest.json belongs to other weights: {'; '.join(wrong)}. Remove it to export in the usual files.")
    return found
