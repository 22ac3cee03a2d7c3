"""The bundled model as it is: small enough to ship, and it edits pictures that it never saw."""

import json

import numpy as np

from dim_jax.bundled import bundled_checkpoint
from dim_jax.data.pictures import open_picture
from dim_jax.designer.blueprint import parse
from dim_jax.painting import read_metadata
from dim_jax.pipeline import EditPipeline
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


def test_it_edits():
    folder = bundled_checkpoint()
    moon, halo = (open_picture(folder / "samples" / f"{name}.png") for name in ("moon", "halo"))
    full, bare = EditPipeline.from_pretrained(folder)(["Show a full moon.", "Remove a halo from the face."], [moon, halo], seeds=[0, 0])
    before, after = (np.asarray(picture, float) for picture in (moon, full.image))
    dark, lit = np.s_[24:40, 12:24], np.s_[36:48, 48:54]
    assert np.abs(before[dark].mean((0, 1)) - before[lit].mean((0, 1))).max() > 80
    assert np.abs(after[dark].mean((0, 1)) - after[lit].mean((0, 1))).max() < 30
    assert np.abs(after[lit] - before[lit]).mean() < 30  # the lit part stays as it was
    blue = np.s_[13:16, 20:44]  # of the halo
    before, after = (np.asarray(picture, float)[blue].mean((0, 1)) for picture in (halo, bare.image))
    assert before[2] > before[0] + 30
    assert after[2] < after[0] - 30  # the face's yellow
    corner = np.s_[-4:, :4]
    assert np.asarray(bare.image, float)[corner].min() > 240  # white ground


def test_its_encoder_writes_a_blueprint_for_itself(tmp_path):
    picture = bundled_checkpoint() / "samples" / "woman.png"
    command = ("edit", "--image", str(picture), "--prompt", "Give the woman white hair.", "--designer", "local", "--steps", "2")
    code, text = dim(*command, "-o", str(tmp_path / "out.png"))
    assert code == 0, text
    written = parse(read_metadata(tmp_path / "out.png")["prompt"])
    assert "white hair" in written.instruction.lower()
    assert "woman" in written.layout
