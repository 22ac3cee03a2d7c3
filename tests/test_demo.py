"""The first look: samples edited and painted from text, with one sheet of them all; and what is wrong with damaged samples."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dim_jax import demo
from dim_jax.edit_result import read_metadata
from dim_jax.errors import InputError
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.sheets import GAP
from dim_jax.weights import bundled
from tests.painter_fixtures import QUICK, dim, largest_difference, painter, picture, tiny_checkpoint

SAMPLES = [
    {"image": "a.png", "prompt": "red", "seed": 1},
    {"prompt": "a hat", "seed": 2},
    {"image": "b.png", "prompt": "blue", "seed": 3},
    {"image": "a.png", "prompt": "green", "seed": 4},
]


@pytest.fixture(autouse=True)
def _nano(tmp_path, monkeypatch):
    """A bundled checkpoint that paints small and fast, with samples."""
    monkeypatch.chdir(tmp_path)
    nano = tiny_checkpoint(Path("nano"))
    (nano / "settings.json").write_text('{"num_steps": 3, "resolution": 64}')
    (nano / "samples").mkdir()
    picture(64, 64, 1).save("nano/samples/a.png")
    picture(64, 64, 2).save("nano/samples/b.png")
    write(SAMPLES)
    monkeypatch.setattr(bundled, "NANO", nano)


def write(samples) -> None:
    Path("nano/samples/samples.json").write_text(json.dumps(samples))


def test_the_command():
    assert dim("demo", "build/out") == (0, "wrote build/out/sheet.png and the paintings on it\n")
    assert sorted(os.listdir("build/out")) == ["1.png", "2.png", "3.png", "4.png", "sheet.png"]
    for number, sample in enumerate(SAMPLES, 1):
        metadata = read_metadata(f"build/out/{number}.png")
        assert (metadata["prompt"], metadata["seed"], metadata["settings"]["num_steps"]) == (sample["prompt"], sample["seed"], 3)
    (edited,) = EditPipeline(painter())(["blue"], [picture(64, 64, 2)], seeds=[3], settings=QUICK)
    (painted,) = GeneratePipeline(painter())(["a hat"], seeds=[2], settings=QUICK)
    assert largest_difference(open_picture("build/out/2.png"), painted.image) <= 1
    assert largest_difference(open_picture("build/out/3.png"), edited.image) <= 1
    pixels = np.asarray(open_picture("build/out/sheet.png"))
    for left, one in ((0, picture(64, 64, 1)), (128 + GAP, open_picture("build/out/1.png"))):
        np.testing.assert_array_equal(pixels[:128, left : left + 128], np.asarray(one).repeat(2, 0).repeat(2, 1))
    # Three on the first line: two edits and one picture from text.
    assert pixels.shape[1] == 2 * (256 + GAP) + 128 + 2 * GAP
    code, text = dim("demo", "build/out")
    assert code == 1
    assert "build/out/1.png exists" in text
    assert dim("demo", "build/out", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([], "at least one"), ({"prompt": "red"}, "a list of samples"), (["red"], "sample 1"),
        ([SAMPLES[0], {"prompt": "red"}], "sample 2"),
        ([{"prompt": "red", "seed": "1"}], "sample 1"), ([SAMPLES[1] | {"size": 64}], "sample 1"),
        ([SAMPLES[1] | {"image": "none.png"}], "none.png"),
    ],
)  # fmt: skip
def test_damaged_samples(samples, says):
    write(samples)
    with pytest.raises(InputError, match=says):
        demo.run(bundled.NANO, Path("out"))
    assert not Path("out").exists()


def test_missing_samples_and_folders_that_cannot_be_made():
    Path("file").write_text("mine")
    with pytest.raises(InputError, match="file: cannot be made"):
        demo.run(bundled.NANO, Path("file"))
    Path("nano/samples/samples.json").unlink()
    with pytest.raises(InputError, match=r"samples\.json: cannot be read"):
        demo.run(bundled.NANO, Path("out"))
