"""Pictures and pairs on disk: what is written is read, in any order and process, and damage is told in one error."""

import io
import json
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from dim_jax.data.records import Records, new_records
from dim_jax.datasets.layouts.pairs import DATASET, Pair, Pairs, Picture, read_pairs, write_pairs
from dim_jax.errors import InputError
from dim_jax.storage.folders import new_folder

pytest.importorskip("array_record")


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)


def picture(number: int, split: str) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "WEBP", lossless=True)
    return Picture("noto", f"1f60{number}", f"face {number}", split, (f"A face, {number}.", f"Face {number}: “é”."), file.getvalue())


PICTURES = [picture(0, "train"), picture(1, "train"), picture(2, "test"), picture(3, "train"), picture(4, "test")]
PAIRS = [
    Pair(0, 1, "expression", ("Smile.", "Make it smile."), "1. **Edit Instruction**: Smile."),
    Pair(2, 4, "state", ("Open it.",), "1. **Edit Instruction**: Open it."),
    Pair(3, 0, "state", ("Close it — now.",), "1. **Edit Instruction**: Close it."),
    Pair(4, 1, "state", ("Shut it.",), "1. **Edit Instruction**: Shut it."),
]


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path, PICTURES, PAIRS)
    return tmp_path


def test_pairs_are_read_as_they_were_written(folder):
    train, test = Pairs(folder, "train", "edit"), Pairs(folder, "test", "edit")
    assert (len(train), len(test)) == (2, 1)
    last = train[-1]
    assert (last.key, last.rule, last.texts) == ("noto/1f603>noto/1f600", "state", ("Close it — now.",))
    assert last.blueprint == "1. **Edit Instruction**: Close it."
    for image, number in ((last.source, 3), (last.target, 0), (test[0].source, 2), (test[0].target, 4)):
        assert image is not None
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels(number))


def test_pairs_of_which_the_target_may_be_known_stand_apart(folder, tmp_path_factory):
    (known,) = Pairs(folder, "known", "edit")
    assert (known.key, known.texts) == ("noto/1f604>noto/1f601", ("Shut it.",))
    none = tmp_path_factory.mktemp("none")
    write_pairs(none, PICTURES, PAIRS[:3])
    assert list(Pairs(none, "known", "edit")) == []


def test_captions_are_of_every_picture_of_the_split(folder):
    captions = Pairs(folder, "train", "caption")
    assert [example.key for example in captions] == ["noto/1f600", "noto/1f601", "noto/1f603"]
    assert captions[2].texts == ("A face, 3.", "Face 3: “é”.")
    assert (captions[2].source, captions[2].blueprint, captions[2].rule) == (None, None, "caption")
    np.testing.assert_array_equal(np.asarray(captions[2].target), pixels(3))


def test_an_index_outside_is_an_index_error(folder):
    pairs = Pairs(folder, "train", "edit")
    for index in (2, -3):
        with pytest.raises(IndexError, match="of 2"):
            pairs[index]
    assert len(list(pairs)) == 2


def key(pairs: Pairs, index: int) -> str:
    return pairs[index].key


def test_other_processes_read_too(folder):
    """As Grain's workers do: the object travels by pickle and opens its files there."""
    pairs = Pairs(folder, "train", "edit")
    assert key(pairs, 0) == "noto/1f600>noto/1f601"
    assert pickle.loads(pickle.dumps(pairs))[1].texts == pairs[1].texts
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(key, pairs, 1).result() == "noto/1f603>noto/1f600"


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_pairs(tmp_path / name, PICTURES, PAIRS)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["known.array_record", "pictures.array_record", "pictures.jsonl", "test.array_record", "train.array_record"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_pair_from_training_to_the_test_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"noto/1f600 is of the train split, noto/1f602 of the test split"):
        write_pairs(tmp_path, PICTURES, [Pair(0, 2, "state", ("x",), "y")])


@pytest.mark.parametrize("name", ["pictures.array_record", "pictures.jsonl", "train.array_record"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: no such file"):
        Pairs(folder, "train", "edit")


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(InputError, match=r"pip install 'dim_jax\[data\]'"):
        Pairs(folder, "train", "edit")


@pytest.mark.parametrize("name", ["pictures.array_record", "train.array_record"])
def test_a_truncated_file_is_named(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{name}: damaged .*Build the data set again"):
        Pairs(folder, "train", "edit")


def test_a_damaged_record_is_told_when_it_is_read(folder):
    path = folder / "pictures.array_record"
    data = bytearray(path.read_bytes())
    start = data.index(PICTURES[3].webp[8:40])
    data[start : start + 8] = bytes(8)
    path.write_bytes(data)
    pairs = Pairs(folder, "train", "edit")
    with pytest.raises(InputError, match=r"pictures\.array_record: damaged"):
        pairs[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "holds 5 pictures, but pictures.jsonl has 4 lines"),
        (lambda lines: [lines[0], "{half", *lines[2:]], "pictures.jsonl, line 2: is damaged"),
        (lambda lines: [*lines[:3], json.dumps({"set": "noto"}), lines[4]], "pictures.jsonl, line 4: is not the row of a picture"),
        (lambda lines: [lines[0].replace('"split"', '"part"'), *lines[1:]], r"line 1: is not the row of a picture \(split: Field required"),
        (
            lambda lines: [*lines[:4], lines[4].replace('"test"', '"dev"')],
            "line 5: is not the row of a picture .split: .*'train' or 'test'",
        ),
        (lambda lines: [lines[0], lines[1].replace('"noto"', "7"), *lines[2:]], "line 2: is not the row of a picture .set: .* string"),
        (lambda lines: [lines[0], "[" * 10**5, *lines[2:]], "pictures.jsonl, line 2: is damaged"),
        (lambda lines: [lines[0].replace("A face, 0.", " "), *lines[1:]], "pictures.jsonl, line 1: a caption is empty"),
    ],
)
def test_wrong_rows_are_named(folder, change, message):
    path = folder / "pictures.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(InputError, match=message):
        Pairs(folder, "train", "edit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": 5}, "is of picture 5, but there are 5"),
        ({"target": -1}, "is of picture -1"),
        ({"source": 1.5}, r"is not a pair \(source: .* integer"),
        ({"rule": None}, r"is not a pair \(rule: .* string"),
        ({"instructions": "Smile."}, r"is not a pair \(instructions: .* array"),
        ({"instructions": []}, "an instruction is empty, or there is none"),
        ({"blueprint": "\ud83d"}, "is damaged"),
    ],
)
def test_wrong_pairs_are_named(folder, change, message):
    path = folder / "train.array_record"
    fields = json.loads(Records(path, missing="", damaged="")[1]) | change
    with new_records(path) as file:
        file.write(json.dumps(fields).encode())
    with pytest.raises(InputError, match=rf"train\.array_record, pair 0: {message}"):
        Pairs(folder, "train", "edit")[0]
    with pytest.raises(InputError, match=message):
        read_pairs(folder, "train")


def test_only_a_data_set_is_overwritten_by_one(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"weights")
    with (
        pytest.raises(InputError, match="not a data set folder, so it is not overwritten"),
        new_folder(other, overwrite=True, kind=DATASET),
    ):
        pass
    with new_folder(folder, overwrite=True, kind=DATASET) as scratch:
        write_pairs(scratch, PICTURES[:1], [])
    assert len(Pairs(folder, "train", "caption")) == 1
    assert len(Pairs(folder, "train", "edit")) == 0
