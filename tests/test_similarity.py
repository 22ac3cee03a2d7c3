"""CLIP and DINO similarities by tiny random models in folders, against transformers called by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTImageProcessor, ViTModel

from dim_jax.datasets.similarity import Clip, VisionModel, cosine
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case
from dim_jax.evals.frechet import open_features
from dim_jax.evals.measuring import Models, measure
from tests.benchmark_fixtures import put, put_lines
from tests.painter_fixtures import picture

PICTURES = [picture(48, 32, 1), picture(32, 48, 2)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder, width = (
        tmp_path_factory.mktemp("clip"),
        {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    )
    torch.manual_seed(0)
    text = {"vocab_size": 40, "max_position_embeddings": 12, "eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 39, **width}
    CLIPModel(CLIPConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 8, **width}, projection_dim=8)).save_pretrained(
        folder
    )
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    words = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")} | {"<start>": 38, "<end>": 39}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 38), ("<end>", 39)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_cosines_of_rows():
    a, b = np.float64([[1, 0], [1, 1], [2, 0]]), np.float64([[0, 3], [2, 2], [-1, 0]])
    np.testing.assert_allclose(cosine(a, b), [0, 1, -1], atol=1e-15)


def test_clip_is_transformers_clip(clip):
    ours = Clip(clip)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessor.from_pretrained(clip)
    pixels = processor(images=PICTURES, return_tensors="pt")["pixel_values"]
    tokens = torch.tensor([[38, 0, 1, 39], [38, 2, 3, 39]])
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), pixel_values=pixels)
    # `logits_per_image` are the cosines, scaled.
    theirs = found.logits_per_image.diagonal().numpy() / float(model.logit_scale.exp().detach())
    np.testing.assert_allclose(cosine(ours.features(PICTURES), ours.texts(["ab", "cd"])), theirs, atol=1e-6)
    assert abs(theirs[0] - theirs[1]) > 1e-3
    assert ours.texts(["a" * 100]).shape == (1, 8), "a text that is too long is cut off"


def test_dino_is_the_class_token(dino):
    model, processor = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval(), ViTImageProcessor.from_pretrained(dino)
    with torch.no_grad():
        theirs = model(**processor(images=PICTURES, return_tensors="pt")).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(VisionModel(dino).features(PICTURES), theirs, atol=1e-6)
    features, resizing = open_features(dino)
    np.testing.assert_allclose(features(PICTURES), theirs, atol=1e-6)
    assert "image processor" in resizing


def test_the_metrics_of_a_track(clip, dino, tmp_path):
    """Two edits, one painted as its target and one as something else; and an FID beside them."""
    cases = []
    for i, category in enumerate(("a", "b")):
        put(tmp_path / f"data/{i}.png", i)
        put(tmp_path / f"data/{i}-target.png", 10 + i)
        put(tmp_path / f"out/pictures/{i}.png", 10 if i == 0 else 5)
        source, target = tmp_path / f"data/{i}.png", tmp_path / f"data/{i}-target.png"
        cases.append(Case(str(i), category, "x", source, target, metadata={"caption": "a cat"} if i else {}))
    rows = [{"id": str(i), "prompt": "x", "pictures": [f"pictures/{i}.png"]} for i in range(2)]
    put_lines(tmp_path / "out/cases.jsonl", rows)
    names = ("nearer", "l1", "l2", "psnr", "ssim", "clip_i", "dino", "clip_t", "fid")
    one = Benchmark("x", "X", "edit", lambda path: cases, lambda case, k: "", metrics=names)
    found = measure(tmp_path / "out", one, cases, Models(clip, dino, dino))
    right, wrong = found["cases"]["0"], found["cases"]["1"]
    assert right == {
        "nearer": 1,
        "l1": 0,
        "l2": 0,
        "psnr": pytest.approx(58.92, abs=0.01),
        "ssim": 1,
        "clip_i": pytest.approx(1),
        "dino": pytest.approx(1),
    }
    target, result = (np.asarray(picture(64, 64, seed), float) / 255 for seed in (11, 5))
    assert wrong["l1"] == pytest.approx(np.abs(target - result).mean())
    assert wrong["l2"] == pytest.approx(((target - result) ** 2).mean())
    vision = Clip(clip)
    assert wrong["clip_i"] == pytest.approx(
        float(cosine(vision.features([picture(64, 64, 5)]), vision.features([picture(64, 64, 11)]))[0]), abs=1e-6
    )
    assert wrong["clip_t"] == pytest.approx(float(cosine(vision.features([picture(64, 64, 5)]), vision.texts(["a cat"]))[0]), abs=1e-6)
    assert found["mean"]["l1"] == pytest.approx(wrong["l1"] / 2)
    assert found["mean"]["clip_t"] == wrong["clip_t"], "over the cases that have it"
    assert found["categories"]["b"]["ssim"] == wrong["ssim"]
    assert (found["fid"]["results"], found["fid"]["references"]) == (2, 2)
    assert found["mean"]["fid"] > 0
    # What is there is taken; without networks their metrics are left out, and it says why.
    file = tmp_path / "out/metrics.json"
    before = file.stat().st_mtime_ns
    assert measure(tmp_path / "out", one, cases, Models(clip, dino, dino)) == json.loads(file.read_text())
    assert file.stat().st_mtime_ns == before
    bare = measure(tmp_path / "out", one, cases, Models())
    networks = {"clip_i": "clip", "dino": "dino", "clip_t": "clip", "fid": "features"}
    assert bare["left_out"] == {name: f"needs a network (--{option})" for name, option in networks.items()}
    assert set(bare["mean"]) == {"nearer", "l1", "l2", "psnr", "ssim"}
    put(tmp_path / "out/pictures/1.png", 11)
    assert measure(tmp_path / "out", one, cases, Models())["mean"]["l1"] == 0, "another picture is measured anew"
    (tmp_path / "out/pictures/1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png: is missing"):
        measure(tmp_path / "out", one, cases, Models())


def test_folders_without_a_model(tmp_path):
    with pytest.raises(InputError, match="no AutoModel can be read"):
        Clip(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no AutoModel can be read"):
        VisionModel(tmp_path)
