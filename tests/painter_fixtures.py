"""What the tests of pipelines, paintings and commands share: the tiny random checkpoint of the goldens, one painter of it, `dim`."""

import contextlib
import functools
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import typer
from PIL import Image

from dim_jax.cli.main import app, main
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.weights.bundled import bundled_checkpoint

HERE = Path(__file__).parent
CONFIGS = ("qwen.config.json", "dc_ae.config.json", "sana_edit.json")
# Three steps: with fewer, both solvers are of first order and paint the same.
QUICK = Settings(num_steps=3, resolution=64, batch_size=2)
QUICKLY = ("--steps", "3", "--resolution", "64")


def tiny_checkpoint(folder: Path) -> Path:
    """The goldens' edit model as a published folder: weights, configs, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "goldens/dim_edit.model.safetensors", folder / "model.safetensors")
    for file in (*(HERE / "goldens" / name for name in CONFIGS), *(HERE / "tiny_tokenizer").glob("*.json")):
        shutil.copy(file, folder)
    return folder


def quick_nano(folder: Path, steps: int) -> Path:
    """The bundled model, as links to its files, which paints in so few steps."""
    shutil.copytree(bundled_checkpoint(), folder, copy_function=os.symlink)
    settings = json.loads((folder / "settings.json").read_text()) | {"num_steps": steps}
    (folder / "settings.json").unlink()
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@functools.cache
def painter() -> Sampler:
    """One for the whole test process, because compiling takes most of the time: never change it."""
    with tempfile.TemporaryDirectory() as folder:
        return Sampler.from_pretrained(tiny_checkpoint(Path(folder) / "tiny"))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A few random colours, blended."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BILINEAR)


def largest_difference(a: Image.Image, b: Image.Image) -> int:
    """In grey levels; pictures of different sizes are an error."""
    assert a.size == b.size
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def dim(*arguments: str) -> tuple[int, str]:
    """Runs the command in this process: exit code and what it wrote to stderr."""
    errors = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["dim", *arguments]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, errors.getvalue()


def parse(words: Sequence[str]) -> None:
    """Raises where `dim` does not know a command or an option, or lacks one; runs nothing."""
    assert words[0] == "dim"
    command: Any = typer.main.get_command(app)
    words = words[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("dim", list(words))


def edit(*more: str, checkpoint: str = "never-looked-at", image: str = "in.png", prompt: str = "red", output: str = "out.png"):
    return "edit", "--checkpoint", checkpoint, "--image", image, "--prompt", prompt, "-o", output, *more


def generate(*more: str, checkpoint: str = "never-looked-at", prompt: str = "red", output: str = "out.png"):
    return "generate", "--checkpoint", checkpoint, "--prompt", prompt, "-o", output, *more


def one_error(result: tuple[int, str]) -> str:
    """The message of an error that the user can mend."""
    code, text = result
    assert code == 1, text
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    return text


def build_data(kind: str, folder: Path, *more: str) -> dict:
    """Runs `dim build-data` for a data set of pairs; what its statistics.json holds."""
    code, text = dim("build-data", kind, str(folder), *more)
    assert code == 0, text
    statistics = json.loads((folder / "statistics.json").read_text())
    assert text == f"wrote {folder}: {statistics['total']['train']} pairs to train on, {statistics['total']['test']} to test\n"
    return statistics
