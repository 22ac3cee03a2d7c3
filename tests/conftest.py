"""Shared by all tests: JAX stays on the CPU, nothing is downloaded, random tests repeat themselves, one name finds the goldens."""

import gc
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

# Before anything imports JAX. Less optimization halves the time of the many small compilations; workers inherit the cache's place.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # XLA ends the process at a flag that it does not know, and each version knows others
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"  # a third less work to compile
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the cores are the tests' processes'; threads of PyTorch and numpy that wait for one are busy
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_NUM_PROCESSES", "1")  # on a cluster too

import hypothesis
import jaxtyping
import pytest

GOLDENS = Path(__file__).parent / "goldens"

hypothesis.settings.register_profile("dim", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("dim")


def may_hold_arrays(hint: Any) -> bool:
    """Whether a shape may stand in an annotation; True where that cannot be seen, as in one that is a string."""
    if parts := get_args(hint):
        return any(map(may_hold_arrays, parts))
    if isinstance(hint, type):
        return issubclass(hint, jaxtyping.AbstractArray)
    return hint not in (None, Any, ...)


def jaxtyped(*functions: Any, original: Callable[..., Any] = jaxtyping.jaxtyped, **options: Any) -> Any:
    """As jaxtyping's, which the import hook puts before every function. Where no shape is named, beartype alone checks: keeping track of
    letters takes several times as long, which was most of what short functions on words took."""
    decorate = original(*functions, **options)
    if functions or options.get("typechecker") is None:
        return decorate

    def quicker(function: Any) -> Any:
        if not inspect.isfunction(function):
            return decorate(function)
        signature = inspect.signature(function)
        hints = (signature.return_annotation, *(parameter.annotation for parameter in signature.parameters.values()))
        return (decorate if any(map(may_hold_arrays, hints)) else options["typechecker"])(function)

    return quicker


jaxtyping.jaxtyped = jaxtyped


def pytest_configure(config: pytest.Config) -> None:
    """One compilation cache for the processes of this run, gone at its end: a cache of another machine or version is never read."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="dim_jax_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    # Each process of this run has a bucket of its own, and so copies of its own.
    copies = tempfile.mkdtemp(prefix="dim_jax_tests_")
    os.environ["DIM_JAX_CACHE"] = copies
    config.add_cleanup(lambda: shutil.rmtree(copies, ignore_errors=True))


# Files that take longest, first: those that are left at the end are spread over the processes evenly.
LONGEST = (
    "train", "docs", "cache", "several", "web_page", "processes", "compile", "reward", "lora_training", "learning", "sharding", "verify",
    "distillation", "training_stages", "kills", "supervision", "emoji_build", "fused", "sana", "serve_nano", "paths", "exporting",
    "emoji_icons", "state", "best_of", "quantized", "painting_devices", "full_disk",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Also the order in which `--dist loadfile` hands files to processes."""
    order = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """Looking for garbage took a tenth of the time: what was imported stays, and what tracing leaves behind may wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the checkpoint, the tests' shared painter is taken for it."""
    from dim_jax.sampling import Sampler
    from tests.painter_fixtures import painter

    shared = painter()  # made before the patch, which it would call
    monkeypatch.setattr(Sampler, "from_pretrained", lambda path, **options: shared)


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bucket of Google Cloud Storage that lives on this machine; each test takes names of its own in it."""
    from tests.bucket import local_bucket

    with local_bucket(tmp_path_factory.mktemp("bucket") / "log") as address:
        yield address


@pytest.fixture
def goldens() -> Path:
    """The folder of tensors that the published PyTorch code computed (README there)."""
    return GOLDENS
