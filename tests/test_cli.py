"""The command `dim`: what it prints, its exit codes, what it leaves on disk. Mostly in this process, since starting one takes seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dim_jax.cli.__main__ import run
from dim_jax.edit_result import read_metadata, sheet
from dim_jax.errors import InputError
from dim_jax.pipeline import EditPipeline
from dim_jax.sampling import Sampler
from dim_jax.session import EditSession
from tests.painter_fixtures import (
    QUICK,
    QUICKLY,
    dim,
    edit,
    generate,
    largest_difference,
    one_error,
    painter,
    picture,
    tiny_checkpoint,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """Every test has a folder of its own with a picture in it."""
    monkeypatch.chdir(tmp_path)
    picture(40, 40, 1).save("in.png")


def process(*arguments: str) -> subprocess.CompletedProcess:
    """The command as a user starts it."""
    return subprocess.run([sys.executable, "-m", "dim_jax.cli", *arguments], capture_output=True, text=True, timeout=400, check=False)


# What works


def test_edit_in_a_process_of_its_own():
    tiny_checkpoint(Path("tiny [1]"))
    done = process(*edit("--sheet", *QUICKLY, "--seed", "5", checkpoint="tiny [1]", output="out [2].png"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "wrote out [2].png and out [2].sheet.png\n")
    metadata = read_metadata("out [2].png")
    assert (metadata["prompt"], metadata["seed"], metadata["checkpoint"], metadata["dtype"]) == ("red", 5, "tiny [1]", "float32")
    assert metadata["settings"]["size"] is None, "an edit has its source's"
    (ours,) = EditPipeline(painter())(["red"], [Image.open("in.png")], seeds=[5], settings=QUICK)
    with Image.open("out [2].png") as edited, Image.open("out [2].sheet.png") as both:
        assert largest_difference(edited, ours.image) <= 1
        assert largest_difference(both, sheet([ours])) <= 1
    assert sorted(os.listdir()) == ["in.png", "out [2].png", "out [2].sheet.png", "tiny [1]"]


def test_options_reach_the_pipeline(loaded):
    schedule = ("--guidance-start", "0.25", "--guidance-stop", "0.5", "--cache-interval", "2")
    options = (*schedule, "--seed", "3", "--guidance", "2", "--flow-shift", "2.5", "--negative-prompt", "no", "--solver", "euler")
    assert dim(*edit(*options, *QUICKLY, "--size", "64X64", "--keep-last")) == (0, "wrote out.png\n")
    metadata = read_metadata("out.png")
    assert metadata["seed"] == 3
    assert metadata["settings"] == {
        "num_steps": 3, "guidance_scale": 2.0, "image_guidance_scale": 1.0, "flow_shift": 2.5, "solver": "euler", "resolution": 64,
        "size": (64, 64), "tile": None, "negative_prompt": "no", "overflow": "keep_last",
        "guidance_start": 0.25, "guidance_stop": 0.5, "cache_interval": 2, "float8": False, "distilled": "none",
    }  # fmt: skip


def test_edit_rounds_save_every_picture(loaded):
    more = ("--then", "a hat on it", "--then", "cut", "--rounds", "--sheet", "--seed", "4", "--keep-unchanged", *QUICKLY)
    assert dim(*edit(*more)) == (0, "wrote out.png and out.sheet.png\n")
    assert sorted(os.listdir()) == ["in.png", "out.1.png", "out.2.png", "out.3.png", "out.png", "out.sheet.png"]
    ours = EditSession(EditPipeline(painter()), Image.open("in.png"), settings=QUICK, keep_unchanged=True)
    for number, prompt in enumerate(("red", "a hat on it", "cut"), 1):
        with Image.open(f"out.{number}.png") as painted:
            assert painted.tobytes() == ours.edit(prompt, seed=4).image.tobytes()
    with Image.open("out.sheet.png") as both:
        assert both.tobytes() == sheet(ours.rounds).tobytes()
    metadata = read_metadata("out.png")
    assert read_metadata("out.3.png") == metadata
    assert [(one["prompt"], one["seed"]) for one in (*metadata["earlier"], metadata)] == [("red", 4), ("a hat on it", 4), ("cut", 4)]
    assert [one["prompt"] for one in read_metadata("out.2.png")["earlier"]] == ["red"]


def test_invalid_round_options_are_refused_before_loading(loaded, monkeypatch):
    """Refused before anything is loaded; a round that fails later leaves those before it."""
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "from_pretrained", lambda path, **options: pytest.fail("a checkpoint was loaded"))
        assert "The prompt of round 3 is empty" in one_error(dim(*edit("--then", "cut", "--then", " ")))
        Path("out.2.png").write_text("mine")
        assert "out.2.png exists" in one_error(dim(*edit("--then", "cut", "--rounds")))
        Path("out.2.png").unlink()
    long = "a long way to the sea, then on to the isle"
    assert "is too long" in one_error(dim(*edit("--then", long, "--rounds", *QUICKLY)))
    assert sorted(os.listdir()) == ["in.png", "out.1.png"]


def test_generate(loaded):
    assert dim(*generate(*QUICKLY)) == (0, "wrote out.png\n")
    with Image.open("out.png") as painted:
        assert painted.size == (64, 64)


def test_dtype_and_devices(monkeypatch):
    loads, shared = [], painter()
    monkeypatch.setattr(Sampler, "from_pretrained", lambda path, **options: loads.append(options) or shared)
    assert dim(*edit(*QUICKLY, "--dtype", "float32", "--tokenizer", "T"))[0] == 0
    assert dim(*edit(*QUICKLY, "--devices", "data=2,fsdp=-1", "--overwrite"))[0] == 0
    assert dim(*generate(*QUICKLY, "--devices", "all", "--overwrite"))[0] == 0
    common = {"loras": (), "quantize": None, "offload": False}
    assert loads == [
        {"edits": True, "dtype": "float32", "tokenizer": "T", "mesh": None} | common,
        {"edits": True, "dtype": None, "tokenizer": None, "mesh": {"data": 2, "fsdp": -1}} | common,
        {"dtype": None, "tokenizer": None, "mesh": {"data": -1}} | common,
    ]


@pytest.mark.parametrize("devices", ["two", "data=", "data=2,fsdp", "data=2,data=2", "1.5"])
def test_invalid_devices_are_refused(devices):
    code, said = dim(*edit("--devices", devices))
    assert code == 2
    assert f"{devices}: write a number, all, or AXIS=N,... such as data=2,fsdp=2." in said


def test_convert_roundtrip():
    tiny_checkpoint(Path("tiny"))
    assert dim("convert", "tiny", "ours")[0] == 0
    assert dim("convert", "ours", "back", "--to", "dim")[0] == 0
    assert Path("back/model.safetensors").read_bytes() == Path("tiny/model.safetensors").read_bytes()


@pytest.mark.parametrize("which", ["edit", "sheet", "generate", "convert"])
def test_an_existing_output(loaded, which):
    """Refused before anything is read; replaced with --overwrite."""
    tiny_checkpoint(Path("tiny"))
    taken = Path("ours" if which == "convert" else "out.sheet.png" if which == "sheet" else "out.png")
    command = {
        "edit": edit(*QUICKLY),
        "sheet": edit(*QUICKLY, "--sheet"),
        "generate": generate(*QUICKLY),
        "convert": ("convert", "tiny", "ours", "--to", "dim"),
    }[which]
    if which == "convert":
        taken.mkdir()
        (taken / "model.safetensors").write_text("mine")
        taken = taken / "model.safetensors"
    else:
        taken.write_text("mine")
    before = sorted(os.listdir())
    assert "exists" in one_error(dim(*command))
    assert taken.read_text() == "mine"
    assert sorted(os.listdir()) == before
    assert dim(*command, "--overwrite")[0] == 0
    assert taken.stat().st_size > 100


def test_compiled_programs_are_kept_where_the_user_wants(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for chosen in ("/scratch/cache", ""):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
        dim("--version")
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == chosen
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    dim("--version")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/home/me/.cache/dim_jax"


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/me", "no/folder"])
def test_without_home_compilation_cache_is_off(home, monkeypatch):
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert dim("--version") == (0, "")
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("name", ["--prompt", "--negative-prompt"])
def test_a_prompt_that_is_no_text(name):
    """An argument in Latin-1, as Python hands it on."""
    message = one_error(dim(*generate(), name, "Make it caf\udce9 brown"))
    assert "prompt is not valid Unicode text (half a character, U+DCE9, at 11)" in message


def test_ctrl_c_is_one_line(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dim_jax.edit_result.check_output", interrupt)
    assert dim(*generate()) == (130, "stopped by Ctrl-C\n")


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        ("paint",), edit("--nonsense"), edit("--steps", "0"), edit("--steps", "many"), edit("--guidance", "-1"),
        edit("--image-guidance-scale", "-1"), edit("--size", "64"), edit("--size", "64x-64"),
        edit("--dtype", "int8"), edit()[:-2], edit("--rounds"),
        edit("--then", "cut", "--blueprint", "in.png"), ("convert", "only"),
        ("convert", "a", "b", "c"), ("convert", "out", "--sana", "s"), ("convert", "a", "b", "--to", "gguf"),
        ("convert", "a", "b", "--dtype", "int8"),
        ("convert", "out", "--encoder", "e", "--sana", "s", "--autoencoder", "a", "--max-shard-size", "5GB"),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[9:]),
)  # fmt: skip
def test_wrong_usage(arguments):
    code, text = dim(*arguments)
    assert code == 2
    assert "Traceback" not in text
    assert "error" in text.lower()
    assert os.listdir() == ["in.png"]


def test_a_wrong_solver_lists_all_and_so_does_the_help():
    code, text = dim(*edit("--solver", "heun"))
    assert code == 1
    assert 'There is no solver "heun". Solvers are dpm++2m, euler, scm.' in text
    assert "dpm++2m or euler or scm" in " ".join(process("edit", "--help").stdout.split())


def test_help_says_what_the_command_is_for():
    assert "Draw-In-Mind: edit and paint pictures" in " ".join(process("--help").stdout.split())


def test_help_usage_errors_and_bad_pictures_load_no_jax():
    """They answer at once; `import jax` and `import transformers` take seconds."""
    script = f"""
import sys
from dim_jax.cli.main import main
print("HEAVY", sorted({{"numpy", "asyncio"}} & set(sys.modules)))
for arguments in (["--help"], ["edit", "--help"], ["--version"], ["edit", "--nonsense"], ["convert", "a"],
                  {list(edit("--size", "x"))!r}, {list(edit(image="none.png"))!r}, {list(edit(output="in.png"))!r}):
    sys.argv = ["dim", *arguments]
    try:
        main()
    except SystemExit as end:
        print("EXIT", end.code)
print("HEAVY", sorted({{"jax", "flax", "transformers", "torch", "orbax"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith(("EXIT", "HEAVY"))] == [
        "HEAVY []", *["EXIT 0"] * 3, *["EXIT 2"] * 3, *["EXIT 1"] * 2, "HEAVY []",
    ]  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
def test_debug_prints_traceback(before):
    arguments = edit(image="none.png")
    with pytest.raises(InputError, match="no such file"):
        dim(*(("--debug", *arguments) if before else (*arguments, "--debug")))


def test_debug_in_a_process_of_its_own():
    done = process("--debug", *edit(image="none.png"))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("dim_jax.errors.InputError: none.png: there is no such file")


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert one_error(dim("convert", str(tmp_path), "out")).startswith("error: The folder that this command was started in is gone.")


def test_links_in_circles():
    Path("loop").symlink_to("loop")
    tiny_checkpoint(Path("tiny"))
    assert "loop: there is no such file or folder" in one_error(dim("convert", "loop", "out"))
    assert "loop exists" in one_error(dim("convert", "tiny", "loop"))


def test_a_size_of_hundreds_of_digits():
    size = "9" * 400 + "GB"
    assert f"--max-shard-size {size}: give a number" in one_error(dim("convert", "tiny", "out", "--to", "dim", "--max-shard-size", size))


def test_error_messages_are_one_line():
    """Neither wrapped, nor read as rich's markup, nor broken at a line break in a name."""
    name = "[bold]" + "long name " * 20 + "[/bold]\n2.png"
    assert name.replace("\n", " ") in one_error(dim(*edit(image=name)))
    assert "File name too long" in one_error(dim(*edit(image="x" * 300 + ".png")))


class Interrupted:
    """Finds modules as long as nobody presses Ctrl-C, which somebody does."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "dim_jax.cli.main":
            raise KeyboardInterrupt


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "dim_jax.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        run()
    assert (end.value.code, capsys.readouterr().err) == (130, "stopped by Ctrl-C\n")


def test_ctrl_c(monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "from_pretrained", stop)
    code, text = dim(*edit())
    assert code == 130
    assert "Traceback" not in text
    assert os.listdir() == ["in.png"]


class KilledAsItGoes:
    """Python drops what is raised while this goes."""

    def __init__(self, number: int):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
@pytest.mark.parametrize(
    "come", [lambda number: os.kill(os.getpid(), number), KilledAsItGoes], ids=["anywhere", "where errors are dropped"]
)
def test_a_signal_while_a_checkpoint_is_written(monkeypatch, number, code, name, come):
    def write(folder, *args, **options):
        (folder / "half").write_text("written")
        come(number)
        time.sleep(60)

    tiny_checkpoint(Path("tiny"))
    monkeypatch.setattr("dim_jax.checkpoint.write", write)
    before, had = signal.getsignal(number), sorted(os.listdir())
    assert dim("convert", "tiny", "out") == (code, f"stopped by {name}\n")
    assert sorted(os.listdir()) == had
    assert signal.getsignal(number) is before
