"""The measurement on edit pairs: its sample, its numbers, what it writes, and that an interrupted one goes on."""

import io
import json
import os
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dim_jax.data.example import Example
from dim_jax.designer.clients import Response
from dim_jax.designer.local import LocalDesigner
from dim_jax.edit_result import EditResult, read_metadata
from dim_jax.errors import InputError
from dim_jax.evals import emoji, pictures
from dim_jax.evals.pictures import checkpoint_digest, digest
from dim_jax.pipeline import EditPipeline
from dim_jax.sampling import Sampler
from tests.designer_answers import lines
from tests.painter_fixtures import QUICK, dim, one_error, painter, picture, tiny_checkpoint


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """A folder of its own, and a painter that is meant to paint small and fast."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(painter(), "settings", QUICK)


def example(i: int, rule: str) -> Example:
    return Example(
        picture(64, 64, i), picture(64, 64, 100 + i), rule, (f"change {i}", "another wording"), "a blueprint", f"a/{i}>a/{100 + i}"
    )


PAIRS = [example(i, rule) for i, rule in enumerate(("skin tone", "gender", "skin tone", "gender", "gender"))]
CAPTIONS = [Example(None, pair.target, "caption", ("a face",), None, pair.key) for pair in PAIRS]


def evaluate(**options):
    options = {"data": "emoji", "batch_size": 2, "pairs_per_rule": 2} | options
    if best_of := options.pop("best_of", None):
        options["settings"] = replace(painter().settings, best_of=best_of)
    return emoji.evaluate(EditPipeline(painter()), PAIRS, CAPTIONS, Path("out.json"), **options)


class Pretender:
    """Paints what it is told to, in place of `EditPipeline.stream`: some pairs' targets, other pairs' sources."""

    def __init__(self, monkeypatch, results: dict[str, Image.Image]):
        self.prompts: list[str] = []

        def stream(pipeline, prompts, sources, *, seeds, settings, progress):
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                self.prompts.append(prompt)
                yield i, EditResult(results[prompt], prompt, seed, asdict(settings) | {"size": (64, 64)}, "any", "float32")

        monkeypatch.setattr(EditPipeline, "stream", stream)


# The sample


def test_the_sample_is_balanced_and_grows():
    rules = ["a"] * 500 + ["b"] * 3 + ["c"] * 300
    small, large = emoji.sample(rules, 24), emoji.sample(rules, 50)
    assert Counter(rules[i] for i in small) == {"a": 24, "b": 3, "c": 24}
    assert set(small) < set(large)
    assert len(set(large)) == len(large) == 103
    assert [rules[i] for i in small] == sorted(rules[i] for i in small)
    assert emoji.sample(rules, 24) == small
    assert set(emoji.sample(rules, 24, seed=1)) != set(small)
    # Another rule changes nothing for those that were there.
    assert emoji.sample([*rules, "d"], 24)[:-1] == small


def test_pairs_to_choose_by_are_the_next_ones_of_the_same_order():
    rules = ["a"] * 500 + ["b"] * 3 + ["c"] * 30
    test, selection = emoji.sample(rules, 24), emoji.sample(rules, 24, selection=True)
    assert Counter(rules[i] for i in selection) == {"a": 24, "c": 6}
    assert not set(test) & set(selection)
    both = [i for i in emoji.sample(rules, 48) if rules[i] == "a"]
    assert both == [i for i in test + selection if rules[i] == "a"]


def test_few_rules_still_give_enough_pairs():
    assert len(emoji.sample(["a"] * 500 + ["b"] * 3)) == 200
    assert len(emoji.sample(["a"] * 50 + ["b"] * 3)) == 53
    many = [f"rule {i}" for i in range(20) for _ in range(40)]
    assert len(emoji.sample(many)) == 20 * 24


# The numbers


def test_measures_of_a_perfect_and_of_a_lazy_painter(monkeypatch):
    """Every skin tone is painted as its target, every gender left as it was."""
    Pretender(monkeypatch, {pair.texts[0]: pair.target if pair.rule == "skin tone" else pair.source for pair in PAIRS})
    report = evaluate(pairs_per_rule=3)
    right, lazy = report["rules"]["skin tone"], report["rules"]["gender"]
    assert (right["pairs"], right["nearer"]) == (2, 1)
    assert (lazy["pairs"], lazy["nearer"]) == (3, 0)
    assert right["psnr"] == pytest.approx(58.92, abs=0.01)
    assert lazy["psnr"] == lazy["psnr_copy"]
    assert report["overall"]["nearer"] == pytest.approx(2 / 5)
    for row in report["pairs"]:
        pair = next(pair for pair in PAIRS if pair.key == row["key"])
        source, target = (np.asarray(one, float) / 255 for one in (pair.source, pair.target))
        assert row["psnr_copy"] == pytest.approx(-10 * np.log10(((source - target) ** 2).mean()))
        assert row["prompt"] == pair.texts[0]


def test_the_autoencoder_is_measured_as_it_rebuilds():
    pictures = [pair.target for pair in PAIRS]
    rebuilt = painter().reconstruct(pictures, QUICK)
    assert [one.size for one in rebuilt] == [(64, 64)] * 5
    np.testing.assert_array_equal(rebuilt[4], painter().reconstruct(pictures[4:], QUICK)[0])
    errors = [((np.asarray(a, float) / 255 - np.asarray(b, float) / 255) ** 2).mean() for a, b in zip(rebuilt, pictures, strict=True)]
    ratios = {pair.key: -10 * np.log10(error) for pair, error in zip(PAIRS, errors, strict=True)}
    report = evaluate()
    assert report["autoencoder"] == {"pictures": 5, "psnr": pytest.approx(np.mean(list(ratios.values())))}
    assert {row["key"]: row["psnr_autoencoder"] for row in report["pairs"]} == pytest.approx(
        {row["key"]: ratios[row["key"]] for row in report["pairs"]}
    )


def test_each_pair_has_noise_of_its_own(monkeypatch):
    first = {row["key"]: row["seed"] for row in evaluate()["pairs"]}
    assert len(set(first.values())) == 4
    whole = {row["key"]: row["seed"] for row in evaluate(pairs_per_rule=3, overwrite=True)["pairs"]}
    assert first.items() < whole.items()
    assert not set(first.values()) & {row["seed"] for row in evaluate(seed=1, overwrite=True)["pairs"]}


# What an edit is told by


def written_by(monkeypatch, answers: dict[str, str]) -> tuple[LocalDesigner, list[list[str]]]:
    """A designer with these answers to instructions, and the batches that it was asked."""
    asked: list[list[str]] = []

    def write(self, pictures, instructions):
        asked.append(list(instructions))
        assert [picture.tobytes() for picture in pictures] == [
            next(pair.source.tobytes() for pair in PAIRS if pair.texts[0] == instruction) for instruction in instructions
        ]
        return [Response(answers.get(instruction, "I cannot."), None, 10, 20) for instruction in instructions]

    monkeypatch.setattr(LocalDesigner, "write", write)
    local = LocalDesigner.from_sampler(painter(), 64)
    return replace(local, processor=replace(local.processor, condition_length=4096)), asked


def test_the_blueprint_of_the_data_takes_the_place_of_the_instruction(monkeypatch):
    pretender = Pretender(monkeypatch, {"a blueprint": PAIRS[0].target} | {pair.texts[0]: PAIRS[0].target for pair in PAIRS})
    report, plain = evaluate(text="blueprint"), evaluate(overwrite=True)
    assert pretender.prompts[:4] == ["a blueprint"] * 4
    assert (report["text"], report["designer"], plain["text"]) == ("blueprint", "none", "instruction")
    for ours, theirs in zip(report["pairs"], plain["pairs"], strict=True):
        assert (ours["prompt"], ours["instruction"], ours["seed"]) == ("a blueprint", theirs["prompt"], theirs["seed"])
    without = [replace(pair, blueprint=None) for pair in PAIRS]
    with pytest.raises(InputError, match="has no blueprint"):
        emoji.evaluate(EditPipeline(painter()), without, CAPTIONS, Path("none.json"), data="emoji", text="blueprint")


def test_a_designer_writes_in_batches_and_is_not_asked_again(monkeypatch):
    """One pair's answer is no blueprint, so it is told by its instruction."""
    answers = {pair.texts[0]: lines("{n}. {title}: {text} " + f"No. {i}.") for i, pair in enumerate(PAIRS) if i}
    designer, asked = written_by(monkeypatch, answers)
    told = answers | {"change 0": "change 0"}
    Pretender(monkeypatch, dict.fromkeys((*told, *told.values()), PAIRS[0].target))
    options = {"pairs_per_rule": 3, "text": "blueprint", "designer": designer}
    report = evaluate(**options)
    assert {row["instruction"]: row["prompt"] for row in report["pairs"]} == told
    assert list(report["failures"]) == ["skin tone/a/0>a/100"]
    assert "refused" in report["failures"]["skin tone/a/0>a/100"]
    assert [len(batch) for batch in asked] == [2, 2, 2], "the last one filled up"
    metadata = [read_metadata(file) for file in sorted(Path("out.pictures").rglob("*.png"))]
    assert {one["instruction"]: one["prompt"] for one in metadata} == answers | {"": "change 0"}
    assert {one["designer"] for one in metadata} == {"local"}
    assert evaluate(**options, overwrite=True)["pairs"] == report["pairs"]
    assert len(asked) == 3
    longer = evaluate(**options | {"designer": replace(designer, processor=painter().processor, name="short")}, overwrite=True)
    assert len(longer["failures"]) == 5
    assert "the painter reads 24" in longer["failures"]["gender/a/1>a/101"]


# What is written, and what is painted again


def test_what_is_written():
    report = evaluate()
    assert json.loads(Path("out.json").read_text()) == report
    assert (report["checkpoint"], report["dtype"], report["weights"]) == (painter().name, "float32", digest(painter()))
    assert report["settings"]["num_steps"] == 3
    assert sorted(os.listdir()) == ["out.json", "out.pictures", "out.png"]
    files = sorted(Path("out.pictures").rglob("*"))
    assert [str(file.relative_to("out.pictures")) for file in files if file.parent.name == "skin tone"] == [
        "skin tone/a%2F0%3Ea%2F100.png", "skin tone/a%2F2%3Ea%2F102.png",
    ]  # fmt: skip
    metadata = read_metadata("out.pictures/skin tone/a%2F0%3Ea%2F100.png")
    assert (metadata["prompt"], metadata["checkpoint"], metadata["settings"]["size"]) == ("change 0", digest(painter()), None)
    with Image.open("out.png") as sheet:
        pixels = np.asarray(sheet)
    # The last line begins with the first pair of "skin tone"; the source is drawn twice as large.
    first = next(pair for pair in PAIRS if pair.key == next(row["key"] for row in report["pairs"] if row["rule"] == "skin tone"))
    tile = np.asarray(first.source).repeat(2, 0).repeat(2, 1)
    assert any((pixels[top : top + 128, :128] == tile).all() for top in range(len(pixels) - 127))


def test_an_interrupted_run_goes_on(monkeypatch):
    calls, paint = [], Sampler._batch

    def stop_at_the_second(self, requests, *args, **options):
        calls.append([request.prompt for request in requests])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return paint(self, requests, *args, **options)

    monkeypatch.setattr(Sampler, "_batch", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate()
    assert os.listdir() == ["out.pictures"]
    done = {read_metadata(file)["prompt"] for file in Path("out.pictures").rglob("*.png")}
    assert done == set(calls[0])
    resumed = evaluate()
    assert len(calls) == 3
    assert not done & set(calls[2])
    os.rename("out.pictures", "elsewhere")
    afresh = evaluate(overwrite=True)
    for one, other in zip(resumed["pairs"], afresh["pairs"], strict=True):
        assert one["mse_target"] == pytest.approx(other["mse_target"], abs=1e-4)


def test_pictures_of_another_run_are_not_taken_for_this_one(monkeypatch):
    pretender = Pretender(monkeypatch, {pair.texts[0]: pair.target for pair in PAIRS})
    evaluate()
    evaluate(overwrite=True)
    assert len(pretender.prompts) == 4, "the second run found all pictures"
    kept = sorted(Path("out.pictures").rglob("*.png"))
    kept[0].write_bytes(kept[0].read_bytes()[:-30])
    evaluate(overwrite=True)
    assert len(pretender.prompts) == 5, "a damaged one is painted again"
    evaluate(overwrite=True, seed=1)
    assert len(pretender.prompts) == 9, "and those of another seed"
    monkeypatch.setattr(painter(), "settings", replace(QUICK, guidance_scale=2.0))
    evaluate(overwrite=True, seed=1)
    assert len(pretender.prompts) == 13, "and those of other settings"
    monkeypatch.setattr(painter(), "settings", QUICK)
    monkeypatch.setattr(emoji, "checkpoint_digest", lambda painter: "sha256:other")
    evaluate(overwrite=True, seed=1)
    assert len(pretender.prompts) == 17, "and those of other weights"


def test_the_digest_is_of_the_weights(tmp_path):
    same = Sampler.from_pretrained(tiny_checkpoint(tmp_path / "elsewhere"))
    assert digest(same) == digest(painter())
    bias = same.dim.connector.fc1.bias
    bias[...] = bias[...].at[0].add(1e-6)
    assert digest(same) != digest(painter())


def test_the_digest_is_computed_once_for_the_same_files(tmp_path, monkeypatch):
    """Until one of them changes, though not in size; a folder of the cache that is damaged or cannot be written costs time alone."""
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "cache"))
    tiny_checkpoint(tmp_path / "tiny")
    model = Sampler(painter().dim, painter().processor, str(tmp_path / "tiny"))
    calls = []
    monkeypatch.setattr(pictures, "digest", lambda painter: calls.append(painter) or f"sha256:{len(calls)}")
    assert [checkpoint_digest(model) for _ in range(3)] == ["sha256:1"] * 3
    weights = tmp_path / "tiny/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    times = weights.stat()
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [checkpoint_digest(model) for _ in range(2)] == ["sha256:2"] * 2
    model.sources = (*model.sources, str(tmp_path / "lora:0.5"))  # a LoRA that is not there
    assert checkpoint_digest(model) == "sha256:3"
    model.sources = ("gs://bucket/model",)
    assert checkpoint_digest(model) == "sha256:4"
    model.sources = (str(tmp_path / "tiny"),)
    (tmp_path / "cache/digests.jsonl").write_text("{}\n")
    assert checkpoint_digest(model) == "sha256:5"
    monkeypatch.setenv("DIM_JAX_CACHE", "/dev/null/cache")
    assert checkpoint_digest(model) == "sha256:6"


# What is refused


def test_outputs_that_cannot_be_written():
    Path("taken.json").write_text("mine")
    Path("sheet.png").write_text("mine")
    for name, says in {
        "out.txt": "ends in .json",
        "taken.json": "exists",
        "sheet.json": "sheet.png exists",
        "no/out.json": "does not exist",
    }.items():
        with pytest.raises(InputError, match=says):
            emoji.evaluate(EditPipeline(painter()), PAIRS, CAPTIONS, Path(name), data="emoji")
    assert Path("taken.json").read_text() == Path("sheet.png").read_text() == "mine"
    assert sorted(os.listdir()) == ["sheet.png", "taken.json"]


def test_nothing_to_measure():
    for edits, captions in (([], CAPTIONS), (PAIRS, [])):
        with pytest.raises(InputError, match=r"emoji: .* to measure with"):
            emoji.evaluate(EditPipeline(painter()), edits, captions, Path("out.json"), data="emoji")
    with pytest.raises(InputError, match="none is left to choose by"):
        evaluate(selection=True, pairs_per_rule=3)
    with pytest.raises(InputError, match="no source to edit"):
        emoji.evaluate(EditPipeline(painter()), CAPTIONS, CAPTIONS, Path("out.json"), data="emoji")


# The command


def test_the_command(loaded, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "dim_jax.datasets.layouts.pairs.Pairs", lambda *args: opened.append(args) or (PAIRS if args[2] == "edit" else CAPTIONS)
    )
    command = ("evaluate", "emoji", "--checkpoint", "C", "--data", "emoji", "-o", "out.json", "--pairs-per-rule", "2", "--batch-size", "2")
    assert dim(*command) == (0, "wrote out.json and out.png\n")
    assert opened == [(Path("emoji"), "test", "edit"), (Path("emoji"), "test", "caption")]
    report = json.loads(Path("out.json").read_text())
    assert (report["overall"]["pairs"], report["data"]) == (4, "emoji (test)")
    assert "out.json exists" in one_error(dim(*command))
    assert dim(*command, "--overwrite", "--known-targets", "--guidance", "2")[0] == 0
    assert json.loads(Path("out.json").read_text())["settings"] == report["settings"] | {"guidance_scale": 2.0}
    assert dim(*command, "--overwrite", "--resolution", "32")[0] == 2
    assert opened[-2:] == [(Path("emoji"), "known", "edit"), (Path("emoji"), "test", "caption")]
    tiny = (*command[:6], "-o", "designed.json", "--pairs-per-rule", "1", "--holdout", "selection", "--designer", "local")
    assert "2 pairs without a blueprint were painted from their instruction, such as: the answer was cut off at 24 tokens" in dim(*tiny)[1]
    report = json.loads(Path("designed.json").read_text())
    assert (report["data"], report["text"], report["designer"]) == ("emoji (test, selection)", "blueprint", "local")
    assert len(report["failures"]) == 2
    assert dim(*tiny, "--text", "instruction")[0] == dim(*tiny[:-1], "openai:gpt-4o")[0] == 2


def test_the_table_says_what_the_report_says():
    report, written = evaluate(), io.StringIO()
    Console(width=200, file=written).print(emoji.table(report))
    text = written.getvalue()
    for rule, row in (*report["rules"].items(), ("all", report["overall"])):
        (line,) = (line for line in text.splitlines() if f" {rule} " in line and "│" in line)
        for words in (str(row["pairs"]), f"{row['nearer']:.0%}", f"{row['psnr']:.2f}", f"{row['psnr_copy']:.2f}"):
            assert words in line
    assert "over 5 pictures" in text
