"""Names and texts are printed exactly as they are: no markup, no emoji, no colours, no line broken, no panel around them."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from dim_jax.cli.main import main
from dim_jax.console import open_console
from dim_jax.evals import emoji
from dim_jax.training.progress import ProgressBar
from dim_jax.weights.convert import convert
from tests.painter_fixtures import dim, edit, one_error, picture, tiny_checkpoint

PACKAGE = Path(__file__).parents[1] / "dim_jax"
STRANGE = (":m:", ":fire:", "[draft]", "[/x]", "[bold red]a[/]", "'1' 2.5e3 True None", "[link=file://a]b", "a\\[b]", "x" * 300 + " y")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(40, 40, 1).save("in.png")


def test_consoles_are_made_in_one_place():
    """And what a library says on a console that it was given goes through `out`; bars take no markup."""
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name != "console.py":
            assert not re.search(r"(?<![\w.])Console\(", text), file
        assert not re.search(r"console\.print\((?!table)", text), file
        assert not re.search(r"TextColumn\([^)]*\{(?![^)]*markup=False)", text), file


@pytest.mark.parametrize("text", STRANGE)
def test_console_width_and_markup(text, capsys):
    open_console().print(text)
    open_console(stderr=False).print(text)
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")


@pytest.mark.parametrize("name", ["a\tb", *STRANGE])
def test_errors(name):
    """A name in an error line, and in an error of usage."""
    assert one_error(dim(*edit(image=f"{name[:200].replace('/', '|')}.png"))).startswith(f"error: {name[:200].replace('/', '|')}.png: ")
    code, text = dim(*edit("--size", name))
    assert (code, name in text) == (2, True)
    code, text = dim("convert", "a", "b", "--to", name)
    assert (code, repr(name)[1:-1] in text) == (2, True)


def test_messages_on_tty_and_pipe():
    """Also on one that a caller made, with everything that Rich does."""
    said, name = io.StringIO(), "[draft] :fire: [bold red]'1' 2.5e3 True"
    console = Console(file=said, width=30)
    convert(tiny_checkpoint(Path(f"in {name}")), f"out {name}", "orbax", console=console)
    assert f"in {name} (" in said.getvalue()
    assert f"wrote out {name}\n" in said.getvalue()


def test_progress_of_a_run():
    said = io.StringIO()
    with ProgressBar(Console(file=said, width=20), total=2, start_step=0) as shown:
        means = {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0}
        shown.update(1, means, {"steps_per_second": 1.0, "samples_per_second": 1.0, "waiting_for_data": 0.0})
    assert said.getvalue().count("\n") == 1


def test_rules_in_a_table():
    row = {"pairs": 1, "nearer": 1.0} | dict.fromkeys(emoji.COLUMNS, 1.0)
    report = {"autoencoder": {"pictures": 1, "psnr": 1.0}, "rules": {"[draft] :fire:": row}, "overall": row}
    said = io.StringIO()
    Console(file=said, width=200).print(emoji.table(report))
    assert "[draft] :fire:" in said.getvalue()


def test_help_is_plain(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dim", "convert", "--help"])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    assert "[SRC] DST" in text
    assert "│" not in text
