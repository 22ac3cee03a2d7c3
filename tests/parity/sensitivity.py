"""Would the goldens notice? Every tensor of a folder changed by 1 %, and whether check_goldens then fails.

    python tests/parity/sensitivity.py DIR

Prints what goes unnoticed, with the largest effect on anything that is compared, in tolerances, and why. Exits with 1 if INSENSITIVE
does not explain one. CI runs a part of this (test_sensitivity.py).
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from safetensors import safe_open

from tests.parity.check_goldens import NAMES, Line, check
from tests.parity.goldens import Goldens

# The names whose checks open a file, the quickest first.
READERS = {
    "sana_t2i": ("sana_t2i",),
    "sana_edit.weights": ("sana_edit", "adamw"),
    "sana_edit": ("sana_edit",),
    "qwen": ("qwen",),
    "dc_ae": ("dc_ae",),
    "dim_edit": ("dim_edit",),
    "preprocess": ("preprocess",),
    "adamw": ("adamw",),
}

# What a change of 1 % does not show, by the last part of the name, and why. The numbers are effects in tolerances with tests/goldens.
_SCALE = "no output depends on its scale: "
_FLAT = (
    "the condition's norm has weights near 0.01, so keys hardly differ from token to token and attention is flat whatever the query: "
    "at most {} of a tolerance; test_sana.py holds these layers with random weights against diffusers instead"
)
INSENSITIVE = {
    r".*attn\.(q|k)_norm\.weight(?<!cross_attn\.._norm\.weight)": _SCALE + "queries and keys cancel in ReLU linear attention",
    r".*cross_attn\.(q_norm|k_norm|q_linear)\.(weight|bias)": _FLAT.format(0.1),
    r".*y_embedder\.y_embedding": f"the null table enters the sampler alone, through the same norm: {0.3} of a tolerance",
    r"sana_.*\.loss\..*: condition(_mask)?": f"the mean loss hardly depends on the condition, for the same norm: {0.5} of a tolerance",
    r"sana_t2i\.loss\..*: source_latents": "text to image reads none; the published code writes them all the same",
    r".*pos_embed": "a buffer of the published class that its forward never reads",
    r"(dc_ae|.*vae)\..*conv2\.weight": _SCALE + "no bias, and an RMSNorm behind it",
    r"(dc_ae|.*vae)\..*conv_point\.weight": _SCALE + "no bias, and an RMSNorm behind it",
    r"(dc_ae|.*vae)\..*attn\.to_out\.weight": _SCALE + "no bias, and an RMSNorm behind it",
    r"(dc_ae|.*vae)\..*blocks\.2\..*attn\.to_q\.weight": _SCALE + "with two heads its rows are one head's queries and keys, which cancel",
    r"(dc_ae|.*vae)\.decoder.*conv1\.bias": f"small beside its convolution: {0.6} of a tolerance",
}


def tensors(folder: Path) -> Iterator[tuple[str, str]]:
    """File and name of every tensor in the folder."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            yield from ((path.name, name) for name in sorted(file.keys()))


def kind(file: str, name: str) -> str:
    """The same for all layers and cases of one part of the model."""
    return f"{file}: {re.sub(r'[0-9]+', '*', name)}"


def changed(tensor: np.ndarray) -> np.ndarray:
    """1 % more; a number that counts or marks something has no 1 %, so the first one changes by one."""
    if tensor.dtype == np.uint8:  # a picture
        return np.minimum(np.round(tensor * 1.01), 255).astype(np.uint8)
    if np.issubdtype(tensor.dtype, np.integer):
        other = tensor.copy()
        other.flat[0] ^= 1
        return other
    return tensor * tensor.dtype.type(1.01)


def noticed(folder: Path, file: str, name: str) -> Line:
    """The first line that fails after the change, or else the one that comes nearest to it."""
    value = Goldens(folder).tensors(file)[name]
    goldens = Goldens(folder, {file: {name: changed(value)}})
    nearest = Line(True, "nothing", "", 0.0)
    for reader in _readers(file):
        for line in check(goldens, reader):
            if not line.ok:
                return line
            nearest = max(nearest, line, key=lambda line: line.ratio)
    return nearest


def effect(folder: Path, file: str, name: str) -> float:
    """The largest change of anything of ours that is compared, in tolerances."""
    value = Goldens(folder).tensors(file)[name]
    worst = 0.0
    for reader in _readers(file):
        before, after = Goldens(folder), Goldens(folder, {file: {name: changed(value)}})
        for parts in zip(NAMES[reader](before, None), NAMES[reader](after, None), strict=True):
            for was, now in zip(*parts, strict=True):
                difference = np.abs(np.asarray(now.ours, np.float64) - was.ours)
                allowed = was.atol + was.rtol * np.abs(was.golden)
                worst = max([worst, *(difference[difference > 0] / np.broadcast_to(allowed, difference.shape)[difference > 0])])
    return worst


def _readers(file: str) -> tuple[str, ...]:
    return next(names for prefix, names in READERS.items() if file.startswith(prefix + "."))


def explanation(file: str, name: str) -> str | None:
    """Why a change of this tensor shows nowhere, if INSENSITIVE says."""
    return next((why for pattern, why in INSENSITIVE.items() if re.fullmatch(pattern, f"{file}: {name}")), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    count = unnoticed = unexplained = 0
    for file, name in tensors(folder):
        count += 1
        if not noticed(folder, file, name).ok:
            continue
        why = explanation(file, name)
        unexplained += why is None
        print(f"{effect(folder, file, name):.1e} {file}: {name}: {why or 'UNEXPLAINED'}", flush=True)
        unnoticed += 1
    print(f"{count} tensors, {count - unnoticed} noticed, {unnoticed} not, {unexplained} unexplained")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
