"""`dim build-data text`: legible texts, pairs that differ where they say, the split, the same bytes, errors."""

import json
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageFont

from dim_jax.datasets.layouts.pairs import Pairs
from dim_jax.datasets.text import backgrounds, faces
from dim_jax.datasets.text.build import SceneBuilder
from dim_jax.datasets.text.rules import RULES, Choices, change
from dim_jax.datasets.text.scenes import SIZES, label_box, render_scene, sample_scene
from dim_jax.datasets.text.vocabulary import WORDS, sample_text, split_of
from dim_jax.datasets.text.wording import POSITION_TEXTS, instructions
from dim_jax.designer.blueprint import parse
from tests.layout_fixtures import prepared
from tests.painter_fixtures import build_data, dim, one_error, picture

pytest.importorskip("array_record")
SPLITS = ("train", "test")
PATTERNS = backgrounds.pattern_backgrounds()
SIDE = 64


def run(folder: Path, *more: str) -> dict:
    return build_data("text", folder, *more)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "text"
    run(folder, "--scenes", "60", "--side", str(SIDE))
    return folder


@pytest.fixture(scope="module")
def examples(built):
    return {split: list(Pairs(built, split, "edit")) for split in SPLITS}


def changes(number: int = 30, side: int = 96):
    """Changes of every rule, with their scenes."""
    for n in range(number):
        split, rng = SPLITS[n % 2], Random(n)
        scene = sample_scene(rng, split, backgrounds.select_split(PATTERNS, split), faces.BUILTIN_FACES, side)
        for rule in RULES:
            found = change(rule, rng, scene, Choices(split, faces.BUILTIN_FACES, scene.background.readable), side)
            if found is not None:
                yield found
                yield found.reversed()


# Pictures


def test_pairs_differ_inside_the_boxes_of_the_text_and_nowhere_else():
    count, side = Counter(), 96
    for one in changes(side=side):
        ground = one.source.background.paint(side)
        source, target = (np.asarray(render_scene(scene, ground), int) for scene in (one.source, one.target))
        inside = np.zeros((side, side), bool)
        for scene, label in ((one.source, one.old), (one.target, one.new)):
            left, top, right, bottom = label_box(label, scene.background, side)
            assert 0 <= left < right <= side
            assert 0 <= top < bottom <= side
            inside[top:bottom, left:right] = True
        differs = (source != target).any(-1)
        assert not differs[~inside].any()
        assert np.abs(source - target)[inside].max() > 50
        assert differs.sum() >= 10
        count[one.rule] += 1
    assert min(count[rule] for rule in RULES) >= 30


def test_texts_stand_out_from_their_ground():
    """Of the pixels of a box, some have the very colour of the letters, and the ground's luminance is far from it."""
    for one in changes(20, 128):
        scene = one.target
        ground = scene.background.paint(128)
        picture, bare = np.asarray(render_scene(scene, ground)), np.asarray(ground)
        for label in scene.labels:
            left, top, right, bottom = label_box(label, scene.background, 128)
            colour = np.array(backgrounds.RGB[label.colour])
            assert (np.abs(picture[top:bottom, left:right].astype(int) - colour).max(-1) < 40).any(), label
            levels = [luminance_of(pixel) for pixel in bare[top:bottom, left:right].reshape(-1, 3)[::7]]
            assert min(backgrounds.contrast(float(luminance_of(colour)), float(level)) for level in levels) > 2.9, (label, scene.background)


def luminance_of(pixel) -> float:
    red, green, blue = (level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in pixel / 255)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_each_rule_changes_what_it_says():
    fields = {"word": "text", "font": "face", "colour": "colour", "size": "size", "position": "position"}
    for one in changes():
        assert replace(one.old, **{fields[one.rule]: getattr(one.new, fields[one.rule])}) == one.new
        assert one.old != one.new
        text = instructions(one)[0]
        assert f'"{one.old.text}"' in text
        told = {
            "word": f'"{one.new.text}"', "font": one.new.face.name, "colour": one.new.colour,
            "size": "larger" if one.new.size > one.old.size else "smaller", "position": POSITION_TEXTS[one.new.position].split(" ", 1)[1],
        }  # fmt: skip
        assert told[one.rule] in text
        assert ("much" in text) == (one.rule == "size" and abs(one.new.size - one.old.size) == len(SIZES) - 1)


def test_render_letters_in_every_face():
    shapes = {face.name: np.asarray(faces.render_letters(face, "Sign 42", 24), int) for face in faces.BUILTIN_FACES}
    assert all(shape.max() > 200 for shape in shapes.values())
    ink = {name: shape.sum() for name, shape in shapes.items()}
    assert ink["bold"] > 1.2 * ink["plain"]
    assert abs(ink["slanted"] - ink["plain"]) < 0.05 * ink["plain"]
    assert shapes["slanted"].shape[1] > shapes["plain"].shape[1]
    # Hollow: a line through the I crosses ink twice.
    (row,) = np.asarray(faces.render_letters(faces.BUILTIN_FACES[3], "I", 64), int)[30:31]
    assert (np.diff((row > 128).astype(int)) == 1).sum() + (row[0] > 128) == 2


# The folder


def test_every_rule_has_pairs_in_both_splits(built, examples):
    statistics = json.loads((built / "statistics.json").read_text())
    for split in SPLITS:
        counts = Counter(example.rule for example in examples[split])
        assert counts == {rule: row[split] for rule, row in statistics["pairs"].items()}
        assert set(counts) == set(RULES)
        assert sum(counts.values()) == statistics["total"][split]
    for rule, row in statistics["pairs"].items():
        assert row["train"] + row["test"] + 2 * row["no room"] == 2 * 60, rule


def test_no_word_and_no_ground_of_the_test_is_in_training(built, examples):
    """Not in the pictures, not in any text about them, in no case."""
    quoted = {split: set() for split in SPLITS}
    for split in SPLITS:
        for example in (*examples[split], *Pairs(built, split, "caption")):
            for text in (*example.texts, example.blueprint or ""):
                quoted[split] |= {word.lower() for said in re.findall(r'"(.+?)"', text) for word in said.split()}
    assert len(quoted["train"]) > 50
    assert len(quoted["test"]) > 5
    for split in SPLITS:
        assert all(split_of(word) == split for word in quoted[split])
    told = {split: {example.texts[2].split(" on ", 1)[1] for example in Pairs(built, split, "caption")} for split in SPLITS}
    assert not told["train"] & told["test"]
    both = [{ground.key for ground in backgrounds.select_split(PATTERNS, split)} for split in SPLITS]
    assert not both[0] & both[1]
    assert len(both[0] | both[1]) == len(PATTERNS)


def test_blueprints_parse(examples):
    for split in SPLITS:
        for example in examples[split]:
            found = parse(example.blueprint)
            assert found.text == example.blueprint
            assert found.instruction == example.texts[0]
            assert len(set(example.texts)) == len(example.texts) >= 3
            for text in (*example.texts, example.blueprint):
                assert not re.search(r"[{}]|None|  |\ban? (a|an|the)\b|\ba [aeio]", text), text


def test_the_same_arguments_give_the_same_bytes(built, tmp_path):
    run(tmp_path / "again", "--scenes", "60", "--side", str(SIDE))
    assert sorted(os.listdir(built)) == sorted(os.listdir(tmp_path / "again"))
    for path in built.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    run(tmp_path / "other", "--scenes", "60", "--side", str(SIDE), "--seed", "1")
    assert (tmp_path / "other/train.array_record").read_bytes() != (built / "train.array_record").read_bytes()


@pytest.mark.parametrize("side", [32, 96])
def test_training_reads_it_at_any_resolution(built, side):
    pytest.importorskip("grain")
    from dim_jax.data.pipeline import Loader, batches, make_plan, open_mixture
    from dim_jax.data.readers import PictureReader

    source, reader = prepared(built), PictureReader(((side, side),))
    parts = open_mixture(str(source), {"edit": 1.0}, split="train", side=side)
    plan = make_plan(parts, reader, None, batch_size=4, seed=0)
    batch = next(batches(Loader(parts, plan, reader, np.arange(4)), start=0, workers=0))
    assert batch.batch.pixels.shape == (4, side, side, 3)


# Pictures and fonts of the user


def test_pictures_and_fonts_of_the_user(tmp_path):
    (tmp_path / "pictures/below").mkdir(parents=True)
    for n in range(3):
        picture(90, 70, n).save(tmp_path / f"pictures/{n}.png")
    picture(90, 70, 0).save(tmp_path / "pictures/below/same.png")
    (tmp_path / "pictures/notes.txt").write_text("no picture")
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts/own.ttf").write_bytes(ImageFont.load_default(20).font_bytes)
    statistics = run(
        tmp_path / "out", "--scenes", "20", "--side", "128", "--pictures", str(tmp_path / "pictures"), "--fonts", str(tmp_path / "fonts")
    )
    assert statistics["grounds"] == {"train": 2, "test": 1}
    assert statistics["faces"] == ["plain", "bold", "slanted", "outlined", "Aileron"]
    assert "Aileron" in (tmp_path / "out/README.md").read_text()
    # Where no letter is, the user's picture shows, scaled.
    images = [np.asarray(ground.paint(128), int) for ground in backgrounds.read_backgrounds(tmp_path / "pictures")]
    shown = [np.asarray(example.target, int) for example in Pairs(tmp_path / "out", "train", "caption")]
    assert all(max((image == ground).all(-1).mean() for ground in images) > 0.6 for image in shown)


def test_letters_on_pictures_have_a_rim():
    """In black or white, whichever stands out from the letters."""
    maker = SceneBuilder({split: [replace(PATTERNS[0], path=Path("x"))] for split in SPLITS}, faces.BUILTIN_FACES, 128, 0)
    scene = sample_scene(Random(0), "train", maker.backgrounds["train"], faces.BUILTIN_FACES, 128)
    label = replace(scene.labels[0], colour="yellow", face=faces.BUILTIN_FACES[0])
    scene = replace(scene, labels=(label,))
    ground = Image.new("RGB", (128, 128), backgrounds.RGB["yellow"])
    drawn = np.asarray(render_scene(scene, ground), int)
    assert (np.abs(drawn - backgrounds.RGB["black"]).max(-1) < 10).any()
    left, top, right, bottom = label_box(label, scene.background, 128)
    outside = np.ones((128, 128), bool)
    outside[top:bottom, left:right] = False
    assert (drawn[outside] == backgrounds.RGB["yellow"]).all()


def test_sampled_texts_are_of_their_split():
    rng = Random(1)
    for split in SPLITS:
        texts = [sample_text(rng, split, 0) for _ in range(200)]
        assert all(split_of(word) == split for text in texts for word in text.split())
        assert any(text.isdecimal() for text in texts)
        assert any(" " in text for text in texts)
    assert 0.05 < np.mean([split_of(word) == "test" for word in WORDS]) < 0.2
    assert len(set(WORDS)) == len(WORDS)


# What is refused: one error, and nothing left behind


def refused(tmp_path: Path, *more: str) -> str:
    before = sorted(os.listdir(tmp_path))
    message = one_error(dim("build-data", "text", str(tmp_path / "out"), "--scenes", "10", "--side", "64", *more))
    assert sorted(os.listdir(tmp_path)) == before
    return message


def test_wrong_numbers_and_folders(tmp_path):
    assert "at least 10 scenes, and a side from 64" in refused(tmp_path, "--scenes", "3")
    assert "32 pixels" in refused(tmp_path, "--side", "32")
    for option in ("--pictures", "--fonts"):
        assert "none: no such folder" in refused(tmp_path, option, str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "0 different pictures" in refused(tmp_path, "--pictures", str(tmp_path / "empty"))
    assert "no font with Latin letters" in refused(tmp_path, "--fonts", str(tmp_path / "empty"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("kept")
    assert "exists" in refused(tmp_path)
    assert "not a data set folder, so it is not overwritten" in refused(tmp_path, "--overwrite")


def test_damaged_files_are_named(tmp_path):
    for name in ("pictures", "fonts"):
        (tmp_path / name).mkdir()
    picture(64, 64).save(tmp_path / "pictures/sound.png")
    (tmp_path / "pictures/half.png").write_bytes((tmp_path / "pictures/sound.png").read_bytes()[:100])
    assert "half.png: the picture is damaged" in refused(tmp_path, "--pictures", str(tmp_path / "pictures"))
    (tmp_path / "fonts/half.ttf").write_bytes(b"no font")
    assert "half.ttf: a damaged font" in refused(tmp_path, "--fonts", str(tmp_path / "fonts"))


def test_without_array_record_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    assert "pip install 'dim_jax[data]'" in refused(tmp_path)


def test_without_freetype_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(faces.features, "check", lambda name: False)
    assert "Pillow with FreeType" in refused(tmp_path)
