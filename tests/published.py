"""Tiny published checkpoints made of the goldens, for the tests of conversion."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file

from dim_jax.weights.convert import convert

CONFIGS = ("qwen.config.json", "sana_edit.json", "dc_ae.config.json")


def tensors_of(goldens: Path) -> dict[str, np.ndarray]:
    return load_file(goldens / "dim_edit.model.safetensors")


def dim_folder(folder: Path, goldens: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A checkpoint in the published naming: the goldens' tiny one, or with these tensors."""
    folder.mkdir()
    if tensors is None:
        shutil.copy(goldens / "dim_edit.model.safetensors", folder / "model.safetensors")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name in CONFIGS:
        shutil.copy(goldens / name, folder)
    return folder


def sharded(folder: Path, goldens: Path) -> Path:
    """The same in three shards with an index, as transformers writes them."""
    dim_folder(folder, goldens)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 7}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def files(folder: Path) -> dict[str, Any]:
    """What is in a folder, by file: of weights names, dtypes, shapes and bits, of an index the file of each tensor, else bytes."""
    return {str(path.relative_to(folder)): _content(path) for path in folder.rglob("*") if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return {name: (tensor.dtype, tensor.shape, tensor.tobytes()) for name, tensor in load_file(path).items()}
    return json.loads(path.read_text())["weight_map"] if path.name.endswith(".index.json") else path.read_bytes()


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def run(*args, **options) -> str:
    """Convert, and what it printed."""
    console = quiet()
    convert(*args, **options, console=console)
    return console.file.getvalue()


def qwen_folder(folder: Path, goldens: Path) -> Path:
    folder.mkdir()
    shutil.copy(goldens / "qwen.weights.safetensors", folder / "model.safetensors")
    shutil.copy(goldens / "qwen.config.json", folder / "config.json")
    return folder


def sana_pth(folder: Path, goldens: Path, kind: str = "t2i") -> Path:
    folder.mkdir()
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(goldens / f"sana_{kind}.weights.safetensors").items()}
    torch.save({"state_dict": tensors | {"pos_embed": torch.zeros(1, 16, 128)}}, folder / "SANA.pth")
    shutil.copy(goldens / f"sana_{kind}.json", folder)
    return folder / "SANA.pth"
