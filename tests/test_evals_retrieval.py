"""Retrieval of pictures by what was painted from their captions: ranks, the sample, what it writes and what it refuses."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dim_jax.data.example import Example
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.evals import retrieval
from dim_jax.pipeline import EditPipeline, GeneratePipeline
from tests.painter_fixtures import QUICK, dim, painter, picture


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(painter(), "settings", QUICK)


def captions(count: int, name: str) -> list[Example]:
    return [Example(None, picture(64, 64, i), "caption", (f"{name} {i}", "another wording"), None, f"{name}/{i}") for i in range(count)]


def pretend(monkeypatch, results: dict[str, Image.Image]) -> list[str]:
    """Paints by prompt, and lists the prompts."""
    prompts = []

    def stream(pipeline, given, *, seeds, settings, progress):
        for i, (prompt, seed) in enumerate(zip(given, seeds, strict=True)):
            prompts.append(prompt)
            yield i, EditResult(results[prompt], prompt, seed, asdict(settings) | {"size": (64, 64)}, "any", "float32")

    monkeypatch.setattr(GeneratePipeline, "stream", stream)
    return prompts


def evaluate(examples, **options):
    return retrieval.evaluate(EditPipeline(painter()), examples, Path("out.json"), **({"data": "emoji", "batch_size": 2} | options))


def test_a_blurred_and_pale_picture_is_found_and_another_one_is_not():
    targets = [picture(64, 64, i) for i in range(5)]
    blurred = [target.filter(ImageFilter.GaussianBlur(2)).point(lambda sample: 128 + sample // 2) for target in targets]
    assert retrieval.ranks(blurred, targets).tolist() == [1] * 5
    swapped = [blurred[1], blurred[0], *blurred[2:]]
    ranks = retrieval.ranks(swapped, targets)
    assert (ranks[:2] > 1).all()
    assert ranks[2:].tolist() == [1] * 3


def test_a_result_of_one_colour_finds_nothing_and_equal_pictures_share_a_rank():
    targets = [picture(64, 64, i) for i in (0, 1, 1)]
    white = Image.new("RGB", (64, 64), "white")
    assert retrieval.ranks([white, targets[1], targets[2]], targets).tolist() == [3, 2, 2]


def test_a_hundred_of_each_set_whatever_the_others_are():
    keys = [f"a/{i}" for i in range(300)] + [f"b/{i}" for i in range(7)]
    chosen = retrieval.sample(keys)
    assert len(chosen) == len(set(chosen)) == 107
    assert retrieval.sample(keys[:300]) == chosen[:100] == [i for i in chosen if i < 300]
    assert set(retrieval.sample(keys, seed=1)) != set(chosen)


def test_report_by_set_and_a_second_run_that_paints_nothing(monkeypatch):
    """Every picture of one set comes out right, of the other one all come out as its first."""
    right, wrong = captions(4, "noto"), captions(3, "twemoji")
    results = {example.texts[0]: example.target for example in right} | {example.texts[0]: wrong[0].target for example in wrong}
    prompts = pretend(monkeypatch, results)
    report = evaluate([*right, *wrong])
    assert sorted(prompts) == sorted(results)
    assert report["sets"]["noto"]["first"] == 1.0
    assert report["sets"]["twemoji"]["first"] == pytest.approx(1 / 3)
    assert report["overall"]["captions"] == 7
    assert report["overall"]["first"] == pytest.approx(5 / 7)
    assert {row["key"] for row in report["captions"]} == {example.key for example in (*right, *wrong)}
    assert all(1 <= row["rank_autoencoder"] <= 4 for row in report["captions"])
    assert json.loads(Path("out.json").read_text()) == report
    with Image.open("out.png") as sheet:
        assert sheet.width > 64
    prompts.clear()
    assert evaluate([*right, *wrong], overwrite=True)["overall"] == report["overall"]
    assert not prompts


def test_tiny_painter_paints_them():
    report = evaluate(captions(3, "noto"))
    assert [row["caption"] for row in report["captions"]] == [f"noto {i}" for i in (row["key"][5:] for row in report["captions"])]
    assert np.isin([row["rank"] for row in report["captions"]], (1, 2, 3)).all()


def test_refusals():
    with pytest.raises(InputError, match="0 pictures in batches of 2"):
        evaluate([])
    pair = Example(picture(64, 64, 0), picture(64, 64, 1), "edit", ("change",), None, "a/1>a/2")
    with pytest.raises(InputError, match="a/1>a/2: has a source to edit"):
        evaluate([pair])
    Path("out.json").touch()
    with pytest.raises(InputError, match=r"out\.json"):
        evaluate(captions(1, "noto"))


def test_options_of_edits_are_wrong_usage():
    for option in (["--pairs-per-rule", "3"], ["--known-targets"], ["--designer", "local"], ["--text", "blueprint"]):
        code, text = dim("evaluate", "emoji", "--captions", "--data", "emoji", "-o", "out.json", *option)
        assert code == 2
        assert "--captions measures no edits" in " ".join(text.split())
