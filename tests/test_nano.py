"""The bundled model as it is: small enough to ship, and it edits pictures that it never saw."""

import json

import numpy as np

from dim_jax.designer.blueprint import parse
from dim_jax.edit_result import read_metadata
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.weights.bundled import bundled_checkpoint
from tests.painter_fixtures import dim

MIB = 2**20


def test_it_is_small_and_says_whose_pictures_it_holds():
    folder = bundled_checkpoint()
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= 16 * MIB
    assert sum(sizes.values()) <= 24 * MIB
    samples = json.loads((folder / "samples" / "samples.json").read_text())
    assert sum("image" in sample for sample in samples) == 5
    told = (folder / "samples" / "ATTRIBUTION.md").read_text()
    assert all(sample["image"] in told for sample in samples if "image" in sample)


def test_nano_model_edits():
    folder = bundled_checkpoint()
    moon, book = (open_picture(folder / "samples" / f"{name}.png") for name in ("moon", "book"))
    full, red = EditPipeline.from_pretrained(folder)(["Show a full moon.", "Make the book red."], [moon, book], seeds=[0, 0])
    before, after = (np.asarray(picture, float) for picture in (moon, full.image))
    dark, lit = np.s_[24:40, 12:24], np.s_[36:48, 48:54]
    assert np.abs(before[dark].mean((0, 1)) - before[lit].mean((0, 1))).max() > 80
    assert np.abs(after[dark].mean((0, 1)) - after[lit].mean((0, 1))).max() < 30
    assert np.abs(after[lit] - before[lit]).mean() < 30  # the lit part stays as it was
    cover = np.s_[12:44, 20:50]
    before, after = (np.asarray(picture, float)[cover].mean((0, 1)) for picture in (book, red.image))
    assert before[1] > before[[0, 2]].max() + 50
    assert after[0] > after[1:].max() + 50
    ground = np.s_[:, :6]
    assert np.asarray(red.image, float)[ground].min() > 240  # it stays white


def test_nano_encoder_writes_a_blueprint(tmp_path):
    picture = bundled_checkpoint() / "samples" / "woman.png"
    command = ("edit", "--image", str(picture), "--prompt", "Give the woman white hair.", "--designer", "local", "--steps", "2")
    code, text = dim(*command, "-o", str(tmp_path / "out.png"))
    assert code == 0, text
    written = parse(read_metadata(tmp_path / "out.png")["prompt"])
    assert "white hair" in written.instruction.lower()
    assert "woman" in written.layout
