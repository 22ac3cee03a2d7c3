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
    moon, shaded = (open_picture(folder / "samples" / f"{name}.png") for name in ("moon", "sunglasses"))
    full, bare = EditPipeline.from_pretrained(folder)(
        ["Show a full moon.", "Remove black sunglasses from the face."], [moon, shaded], seeds=[0, 0]
    )  # fmt: skip
    before, after = (np.asarray(picture, float) for picture in (moon, full.image))
    left, right = np.s_[24:40, 12:24], np.s_[24:40, 40:52]
    assert np.abs(before[left].mean((0, 1)) - before[right].mean((0, 1))).max() > 80  # half of it is dark
    assert np.abs(after[left].mean((0, 1)) - after[right].mean((0, 1))).max() < 30
    assert np.abs(after[left] - before[left]).mean() < 30  # the lit half stays as it was
    eyes = np.s_[16:30, 6:58]
    assert np.asarray(bare.image, float)[eyes].mean() > np.asarray(shaded, float)[eyes].mean() + 40
    corner = np.s_[:4, :4]
    assert np.asarray(bare.image, float)[corner].min() > 240  # white ground


def test_its_encoder_writes_a_blueprint_for_itself(tmp_path):
    picture = bundled_checkpoint() / "samples" / "woman.png"
    command = ("edit", "--image", str(picture), "--prompt", "Give the woman white hair.", "--designer", "local", "--steps", "2")
    code, text = dim(*command, "-o", str(tmp_path / "out.png"))
    assert code == 0, text
    written = parse(read_metadata(tmp_path / "out.png")["prompt"])
    assert "white hair" in written.instruction.lower()
    assert "woman" in written.layout
