"""The joint filter: scores by the libraries' models, kept as they come, and bounds that may be changed afterwards."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, ViTImageProcessorPil, ViTModel

from dim_jax.datasets.construction import filtering
from dim_jax.datasets.construction.config import read_config
from dim_jax.datasets.construction.filtering import check_bounds, out_of_bounds, score
from dim_jax.datasets.construction.scores import Scores, Similarity, ssim
from dim_jax.datasets.construction.sources import open_source
from dim_jax.errors import InputError
from tests.construction_fixtures import drawing, own_pairs, tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models(tmp_path_factory.mktemp("models"))


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def test_ssim():
    """1 for equal pictures, small for noise, whatever the sizes; and the formula of the paper on a flat pair."""
    same = drawing("red")
    assert ssim((same, same), 64) == pytest.approx(1.0)
    assert ssim((same, same.resize((128, 96))), 64) > 0.9
    assert abs(ssim((noise(1), noise(2)), 64)) < 0.1
    a, b = (Image.new("L", (32, 32), value).convert("RGB") for value in (100, 120))
    c1 = (0.01 * 255) ** 2
    assert ssim((a, b), 32) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-6)


def test_similarity_is_the_cosine_of_the_models_features(models):
    dino, clip = models
    pair, other = (drawing("red"), drawing("blue")), (drawing("red"), drawing("red"))
    found = Similarity(dino, clip)([pair, other])
    assert found[1] == pytest.approx((1.0, 1.0), abs=1e-5)

    def cosine(features: torch.Tensor) -> float:
        a, b = features.double()
        return float(a @ b / a.norm() / b.norm())

    with torch.inference_mode():
        pixels = ViTImageProcessorPil.from_pretrained(dino)(list(pair), return_tensors="pt")
        tokens = ViTModel.from_pretrained(dino).eval()(**pixels).last_hidden_state[:, 0]
        pixels = CLIPImageProcessorPil.from_pretrained(clip)(list(pair), return_tensors="pt")
        embeddings = CLIPModel.from_pretrained(clip).eval().get_image_features(**pixels).pooler_output
    assert found[0] == pytest.approx((cosine(tokens), cosine(embeddings)), abs=1e-5)


def test_a_model_that_cannot_be_read(tmp_path, models):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no AutoModel can be read"):
        Similarity(str(tmp_path / "empty"), models[1])
    # A DINO has no weights of a CLIP: without the check they would be drawn at random.
    for file in ("model.safetensors", "preprocessor_config.json"):
        shutil.copy(Path(models[0]) / file, tmp_path / "empty")
    shutil.copy(Path(models[1]) / "config.json", tmp_path / "empty")
    with pytest.raises(InputError, match="empty: lacks weights of a CLIPModel, such as l"):
        Similarity(models[0], str(tmp_path / "empty"))


def settings(models, **changes) -> dict:
    return {"dino": models[0], "clip": models[1], "ssim_side": 64, "batch_size": 2, **changes}


def test_pairs_are_scored_once(tmp_path, models, monkeypatch):
    """A torn line and what was not scored are scored again, nothing else; other models score anew."""
    path = own_pairs(tmp_path, [(drawing("red"), drawing(colour), "x") for colour in ("blue", "red", "green", "black", "white")])
    source, kept = open_source(f"pairs:{path}"), tmp_path / "scores.jsonl"
    first = list(score([source], settings(models), kept))
    assert [pair.key for pair in first] == ["p0", "p1", "p2", "p3", "p4"]
    assert first[1].scores == pytest.approx((1, 1, 1), abs=1e-4)
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    asked = []
    batch = filtering.score_batch
    monkeypatch.setattr(filtering, "score_batch", lambda source, numbers, *more: asked.extend(numbers) or batch(source, numbers, *more))
    assert list(score([source], settings(models), kept)) == first
    assert asked == [3, 4]
    assert kept.read_bytes() == b"".join(lines)
    assert list(score([source], settings(models, batch_size=3), kept)) == first
    assert asked == [3, 4]
    list(score([source], settings(models, ssim_side=32), kept))
    assert asked == [3, 4, 0, 1, 2, 3, 4]


def test_pairs_that_cannot_be_read_have_a_reason(tmp_path, models):
    good = drawing("red")
    path = own_pairs(tmp_path, [(good, good, "x"), (b"\x89PNG of nothing", good, "x"), (good, good, "x")])
    (tmp_path / "2b.png").unlink()
    first, second, third = score([open_source(f"pairs:{path}")], settings(models), tmp_path / "scores.jsonl")
    assert first.scores
    assert second.scores is None
    assert "1a.png" in second.reason
    assert "2b.png: the picture cannot be read" in third.reason


def test_out_of_bounds_reasons():
    scores = Scores(0.5, 0.7, 0.9)
    bounds = {"ultraedit": {"ssim": [0.4, 0.98], "clip": [0.95, 1.0], "dino": [0.0, 0.6]}}
    assert out_of_bounds("ultraedit", scores, bounds) == "clip 0.900 is under 0.95, dino 0.700 is over 0.6"
    assert out_of_bounds("pairs", scores, bounds) == ""
    assert out_of_bounds("ultraedit", Scores(0.5, 0.5, 0.95), bounds) == ""
    assert out_of_bounds("ultraedit", Scores(math.nextafter(0.4, 0), 0.5, 1.0), bounds) != ""


@pytest.mark.parametrize("value", [0.5, [0.5], [0.9, 0.1], ["a", "b"]])
def test_wrong_bounds_are_refused(value):
    with pytest.raises(InputError, match=r"filter\.pairs\.ssim"):
        check_bounds({"pairs": {"ssim": value}})
    with pytest.raises(InputError, match=r"filter\.pairs\.lpips"):
        check_bounds({"pairs": {"lpips": [0, 1]}})


def test_the_config_and_changes_to_it(tmp_path):
    config = read_config("dim_edit.toml", None)
    check_bounds(config["filter"])
    own = tmp_path / "own.toml"
    own.write_text("[scores]\nssim_side = 256\n[filter.pairs]\nssim = [0.1, 0.9]\n[filter.ultraedit]\nssim = [0.2, 0.9]\n")
    changed = read_config("dim_edit.toml", own)
    assert changed["scores"] == {**config["scores"], "ssim_side": 256}
    assert changed["filter"]["pairs"] == {"ssim": [0.1, 0.9]}
    assert changed["filter"]["ultraedit"] == {**config["filter"]["ultraedit"], "ssim": [0.2, 0.9]}
    for text, words in (("[scores]\nssim = 3", "no key scores.ssim"), ("[scores]\nssim_side = '3'", "ssim_side"), ("[", "cannot be read")):
        own.write_text(text)
        with pytest.raises(InputError, match=words):
            read_config("dim_edit.toml", own)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: is not JSON"), ('{"source": "a.png", "target": "b.png"}', "line 1: needs"), ("", "no pairs"),
        ('{"source": "a", "target": "b", "prompt": "x", "id": 1}\n' * 2, "line 2: the id"),
    ],
)  # fmt: skip
def test_invalid_jsonl_pairs_are_refused(tmp_path, text, words):
    path = Path(tmp_path / "mine.jsonl")
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        open_source(f"pairs:{path}")
    with pytest.raises(InputError, match="cannot be read"):
        open_source(f"pairs:{tmp_path}/none.jsonl")
    with pytest.raises(InputError, match="not a source of pairs"):
        open_source(f"zip:{path}")
