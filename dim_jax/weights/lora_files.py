"""The files of a LoRA: folders of PEFT and of diffusers, read and written.

    PEFT        adapter_config.json, adapter_model.safetensors      base_model.model.LAYER.lora_A.weight
    diffusers   pytorch_lora_weights.safetensors                    transformer.LAYER.lora_A.weight

LAYER is named as in Draw-In-Mind, as in NVlabs' SANA or as in diffusers' SanaTransformer2DModel, by the tables of weights. What diffusers'
model does not have, the connector, stands beside it in dim_extra.safetensors. Rank and alpha are those that PEFT's LoraConfig names.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors import safe_open

from dim_jax.checkpoint import TensorInfo
from dim_jax.errors import InputError, check, listed
from dim_jax.storage.folders import Kind, new_folder
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import AnyPath, is_remote, local_path, read_json
from dim_jax.weights.arrays import is_finite
from dim_jax.weights.files import EXTRA_FILE, SafetensorsWriter, open_safetensors
from dim_jax.weights.formats import NVLABS
from dim_jax.weights.hub_files import locate_checkpoint
from dim_jax.weights.lora import (
    DIFFUSERS_ROWS,
    DIM_ROWS,
    AdapterTarget,
    Lora,
    LoraFactors,
    join_projections,
    linear_rows,
    split_projections,
)
from dim_jax.weights.table import Row, Transform

Target = Literal["dim", "peft", "diffusers"]
TARGETS: tuple[Target, ...] = ("dim", "peft", "diffusers")  # PEFT by Draw-In-Mind's names, PEFT by diffusers' names, diffusers' own file
CONFIG, PEFT_FILE, DIFFUSERS_FILE = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
METADATA = "lora_adapter_metadata"  # key in the header of diffusers' file: LoraConfig as JSON, each of its keys with the prefix
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
# Keys of LoraConfig with which a pair would mean something else than a product of its factors. Others of "use_..." are refused as well.
OTHER_METHODS = (
    "alora_invocation_tokens", "arrow_config", "fan_in_fan_out", "kasa_config", "layer_replication", "lora_bias", "megatron_config",
    "modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices", "velora_config",
)  # fmt: skip
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # init_lora_weights that leave the base as it is

MERGE = "Merge it into its model with PEFT, and convert that."

FOLDER = Kind("LoRA folder", lambda folder: any((folder / name).is_file() for name in (PEFT_FILE, DIFFUSERS_FILE)))


class _ModulePattern(NamedTuple):
    """Where the published names of a row lead."""

    pattern: re.Pattern
    layer: str
    part: int
    parts: int
    transform: Transform


def _module_patterns(rows: Mapping[str, Row]) -> Iterator[_ModulePattern]:
    for layer, row in rows.items():
        for part, name in enumerate(row.parts):
            pattern = re.compile(re.escape(name.removesuffix(".weight")).replace(r"\*", r"(\d+)"))
            yield _ModulePattern(pattern, layer, part, len(row.parts), row.transform)


BY_DIM, BY_DIFFUSERS = linear_rows(DIM_ROWS), linear_rows(DIFFUSERS_ROWS)
MODULE_PATTERNS = tuple(place for rows in (BY_DIM, BY_DIFFUSERS, linear_rows(NVLABS.rows)) for place in _module_patterns(rows))


def is_lora(path: AnyPath) -> bool:
    """Whether a path is a LoRA rather than a checkpoint: a folder with one, or a file of that name."""
    return path.name in (PEFT_FILE, DIFFUSERS_FILE) or (path.is_dir() and FOLDER.matches(path))


def parse_spec(text: str) -> tuple[str, float]:
    """Path and weight of "PATH" or "PATH:WEIGHT", such as "runs/sketch/lora:0.8"; without one the weight is 1.

    Raises:
        InputError: the weight is not finite.
    """
    path, _, weight = text.rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        return text, 1.0
    if not path or (not is_remote(text) and Path(text).exists()):  # a file may be called so
        return text, 1.0
    check(math.isfinite(number), f"{text}: the weight of a LoRA is a number such as 0.8.")
    return path, number


def open_loras(specs: Iterable[str]) -> list[tuple[Lora, float]]:
    """The LoRAs that are named by "PATH" or "PATH:WEIGHT", each with its weight. Errors as in `parse_spec` and `open_lora`."""
    return [(open_lora(path), weight) for path, weight in map(parse_spec, specs)]


def open_lora(path: AnyPath | str) -> Lora:
    """Read a LoRA: a folder of PEFT or diffusers, here or on the hub, or a safetensors file with the names of one of them.

    Raises:
        InputError: there is none, a file is damaged, a factor has no partner, is of no layer of ours or is misshapen, or the LoRA is of
            another kind (DoRA, a trained bias, whole modules ...), which it names.
    """
    path = locate_checkpoint(path).path
    check(path.exists(), f"{path}: no such file or folder. Name a LoRA: a folder of PEFT or diffusers, or its safetensors file.")
    file = path
    if path.is_dir():
        names = [name for name in (PEFT_FILE, DIFFUSERS_FILE) if (path / name).is_file()]
        if len(names) != 1:
            there = " and ".join(names) or f"neither {PEFT_FILE} nor {DIFFUSERS_FILE}"
            raise InputError(f"{path}: holds {there}. Name a LoRA: a folder of PEFT or diffusers, or its safetensors file.")
        file = path / names[0]
    config = file.with_name(CONFIG) if file.name == PEFT_FILE else None
    check(config is None or config.is_file(), f"{config}: is missing; rank and alpha of the LoRA stand in it. Fetch it.")
    pairs = _read(file, None if config is None else read_json(config))
    extra = file.with_name(EXTRA_FILE)
    if extra.is_file():
        pairs |= _read(extra, None)
    return Lora(str(path), pairs)


def _read(file: AnyPath, config: Any) -> dict[AdapterTarget, LoraFactors]:
    """The pairs of a file, with this LoraConfig or the one in its header; without any, alpha is the rank, as diffusers has it."""
    tensors = open_safetensors(file)
    if config is None:
        with safe_open(local_path(file), framework="numpy") as opened:
            stated = (opened.metadata() or {}).get(METADATA)
        config = {} if stated is None else _parse_metadata(file, stated)
    check(isinstance(config, dict), f"{file}: its config is not a JSON object. Save or fetch it again.")
    _check_kind(file, config)
    matches = {name: FACTOR.fullmatch(name) for name in tensors}
    if unknown := [name for name, match in matches.items() if match is None]:
        is_dora = any("magnitude" in name or "dora" in name for name in unknown)
        reason = f"of a DoRA, which is not supported. {MERGE}" if is_dora else "expected are LAYER.lora_A.weight and LAYER.lora_B.weight."
        raise InputError(f"{file}: {listed(unknown, limit=3)}: {reason}")
    names_by_layer: dict[str, dict[str, str]] = {}
    for name, match in matches.items():
        assert match is not None
        names_by_layer.setdefault(match["layer"], {})[match["factor"]] = name
    if unpaired := [name for names in names_by_layer.values() for name in names.values() if len(names) == 1]:
        raise InputError(f"{file}: {listed(unpaired, limit=3)}: the other factor of the pair is missing. Save or fetch the file again.")
    check(names_by_layer, f"{file}: holds no tensors. Save or fetch it again.")
    pairs: dict[AdapterTarget, LoraFactors] = {}
    shapes: dict[tuple[str, int | None], tuple[int, ...]] = {}  # of the parts of a kernel: they are alike
    for layer, names in names_by_layer.items():
        module = layer.removeprefix(PEFT_PREFIX).removeprefix(DIFFUSERS_PREFIX)
        slot, transform = _adapter_target(file, layer, module)
        check(slot not in pairs, f"{file}: {layer}: a pair of {slot} is there twice, under two names. Save it again.")
        a, b = tensors.load(names["A"]), tensors.load(names["B"])
        ones = tuple(1 for _ in transform.squeeze)
        if not a.ndim == b.ndim == 2 + len(ones) or a.shape[0] != b.shape[1] or (*a.shape[2:], *b.shape[2:]) != (*ones, *ones):
            expected = f"(rank, in{', 1' * len(ones)}) and (out, rank{', 1' * len(ones)})"
            raise InputError(f"{file}: {layer}: its factors are {a.shape} and {b.shape}, expected are {expected}. Save it again.")
        shape = slot.parts, a.shape[1], b.shape[0]
        if shapes.setdefault((slot.layer, slot.block), shape) != shape:
            raise InputError(f"{file}: {layer}: does not fit what else there is of {slot}. Save it again, under the names of one model.")
        if bad := [name for name, tensor in ((names["A"], a), (names["B"], b)) if not is_finite(tensor)]:
            raise InputError(f"{file}: {listed(bad)}: not finite. The LoRA is damaged, or training diverged.")
        pairs[slot] = LoraFactors(transform.from_hf(a), transform.from_hf(b), _scale(file, config, module, a.shape[0]))
    return pairs


def _parse_metadata(file: AnyPath, text: str) -> Any:
    try:
        return {key.removeprefix(DIFFUSERS_PREFIX): value for key, value in json_loads(text).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: {METADATA} in its header is damaged ({error}). Save or fetch it again.") from error


def _check_kind(file: AnyPath, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type") or "LORA").rpartition(".")[2]
    check(kind == "LORA", f"{file}: is an adapter of the kind {kind}; LoRA alone is supported. {MERGE}")
    used = [key for key, value in config.items() if value and (key in OTHER_METHODS or (key.startswith("use_") and key != "use_rslora"))]
    used += [f'bias "{config["bias"]}"'] if config.get("bias", "none") != "none" else []
    start = config.get("init_lora_weights")
    used += [f'init_lora_weights "{start}"'] if start not in PLAIN_INITS else []
    check(not used, f"{file}: was made with {', '.join(used)}, so it is not a plain LoRA. {MERGE}")


def _adapter_target(file: AnyPath, layer: str, module: str) -> tuple[AdapterTarget, Transform]:
    for location in MODULE_PATTERNS:
        if match := location.pattern.fullmatch(module):
            block = int(match[1]) if match.groups() else None
            return AdapterTarget(location.layer, block, location.part, location.parts), location.transform
    raise InputError(f"{file}: {layer}: is not a linear layer or 1 x 1 convolution of SANA or the connector, where adapters may be.")


def _scale(file: AnyPath, config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) of a rank-stabilised LoRA (arXiv 2312.03732), by a LoraConfig."""
    if not config:
        return 1.0

    def own(patterns: str, default: str) -> Any:
        values = config.get(patterns) or {}
        try:
            value = next((value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", module)), config.get(default))
        except (re.error, AttributeError) as error:
            raise InputError(f"{file}: {patterns} in its config cannot be used ({error}). Save it again.") from error
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{file}: {default} of {module} is {value!r} in its config: a positive number is expected. Save it again.")
        return value

    stated = own("rank_pattern", "r")
    check(stated == rank, f"{file}: {module} has rank {rank}, its config says {stated} (r, rank_pattern). Save it again.")
    return own("alpha_pattern", "lora_alpha") / (math.sqrt(rank) if config.get("use_rslora") else rank)


def write_lora(folder: AnyPath, lora: Lora, to: str, *, overwrite: bool = False) -> None:
    """Write a LoRA as a new folder: "dim" (PEFT, by the names of Draw-In-Mind), "peft" (PEFT, by those of diffusers' SANA) or "diffusers".

    Raises:
        InputError: `to` is another word, or the folder exists (and may not be overwritten) or cannot be written.
    """
    check(to in TARGETS, f"--to {to}: a LoRA is written as one of {', '.join(TARGETS)}.")
    with new_folder(folder, overwrite=overwrite, kind=FOLDER) as scratch:
        if to == "dim":
            _write(scratch / PEFT_FILE, join_projections(lora), BY_DIM, PEFT_PREFIX)
            return
        main = {slot: pair for slot, pair in lora.pairs.items() if slot.layer in BY_DIFFUSERS}
        extra = {slot: pair for slot, pair in lora.pairs.items() if slot.layer not in BY_DIFFUSERS}
        if main:
            file, prefix = (PEFT_FILE, PEFT_PREFIX) if to == "peft" else (DIFFUSERS_FILE, DIFFUSERS_PREFIX)
            _write(scratch / file, split_projections(Lora(lora.where, main), BY_DIFFUSERS), BY_DIFFUSERS, prefix)
        else:
            raise InputError(f"{lora.where}: has adapters of the connector alone, which diffusers does not have. Write it with --to dim.")
        if extra:
            _write(scratch / EXTRA_FILE, Lora(lora.where, extra), BY_DIM, "")


def _write(file: Any, lora: Lora, rows: Mapping[str, Row], prefix: str) -> None:
    """A file of tensors, and its LoraConfig: beside it for PEFT, in its header for diffusers."""
    tensors: dict[str, np.ndarray] = {}
    modules: dict[str, LoraFactors] = {}
    for slot, pair in sorted(lora.pairs.items(), key=lambda item: (item[0].layer, item[0].block or 0, item[0].part)):
        row = rows[slot.layer]
        module = row.parts[slot.part].removesuffix(".weight").replace("*", str(slot.block))
        modules[module] = pair
        for factor, tensor in (("A", pair.a), ("B", pair.b)):
            tensors[f"{prefix}{module}.lora_{factor}.weight"] = row.transform.to_hf(tensor)
    config = _config(modules)
    if file.name == PEFT_FILE:
        file.with_name(CONFIG).write_text(json.dumps(config | {"inference_mode": True}, indent=2) + "\n")
        header = {}
    else:
        header = {METADATA: json.dumps({f"{prefix}{key}": value for key, value in config.items()}, indent=2, sort_keys=True)}
    infos = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    with SafetensorsWriter(file, infos, header) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def _config(modules: Mapping[str, LoraFactors]) -> dict[str, Any]:
    """PEFT's LoraConfig of these pairs by module: what most have, and what is different in some."""
    ranks = {module: pair.rank for module, pair in modules.items()}
    alphas = {module: _round_alpha(pair.scale * pair.rank) for module, pair in modules.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA", "r": r, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": list(modules),
        "rank_pattern": {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {f"^{re.escape(module)}": value for module, value in alphas.items() if value != alpha},
    }  # fmt: skip


def _round_alpha(number: float) -> int | float:
    """An alpha without the last digits of the product that it comes from."""
    return round(number) if abs(number - round(number)) < 1e-6 * number else number
