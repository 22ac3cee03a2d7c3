"""`dim doctor`: whether this machine can run the package, check by check, with a remedy for what is wrong."""

import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dim_jax import __version__
from dim_jax.errors import InputError, listed
from dim_jax.models.precision import exact_products
from dim_jax.storage.disk import GIB, format_bytes, free_bytes, is_creatable
from dim_jax.storage.local_cache import cache_folder
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.loading import open_dim

LITTLE_DISK = 2 * GIB  # bytes: less holds no cache of compiled programs
MAX_ERROR = {"float32": 1e-5, "bfloat16": 1e-2}  # of a product, relative: TensorFloat-32 has 3e-4, and bfloat16 itself 3e-3


class Check(NamedTuple):
    """What was looked at and seen. With a remedy, something is wrong."""

    name: str
    detail: str
    remedy: str = ""


def diagnose(checkpoint: AnyPath | str) -> Iterator[Check]:
    """Every check in turn. `checkpoint`: whose format and tokenizer are looked at; its weights are not read."""
    yield check_python(platform.python_version())
    yield check_packages()
    yield Check("extras", listed([name for name in extras() if not missing_packages(name)]) or "none")
    yield check_devices()
    yield check_products("float32")
    yield check_products("bfloat16")
    folders = {
        "compiled programs": os.environ.get("JAX_COMPILATION_CACHE_DIR"),
        "copies from buckets": str(cache_folder("buckets")),
        "hub": os.environ.get("HF_HOME", "~/.cache/huggingface"),
        "temporary files": tempfile.gettempdir(),
    }
    for name, folder in folders.items():
        if folder is not None:
            yield check_folder(name, Path(folder).expanduser().absolute())
    yield check_checkpoint(checkpoint)


def check_python(running: str) -> Check:
    """`running`: a version such as "3.11.7"."""
    supported = metadata("dim_jax")["Requires-Python"]
    remedy = "" if running in SpecifierSet(supported) else f"Install Python {supported}, and dim_jax there."
    return Check("Python", f"{running}, dim_jax {__version__} in {sys.prefix}", remedy)


def check_packages() -> Check:
    """The packages that every command needs, in the versions that it needs."""
    missing = missing_packages()
    newest = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax") if name not in " ".join(missing))
    return Check("packages", listed(missing) or newest, "Install what is missing: pip install --upgrade dim_jax." if missing else "")


def extras() -> list[str]:
    """The names of what can be installed beside the package, as in pip install 'dim_jax[train]'; devices are checked by themselves."""
    return [name for name in metadata("dim_jax").get_all("Provides-Extra", []) if name not in ("test", "docs", "gpu", "tpu")]


def missing_packages(extra: str = "") -> list[str]:
    """What the package, or one of its extras beside that, needs but is not installed or too old: "flax>=0.12.8 (0.10.0 is installed)"."""
    missing = []
    for requirement in map(Requirement, requires("dim_jax") or ()):
        needed, of_package = (requirement.marker is None or requirement.marker.evaluate({"extra": name}) for name in (extra, ""))
        if not needed or (extra and of_package):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            missing.append(f"{requirement.name}{requirement.specifier}")
        else:
            if not requirement.specifier.contains(installed, prereleases=True):
                missing.append(f"{requirement.name}{requirement.specifier} ({installed} is installed)")
    return missing


def check_devices() -> Check:
    """What JAX computes on, and whether it leaves an accelerator of this machine unused."""
    devices = jax.local_devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    detail = f"{len(devices)} x {devices[0].device_kind}" + (f", {format_bytes(memory)} each" if memory else "")
    remedy = ""
    if devices[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        unused = {"gpu": "an NVIDIA GPU", "tpu": "a TPU"}
        seen = {"gpu": shutil.which("nvidia-smi"), "tpu": list(Path("/dev").glob("accel[0-9]*"))}
        remedy = next((f"There is {unused[kind]}: pip install 'dim_jax[{kind}]'." for kind in unused if seen[kind]), "")
    return Check("devices", detail, remedy)


def check_products(dtype: str) -> Check:
    """Whether products are as exact as the models take them to be."""
    a, b = np.random.default_rng(0).normal(size=(2, 256, 256))
    product = jax.jit(exact_products(jnp.matmul))(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
    error = float(np.linalg.norm(np.asarray(product, np.float64) - a @ b) / np.linalg.norm(a @ b))
    remedy = "Unset JAX_DEFAULT_MATMUL_PRECISION; if it is not set, upgrade jax and the device's driver."
    remedy = "" if error <= MAX_ERROR[dtype] else remedy
    return Check(f"{dtype} products", f"off by {error:.0e} (at most {MAX_ERROR[dtype]:.0e})", remedy)


def check_folder(name: str, folder: Path) -> Check:
    """Whether files can be written to a folder, which need not exist yet."""
    if not is_creatable(folder):
        return Check(name, f"{folder} cannot be written to", "Name another folder in the environment, or free this one.")
    free = free_bytes(folder)
    remedy = f"Free space there: less than {format_bytes(LITTLE_DISK)} is left." if free < LITTLE_DISK else ""
    return Check(name, f"{folder}, {format_bytes(free)} free", remedy)


def check_checkpoint(path: AnyPath | str) -> Check:
    """Whether a checkpoint with its tokenizer can be opened."""
    try:
        weights, config, processor = open_dim(path, None)
    except InputError as error:
        return Check("checkpoint", str(path), str(error))
    size = sum(math.prod(shape) for shape in weights.config.shapes().values())
    does = "edits and paints" if config.sana.is_edit else "paints"
    return Check("checkpoint", f"{path}: {weights.title}, {size:,} parameters, {does}; tokenizer {processor.tokenizer.name}")
