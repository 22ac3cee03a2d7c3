"""Input that cannot be used: one clear error that names the file, exit code 1, nothing written. Usage errors are in test_cli.py."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.full_disk import files_of_at_most
from tests.painter_fixtures import HERE, QUICKLY, dim, edit, generate, one_error, picture, tiny_checkpoint


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """Every test has a folder of its own with a picture in it."""
    monkeypatch.chdir(tmp_path)
    picture(40, 40, 1).save("in.png")


# Pictures and prompts: refused before the checkpoint is looked at


BAD_PICTURES = {
    "none.png": (lambda: None, "no such file"),
    "empty.png": (lambda: Path("empty.png").touch(), "empty"),
    "cut.png": (lambda: Path("cut.png").write_bytes(Path("in.png").read_bytes()[:-100]), "cut off"),
    "text.png": (lambda: Path("text.png").write_text("no picture at all"), "not a picture"),
    "folder.png": (lambda: Path("folder.png").mkdir(), "directory"),
    "huge.png": (lambda: Image.new("1", (20_000, 20_000)).save("huge.png"), "20000 x 20000"),
    "thin.png": (lambda: Image.new("RGB", (1, 5000)).save("thin.png"), "1 x 5000"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures(name):
    make, says = BAD_PICTURES[name]
    make()
    before = sorted(os.listdir())
    text = one_error(dim(*edit(image=name)))
    assert name in text
    assert says in text
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", [edit, generate])
def test_bad_prompts(loaded, command):
    assert "prompt is empty" in one_error(dim(*command(prompt=" ")))
    assert "negative prompt is empty" in one_error(dim(*command("--negative-prompt", "")))
    assert "is too long" in one_error(dim(*command(*QUICKLY, prompt="word " * 50_000)))
    assert os.listdir() == ["in.png"]


def test_bad_values(loaded):
    assert "Size 0 x 64: " in one_error(dim(*edit(*QUICKLY, "--size", "0x64")))
    assert "Size 64 x 50: " in one_error(dim(*edit(*QUICKLY, "--size", "64x50")))
    assert "Resolution 100 " in one_error(dim(*edit("--resolution", "100")))
    assert "Size 100 x 100: " in one_error(dim(*generate("--resolution", "100")))
    assert "flow_shift nan" in one_error(dim(*edit("--flow-shift", "nan")))
    assert "Seed 99999999999" in one_error(dim(*edit(*QUICKLY, "--seed", "99999999999")))
    assert os.listdir() == ["in.png"]


def test_bad_paths():
    assert "nowhere does not exist" in one_error(dim(*edit(output="nowhere/out.png")))
    assert "written as PNG" in one_error(dim(*generate(output="out.jpg")))


# Checkpoints


def change(name: str, edit_tensor) -> None:
    tensors = load_file("tiny/model.safetensors")
    edit_tensor(tensors, name)
    save_file(tensors, "tiny/model.safetensors")


def change_json(name: str, **values) -> None:
    path = Path("tiny", name)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def not_a_number(tensors, name):
    tensors[name] = tensors[name].copy()
    tensors[name].flat[-1] = np.nan


def cut_off():
    path = Path("tiny/model.safetensors")
    path.write_bytes(path.read_bytes()[:1_000_000])


def other_special_tokens():
    text = Path("tiny/tokenizer.json").read_text()
    Path("tiny/tokenizer.json").write_text(text.replace("<|im_end|>", "<|finis|>"))


def shifted_special_tokens():
    text = Path("tiny/tokenizer.json").read_text()
    swapped = text.replace("<|image_pad|>", "<|x|>").replace("<|video_pad|>", "<|image_pad|>").replace("<|x|>", "<|video_pad|>")
    Path("tiny/tokenizer.json").write_text(swapped)


TENSOR = "decoder.model.blocks.1.mlp.point_conv.conv.weight"
BAD_CHECKPOINTS = {
    "missing tensor": (lambda: change(TENSOR, lambda tensors, name: tensors.pop(name)), [TENSOR, "is missing"]),
    "extra tensor": (lambda: change("decoder.model.x", lambda tensors, name: tensors.update({name: np.zeros(2)})), ["decoder.model.x"]),
    "misshapen tensor": (lambda: change(TENSOR, lambda tensors, name: tensors.update({name: tensors[name][:-1]})), [TENSOR, "expected"]),
    "not a number": (lambda: change(TENSOR, not_a_number), [TENSOR, "not finite"]),
    "half downloaded": (cut_off, ["model.safetensors", "truncated"]),
    "empty file": (lambda: Path("tiny/model.safetensors").write_bytes(b""), ["model.safetensors", "0 bytes"]),
    "no weights": (lambda: Path("tiny/model.safetensors").unlink(), ["no checkpoint"]),
    "config of another size": (lambda: change_json("qwen.config.json", vocab_size=400), ["expected", "embed_tokens"]),
    "config without a key": (lambda: Path("tiny/sana_edit.json").write_text("{}"), ["sana_edit.json", "in_channels"]),
    "config that is not JSON": (lambda: Path("tiny/sana_edit.json").write_text('{"in_channels'), ["sana_edit.json", "JSON"]),
    "binary config": (lambda: Path("tiny/dc_ae.config.json").write_bytes(b"\xff\x00"), ["dc_ae.config.json", "JSON"]),
    "no tokenizer": (lambda: [file.unlink() for file in Path("tiny").glob("tokenizer*")], ["no tokenizer", "--tokenizer"]),
    "damaged tokenizer": (lambda: Path("tiny/tokenizer.json").write_text("{"), ["no tokenizer could be loaded"]),
    "other special tokens": (other_special_tokens, ["lacks <|im_end|>"]),
    "shifted special tokens": (shifted_special_tokens, ["<|image_pad|> = 291", "encoder has 290"]),
    "nothing there": (lambda: shutil.rmtree("tiny"), ["no such file or folder"]),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_checkpoints(kind):
    damage, says = BAD_CHECKPOINTS[kind]
    tiny_checkpoint(Path("tiny"))
    damage()
    before = sorted(os.listdir())
    text = one_error(dim(*generate(checkpoint="tiny")))
    for words in ["tiny", *says]:
        assert words in text
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("kind", ["not a number", "half downloaded"])
def test_bad_checkpoints_are_not_converted(kind):
    tiny_checkpoint(Path("tiny"))
    BAD_CHECKPOINTS[kind][0]()
    assert "tiny" in one_error(dim("convert", "tiny", "ours"))
    assert sorted(os.listdir()) == ["in.png", "tiny"]


class Code:
    def __reduce__(self):
        return os.mkdir, ("the code ran",)


def test_code_in_a_pickle_does_not_run():
    torch = pytest.importorskip("torch")
    torch.save({"x_embedder.proj.weight": Code()}, "evil.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Code()))
    for name in ("evil.pth", "plain.pth"):
        assert name in one_error(dim(*edit(checkpoint=name)))
        assert name in one_error(dim("convert", name, "ours"))
    assert sorted(os.listdir()) == ["evil.pth", "in.png", "plain.pth"]


def test_single_component_checkpoint_is_refused():
    Path("sana").mkdir()
    shutil.copy(HERE / "goldens/sana_edit.weights.safetensors", "sana/model.safetensors")
    shutil.copy(HERE / "goldens/sana_edit.json", "sana")
    assert "sana has only sana. A whole Draw-In-Mind is needed" in one_error(dim(*generate(checkpoint="sana")))


# The disk


@pytest.mark.parametrize("which", ["edit", "sheet", "generate", "convert"])
def test_a_full_disk(loaded, which):
    tiny_checkpoint(Path("tiny"))
    before = sorted(os.listdir())
    painting = {"edit": edit(*QUICKLY), "sheet": edit("--sheet", *QUICKLY), "generate": generate(*QUICKLY)}
    command = painting.get(which, ("convert", "tiny", "ours", "--to", "dim"))
    if which in painting:  # JAX keeps what it compiles on the same disk, so that is done first
        assert dim(*command)[0] == 0
        for output in Path().glob("out*.png"):
            output.unlink()
    with files_of_at_most(1000):
        text = one_error(dim(*command))
    assert "File too large" in text
    assert ("ours" if which == "convert" else "out.png") in text
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("output", ["", ".", "..", "/"])
def test_an_output_without_a_name(output):
    assert "Name a file that ends in .png" in one_error(dim(*edit(output=output)))
    assert os.listdir() == ["in.png"]
