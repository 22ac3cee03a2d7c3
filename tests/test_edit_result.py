"""What a saved picture says of itself, sheets, and files that cannot be written."""

import os
import resource
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dim_jax import __version__
from dim_jax.edit_result import EditResult, check_output, read_metadata, save_picture, save_sheet, sheet
from dim_jax.errors import InputError
from dim_jax.sheets import GAP
from dim_jax.storage import folders
from tests.painter_fixtures import picture

PROMPT = 'Fuchs 🦊 im "Schnee"\nZeile zwei: 日本語, e\u0301, \u202eRTL'
SETTINGS = {"num_steps": 3, "guidance_scale": 7.5, "solver": "euler", "size": (32, 64), "negative_prompt": "trüb", "overflow": "error"}


def example(width: int = 64, height: int = 32, source: Image.Image | None = None) -> EditResult:
    return EditResult(picture(width, height), PROMPT, 2**31 - 1, SETTINGS, "/models/a [b]", "bfloat16", source)


@contextmanager
def full_disk():
    """Every write to a file fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_metadata_come_back(tmp_path):
    example().save(tmp_path / "a.png")
    assert read_metadata(tmp_path / "a.png") == {
        "Software": f"dim_jax {__version__}", "prompt": PROMPT, "seed": 2**31 - 1, "settings": SETTINGS,
        "checkpoint": "/models/a [b]", "dtype": "bfloat16", "designer": "none", "instruction": "", "changed": None, "earlier": [],
    }  # fmt: skip
    with Image.open(tmp_path / "a.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(example().image))
    assert os.listdir(tmp_path) == ["a.png"]


def test_earlier_rounds_come_back(tmp_path):
    first = replace(example(), prompt="1. …", instruction="Schnee: 日本語", designer="openai:m", changed=0.25)
    second = replace(example(), seed=7, settings=SETTINGS | {"size": (64, 64)}, earlier=(first,))
    replace(example(), earlier=(first, second)).save(tmp_path / "a.png")
    metadata = read_metadata(tmp_path / "a.png")
    assert metadata["prompt"] == PROMPT
    one = {
        "prompt": "1. …",
        "seed": 2**31 - 1,
        "settings": SETTINGS,
        "designer": "openai:m",
        "instruction": "Schnee: 日本語",
        "changed": 0.25,
    }
    two = {"prompt": PROMPT, "seed": 7, "settings": SETTINGS | {"size": (64, 64)}, "designer": "none", "instruction": "", "changed": None}
    assert metadata["earlier"] == [one | {"changed": 0.25}, two | {"changed": None}]


def test_metadata_of_pictures_from_before_there_were_rounds(tmp_path):
    info = PngInfo()
    for key, value in example().metadata().items():
        if key not in ("designer", "instruction", "changed", "earlier"):
            info.add_itxt(key, value)
    save_picture(example().image, tmp_path / "old.png", info=info)
    example().save(tmp_path / "new.png")
    assert read_metadata(tmp_path / "old.png") == read_metadata(tmp_path / "new.png")


@pytest.mark.parametrize("earlier", ["[1]", "7", '[{"settings": 1}]', "half"])
def test_damaged_rounds(tmp_path, earlier):
    info = PngInfo()
    for key, value in (example().metadata() | {"earlier": earlier}).items():
        info.add_itxt(key, value)
    save_picture(example().image, tmp_path / "a.png", info=info)
    with pytest.raises(InputError, match=r"a\.png: is not a picture that dim_jax saved"):
        read_metadata(tmp_path / "a.png")


def test_metadata_of_other_files(tmp_path):
    picture(8, 8).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("text")
    for name in ("plain.png", "text.png", "none.png"):
        with pytest.raises(InputError, match=name):
            read_metadata(tmp_path / name)


def test_sheet():
    first, second = example(64, 32, picture(20, 10, 5)), example(40, 48, picture(100, 80, 6))
    canvas = sheet([first, second])
    pixels = np.asarray(canvas)
    # Sources at their results' heights: 64 x 32 and 60 x 48.
    assert canvas.size == (64 + GAP + 64, 32 + GAP + 48)
    np.testing.assert_array_equal(pixels[:32, :64], np.asarray(first.source.resize((64, 32))))
    np.testing.assert_array_equal(pixels[:32, 64 + GAP :], np.asarray(first.image))
    np.testing.assert_array_equal(pixels[32 + GAP :, :60], np.asarray(second.source.resize((60, 48))))
    np.testing.assert_array_equal(pixels[32 + GAP :, 60 + GAP : 100 + GAP], np.asarray(second.image))
    for gap in (pixels[:32, 64 : 64 + GAP], pixels[32 : 32 + GAP], pixels[32 + GAP :, 60 : 60 + GAP], pixels[32 + GAP :, 100 + GAP :]):
        assert (gap == 255).all()


def test_sheet_of_a_long_source():
    """It is not scaled to the result's height, 200 times as wide."""
    assert sheet([example(source=picture(3200, 16))]).size == (4 * 64 + GAP + 64, 32)
    assert sheet([example(source=picture(16, 3200))]).size == (1 + GAP + 64, 32)


def test_sheet_without_source():
    np.testing.assert_array_equal(np.asarray(sheet([example()])), np.asarray(example().image))


def test_sheet_of_a_very_thin_source():
    assert sheet([example(64, 32, picture(8, 1600))]).size == (1 + GAP + 64, 32)


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.txt"])
def test_only_png(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: pictures are written as PNG"):
        check_output(tmp_path / name, overwrite=True)
    assert check_output(tmp_path / "A.PNG", overwrite=False) == tmp_path / "A.PNG"


def test_an_existing_file_stays_without_overwrite(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    for save in (example().save, lambda path: save_sheet([example()], path), lambda path: save_picture(picture(8, 8), path)):
        with pytest.raises(InputError, match=r"a\.png exists\. .*--overwrite"):
            save(path)
    assert path.read_bytes() == b"mine"
    example().save(path, overwrite=True)
    assert read_metadata(path)["prompt"] == PROMPT


def test_unwritable_output_paths(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere/a\.png: the folder .*nowhere does not exist"):
        check_output(tmp_path / "nowhere" / "a.png", overwrite=True)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder\.png is not a file, so it is not overwritten"):
        check_output(tmp_path / "folder.png", overwrite=True)
    # Root may write everywhere, so the answer of the system is replaced.
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"a\.png: the folder .* is not writable"):
        check_output(tmp_path / "a.png", overwrite=True)


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path, exists):
    path = tmp_path / "a.png"
    if exists:
        path.write_bytes(b"mine")
    for save in (example().save, lambda path, overwrite: save_sheet([example()], path, overwrite=overwrite)):
        with full_disk(), pytest.raises(InputError, match=r"a\.png: cannot be written \(File too large\)\. Free some space there"):
            save(path, overwrite=True)
    assert os.listdir(tmp_path) == ["a.png"] * exists
    assert not exists or path.read_bytes() == b"mine"
