"""The package as others install it: a wheel from the source distribution has all that the checkout's package has, and finds it."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("configs", "dim_jax", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
PROGRAM = """
import dim_jax
from dim_jax.cli.main import app
from dim_jax.config import find_config
from dim_jax.errors import InputError
from dim_jax.weights.bundled import bundled_checkpoint
assert dim_jax.InputError is InputError
print(dim_jax.__version__, *(sorted(path.name for path in (bundled_checkpoint() / "samples").glob("*.json"))))
print(*(name.is_relative_to(dim_jax.__path__[0]) for name in (bundled_checkpoint(), find_config(__import__("pathlib").Path("nano_edit")))))
"""


def python(program: str, *arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def test_the_wheel_has_what_the_checkout_has(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"ignore": shutil.ignore_patterns("__pycache__")} if (ROOT / name).is_dir() else {}))
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    python(build, "build_sdist", str(tmp_path), cwd=source)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        sdist.extractall(tmp_path / "sdist", filter="data")
    python(build, "build_wheel", str(tmp_path), cwd=next((tmp_path / "sdist").iterdir()))
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    expected = files(ROOT / "dim_jax") | {f"configs/{name}" for name in files(ROOT / "configs")}
    assert files(installed / "dim_jax") == expected
    lines = python(PROGRAM, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert lines == [f"{version} samples.json", "True True"]
