"""Data sets written as TFDS has them: the same rows in the same order as in the source, checked, counted, whole or not at all."""

import hashlib
import itertools
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dim_jax.data.builders import SETS, build, shards
from dim_jax.data.pairs import write_pairs
from dim_jax.data.pipeline import Loader, batches, make_plan, open_mixture
from dim_jax.data.processor import Processor
from dim_jax.data.readers import PaintReader
from dim_jax.data.sources import Source, kinds_of, open_source
from dim_jax.errors import InputError
from dim_jax.models.qwen import QwenConfig
from tests.painter_fixtures import dim, one_error
from tests.test_data_pipeline import same
from tests.test_pairs import PAIRS, PICTURES
from tests.test_sources import ROWS, TOKENIZER, dim_edit, extract, files, image, png, share_gpt, ultra_edit


def edits(folder: Path) -> Path:
    extract(dim_edit(folder), files("image/{}.png"))
    return folder


def captions(folder: Path) -> Path:
    extract(folder, {f"{number}.png": png(image(number)) for number in range(ROWS)})
    rows = [{"image_path": f"{number}.png", "caption": f"Picture {number}: “é”."} for number in range(ROWS)]
    (folder / "blip3.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder


def gpt(folder: Path) -> Path:
    extract(share_gpt(folder), files("image/{}.png"))
    return folder


def emoji(folder: Path) -> Path:
    folder.mkdir()
    write_pairs(folder, PICTURES, PAIRS)
    return folder


RAW = {"dim_t2i": captions, "dim_edit": edits, "ultra_edit": ultra_edit, "sharegpt4o_image": gpt, "emoji": emoji}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Every raw set in small under its name in raw/, and what the builders made of them in tfds/."""
    place = tmp_path_factory.mktemp("builders")
    (place / "raw").mkdir()
    for name, make in RAW.items():
        build(name, make(place / "raw" / name), place / "tfds", shards=3)
    return place


def version(place: Path, name: str, kind: str = "edit") -> Path:
    return place / "tfds" / name / kind / "1.0.0"


def same_examples(one: Source, other: Source) -> None:
    """Both have the same rows, the second also in a copy that travelled, and backwards."""
    assert len(one) == len(other) > 0
    other = pickle.loads(pickle.dumps(other))
    for row in reversed(range(len(one))):
        a, b = one[row], other[row]
        assert (a.key, a.rule, a.texts, a.blueprint) == (b.key, b.rule, b.texts, b.blueprint)
        assert np.array_equal(np.asarray(a.target), np.asarray(b.target))
        assert (a.source is None) == (b.source is None)
        assert a.source is None or np.array_equal(np.asarray(a.source), np.asarray(b.source))
        assert (one.row_texts(row), one.size(row)) == (other.row_texts(row), other.size(row))


@pytest.mark.parametrize("name", RAW)
def test_the_same_examples_in_the_same_order(place, name):
    raw, written = str(place / "raw" / name), str(place / "tfds" / name)
    assert kinds_of(raw) == kinds_of(written)
    for kind, split in itertools.product(kinds_of(raw), ("train", "test")):
        one, other = (open_source(source, kind, split=split, side=0) for source in (raw, written))
        same_examples(one, other)
        assert set(other.rules()) <= {"", *one.rules()}
    if name == "emoji":
        assert open_source(written, "edit", split="train", side=0).rules() == ["expression", "state"]


def test_a_version_can_be_named_and_the_highest_is_taken(place, tmp_path):
    assert len(open_source(str(version(place, "dim_edit")), "edit", split="train", side=0)) == ROWS - 1
    shutil.copytree(place / "tfds/dim_edit/edit/1.0.0", tmp_path / "set/edit/1.9.0")
    shutil.copytree(place / "tfds/ultra_edit/edit/1.0.0", tmp_path / "set/edit/1.10.0")
    (tmp_path / "set/edit/incomplete.A1B2C3_2.0.0").mkdir()
    assert open_source(str(tmp_path / "set"), "edit", split="train", side=0)[0].key == "FreeForm-00000-of-00002/0"
    with pytest.raises(InputError, match="holds no rows of the kind caption"):
        open_source(str(tmp_path / "set"), "caption", split="train", side=0)


def test_tfds_reads_them(place):
    found = tfds.data_source("dim_edit", split="train", data_dir=place / "tfds")
    assert len(found) == ROWS - 1
    assert np.array_equal(found[4]["target"], np.asarray(image(9)))
    assert (found[4]["key"].decode(), found[4]["blueprint"].decode()[:25]) == ("tos_dataset_edit/0004", "1. **Edit Instruction**: ")
    info = tfds.builder_from_directory(version(place, "emoji")).info
    assert info.description.startswith("Emoji of four drawn sets")
    assert {split: one.num_examples for split, one in info.splits.items()} == {"train": 2, "test": 1, "known": 1}
    assert info.splits["train"].shard_lengths == [1, 1]


def test_counts_and_checksums(place):
    folder = version(place, "dim_edit")
    found = tfds.builder_from_directory(folder).info.metadata["statistics"]["train"]
    assert (found["rows"], found["texts"]) == (ROWS - 1, ROWS - 1)
    assert found["words of blueprint"] == {"mean": 7.0, "most": 7}
    assert found["width of source"] == {"least": 16, "mean": 26.0, "most": 36}
    assert found["height of target"] == {"least": 19, "mean": 29.0, "most": 39}
    emoji = tfds.builder_from_directory(version(place, "emoji")).info.metadata["statistics"]["train"]
    assert (emoji["rules"], emoji["texts"], emoji["words of texts"]) == ({"expression": 1, "state": 1}, 3, {"mean": 2.7, "most": 4})
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sorted(sums) == sorted(path.name for path in folder.glob("*.array_record-*"))
    assert len(sums) == 4
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_workers_write_the_same_bytes(place, tmp_path):
    build("dim_edit", place / "raw/dim_edit", tmp_path, shards=3, workers=2)
    for path in version(place, "dim_edit").iterdir():
        assert path.read_bytes() == (tmp_path / "dim_edit/edit/1.0.0" / path.name).read_bytes(), path.name


def test_what_is_there_is_left_as_it_is(place, tmp_path):
    source = edits(tmp_path / "raw")
    unfinished = tmp_path / "tfds/dim_edit/edit/incomplete.A1B2C3_1.0.0"  # of a call that was killed
    unfinished.mkdir(parents=True)
    assert build("dim_edit", source, tmp_path / "tfds") == {"edit/train": ROWS - 1, "edit/test": 1}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tfds/dim_edit/edit/1.0.0").iterdir()}
    assert build("dim_edit", source, tmp_path / "tfds") == {"edit/train": ROWS - 1, "edit/test": 1}
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_named_and_nothing_is_left(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(shards, "SAMPLE", 1)  # or it would show when sizes are estimated
    source = edits(tmp_path / "raw")
    path = source / "image/13.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"tos_dataset_edit.jsonl, line 7: image/13.png: the picture is damaged"):
        build("dim_edit", source, tmp_path / "tfds", shards=3, workers=workers)
    assert list((tmp_path / "tfds/dim_edit/edit").iterdir()) == []


def test_without_the_packages_of_tfds_it_says_what_to_install(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = r"needs the package tensorflow_datasets. Install it: pip install 'dim_jax\[tfds\]'"
    with pytest.raises(InputError, match=message):
        open_source(str(place / "tfds/dim_edit"), "edit", split="train", side=0)
    assert "Install it: pip install 'dim_jax[tfds]'" in one_error(dim("build-data", "tfds", "dim_edit", "out", "--from", str(tmp_path)))


def test_what_is_refused(place, tmp_path, monkeypatch):
    raw, out = place / "raw", tmp_path / "tfds"
    for name, source, message in (
        ("dim_edits", raw / "dim_edit", "dim_edits: no such data set. There are dim_t2i, dim_edit"),
        ("dim_edit", raw / "none", "none: no such folder"),
        ("dim_edit", raw / "dim_t2i", "has rows of the kind caption, but none that are of dim_edit"),
        ("dim_edit", raw / "ultra_edit", "ultra_edit: is no folder of dim_edit"),
        ("emoji", place / "tfds/emoji", "tfds/emoji: is no folder of emoji"),
    ):
        with pytest.raises(InputError, match=message):
            build(name, source, out)
    config = tfds.download.DownloadConfig(manual_dir=raw / "dim_edit")
    with pytest.raises(InputError, match="written as array_record, not as tfrecord"):
        SETS["dim_edit"](data_dir=out, file_format="tfrecord").download_and_prepare(download_config=config)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(InputError, match=r"edit/.*: no space in .* KiB are needed, 100 B are free"):
        build("dim_edit", raw / "dim_edit", out)


def test_damage_is_told(place, tmp_path):
    shutil.copytree(place / "tfds/dim_edit", tmp_path / "dim_edit")
    path = tmp_path / "dim_edit/edit/1.0.0/dim_edit-train.array_record-00001-of-00003"
    data = bytearray(path.read_bytes())
    data[400:440] = bytes(40)
    path.write_bytes(data)
    found = open_source(str(tmp_path / "dim_edit"), "edit", split="train", side=0)
    found[2]
    with pytest.raises(InputError, match=r"1.0.0, train, row 4: damaged .*sha256sum --check SHA256SUMS"):
        found[3]


def test_another_data_set_of_tfds(place, tmp_path):
    folder = tmp_path / "mnist/edit/1.0.0"
    shutil.copytree(version(place, "dim_edit"), folder)
    path = folder / "features.json"
    path.write_text(path.read_text().replace('"texts"', '"label"'))
    with pytest.raises(InputError, match=r"has no texts. Give a data set of `dim build-data tfds`"):
        open_source(str(tmp_path / "mnist"), "edit", split="train", side=0)


def test_a_run_sees_the_same(place, tmp_path):
    """Raw files, and what the command made of them: the same plan and the same batches, to the bit, and so the same losses."""
    raw, found = place / "raw/sharegpt4o_image", []
    code, text = dim("build-data", "tfds", "sharegpt4o_image", str(tmp_path), "--from", str(raw), "--shards", "2")
    assert (code, f"{ROWS - 1} rows of edit/train, 1 rows of edit/test, {ROWS - 2} rows of caption/train" in text) == (0, True), text
    processor = Processor.from_pretrained(TOKENIZER, resolution=32, condition_length=256, layout=QwenConfig.tiny().vision.layout)
    reader = PaintReader(processor, (64, 96), ((16, 32), (32, 32), (32, 16)), "instruction")
    for source in (raw, tmp_path / "sharegpt4o_image"):
        code, text = dim("index", str(source), "--tokenizer", str(TOKENIZER))
        assert (code, (source / "index/edit.npz").exists()) == (0, True), text
        parts = open_mixture(str(source), {"edit": 0.5, "caption": 0.5}, split="train", side=8)
        plan = make_plan(parts, reader, processor.tokenizer, batch_size=2, seed=3)
        planned = [(step.component, step.bucket, *step.rows.tolist()) for step in map(plan.at, range(20))]
        assert {one[0] for one in planned} == {0, 1}
        assert len({one[1] for one in planned}) > 1
        stream = batches(Loader(parts, plan, reader, np.arange(2)), start=0, workers=0)
        found.append((planned, [next(stream) for _ in range(20)]))
    (planned, loaded), (planned_too, loaded_too) = found
    assert planned == planned_too
    assert [one.keys for one in loaded] == [one.keys for one in loaded_too]
    assert all(same(one.batch, other.batch) for one, other in zip(loaded, loaded_too, strict=True))
    wrong = ("build-data", "tfds", "dim_edit", str(tmp_path), "--from", str(place / "raw/emoji"))
    assert "raw/emoji: is no folder of dim_edit" in one_error(dim(*wrong))
