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

# What a change of 1 % does not show, and why. In brackets the largest effect with tests/goldens, in tolerances.
_NORM = "the condition's norm has weights near 0.01, so keys hardly differ from token to token and attention is flat whatever the query"
INSENSITIVE = {
    r".*blocks\.\d+\.attn\.[qk]_norm\.weight": "scale-invariant: queries and keys cancel in ReLU linear attention (0.07)",
    r".*cross_attn\.(q_norm|k_norm|q_linear)\.(weight|bias)": f"{_NORM} (0.25); test_sana.py holds them with random weights",
    r".*y_embedder\.y_embedding": f"the null table enters the sampler alone, and there {_NORM} (0.4)",
    r"sana_.*\.loss\..*: condition": f"a mean over a picture, and {_NORM} (0.2)",
    r"sana_t2i\.loss\..*: source_latents": "unread: the published code writes them for text to image too (0)",
    r".*pos_embed": "unread: a buffer that the published forward never looks at (0)",
    r"(dc_ae|.*vae)\..*\.(conv2|conv_point|to_out)\.weight": "scale-invariant: no bias before an RMSNorm, but for its epsilon (0.11)",
    r"(dc_ae|.*vae)\..*blocks\.2\..*\.to_q\.weight": "scale-invariant: with two heads, one head's queries and keys, which cancel (0.04)",
    r"(dc_ae|.*vae)\..*decoder.*conv1\.bias": "small beside its convolution (0.7)",
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
