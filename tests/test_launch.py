"""Launch scripts: what a dry run shows are commands that exist, on configs that exist."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import typer

from dim_jax import cli

ROOT = Path(__file__).parents[1]


def test_nano_shows_what_it_would_run():
    command = ["bash", "launch/nano.sh", "--dry-run", "data/nowhere", "my runs", "data.workers=2"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [shlex.split(line) for line in shown]
    assert sorted(line[1] for line in lines) == ["build-data", "convert", "evaluate", "evaluate", *["train"] * 4]
    for line in lines:
        assert line[0] == "dim"
        if "--config" in line:
            assert (ROOT / line[line.index("--config") + 1]).is_file()
            assert "data.workers=2" in line
        parse(line[1:])


def parse(words: list[str]) -> None:
    """Raises where the command line does not know a command or an option, or lacks one; runs nothing."""
    command: Any = typer.main.get_command(cli.app)
    while words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("dim", list(words))


def test_nano_says_how_it_is_used():
    shown = subprocess.run(["bash", "launch/nano.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "launch/nano.sh [--dry-run] DATA RUNS" in shown.stderr
