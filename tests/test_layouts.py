"""The published data sets in small, as they lie on disk: read by number, from folders and archives; what is missing or wrong is named."""

import gzip
import io
import json
import random
import tarfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dim_jax.data.example import KINDS, Kind
from dim_jax.datasets import layouts
from dim_jax.datasets.layouts import archives, layout_of, open_splits
from dim_jax.datasets.prepare import prepare
from dim_jax.errors import InputError
from tests.layout_fixtures import ROWS, Rows, cut, dim_edit, extract, files, image, png, share_gpt, tar, ultra_edit


def kinds_of(folder: Path) -> list[Kind]:
    return [kind for kind in KINDS if open_splits(folder, layout_of(folder), kind, folder / "notes")]


def check_edits(found: Rows, texts: str) -> None:
    """All rows but the last, which is held out, in any order."""
    assert len(found) == ROWS - 1
    for row in random.Random(0).sample(range(ROWS - 1), ROWS - 1):
        example = found[row]
        assert example.texts == (texts.format(row),)
        for one, number in ((example.source, 2 * row), (example.target, 2 * row + 1)):
            assert np.array_equal(np.asarray(one), np.asarray(image(number)))


@pytest.fixture
def edits(tmp_path) -> Path:
    return dim_edit(tmp_path / "DIM-Edit")


PROMPT = "1. **Edit Instruction**: make it {} “red”."


def test_dim_edit_in_folders(edits):
    extract(edits, files("image/{}.png"))
    found = Rows(edits)
    check_edits(found, PROMPT)
    assert found[3].blueprint == found[3].texts[0]
    assert found[3].key == "tos_dataset_edit/0003"
    assert [example.key for example in Rows(edits, split="test")] == ["tos_dataset_edit/0011"]
    check_edits(Rows(edits / "tos_dataset_edit.jsonl"), PROMPT)


DIGITS = tuple(f".part{number:02}" for number in range(5))


@pytest.fixture
def cut_edits(edits, monkeypatch) -> Path:
    """The pictures in a compressed archive of five parts; points to start from are close, so that there are many."""
    monkeypatch.setattr(archives, "SPACING", 33_000)
    tar(edits / "images.tar.gz", files("image/{}.png"), "w:gz")
    cut(edits / "images.tar.gz", DIGITS)
    return edits


def test_dim_edit_in_parts_of_an_archive(cut_edits, tmp_path):
    notes = tmp_path / "notes"
    check_edits(Rows(cut_edits, notes=notes), PROMPT)
    before = {path: path.stat().st_mtime_ns for path in notes.iterdir()}
    assert sorted(path.name for path in before) == ["images.tar.gz.points", "members.npz"]
    archives._open_archives.cache_clear()  # a later run has not opened them yet
    check_edits(Rows(cut_edits, notes=notes), PROMPT)
    assert before == {path: path.stat().st_mtime_ns for path in notes.iterdir()}  # finished work is kept


@pytest.mark.parametrize("endings", [DIGITS, (".partaa", ".partab", ".partac"), ("-part",)])
@pytest.mark.parametrize("lost", [0, 1, -1])
def test_parts_that_are_missing(edits, endings, lost):
    tar(edits / "images.tar.gz", files("image/{}.png"), "w:gz")
    if len(endings) == 1:  # nothing to number: one file, cut off
        data = (edits / "images.tar.gz").read_bytes()
        (edits / "images.tar.gz").write_bytes({0: data[1000:], 1: data[:1000] + data[2000:], -1: data[:-1000]}[lost])
    else:
        cut(edits / "images.tar.gz", endings)
        (edits / f"images.tar.gz{endings[lost]}").unlink()
    with pytest.raises(InputError) as error:
        Rows(edits)[0]
    assert "images.tar.gz" in str(error.value)
    if len(endings) > 1 and lost >= 0 and (lost, endings) != (0, DIGITS):  # some count from 1
        assert f"part {endings[lost].removeprefix('.part')} is missing" in str(error.value)
    else:
        assert "download the missing ones" in str(error.value)


def as_tar(path: Path) -> None:
    tar(path, files("image/{}.png"), "w:")


def as_gzip_of_two_members(path: Path) -> None:
    as_tar(path)
    data = path.read_bytes()
    path.write_bytes(gzip.compress(data[:7000]) + gzip.compress(data[7000:]))


@pytest.mark.parametrize(
    ("name", "make"), [("images.tar.gz", as_tar), ("images.tar", as_gzip_of_two_members), ("images.tgz", as_gzip_of_two_members)]
)
def test_an_archive_is_what_its_content_says(edits, tmp_path, name, make):
    make(edits / name)
    check_edits(Rows(edits, notes=tmp_path / "notes"), PROMPT)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_an_archive_that_ends_early(edits, ending):
    """Where tarfile sees an end: in a header, or where the data of gzip stop."""
    tar(edits / f"images{ending}", files("image/{}.png"), "w:gz" if ending == ".tar.gz" else "w:")
    data = (edits / f"images{ending}").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        header = archive.getmembers()[9].offset
    (edits / f"images{ending}").write_bytes(data[: header + 100 if ending == ".tar" else len(data) // 2])
    with pytest.raises(InputError, match=rf"images{ending} is damaged or incomplete \(.*download the missing ones"):
        Rows(edits)[0]


def test_an_archive_that_is_not_read_is_named(edits):
    (edits / "images.tar.xz").write_bytes(b"")
    with pytest.raises(InputError, match=r"Unpack images\.tar\.xz there: tar, tar\.gz and zip alone are read"):
        Rows(edits)[0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_of_one_character_or_two(edits, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    contents = files("image/{}.png")
    contents[unicodedata.normalize(other, "image/é.png")] = contents.pop("image/2.png")
    extract(edits, contents)
    table = edits / "tos_dataset_edit.jsonl"
    table.write_text(table.read_text().replace("image/2.png", unicodedata.normalize(form, "image/é.png")), encoding="utf-8")
    assert Rows(edits)[1].source is not None


def test_an_archive_that_was_extracted_is_not_read(cut_edits, tmp_path):
    extract(cut_edits, files("image/{}.png"))
    archives.index_archives(cut_edits, tmp_path / "notes")
    assert not (tmp_path / "notes/images.tar.gz.points").exists()
    check_edits(Rows(cut_edits, notes=tmp_path / "notes"), PROMPT)


def test_captions_of_dim(tmp_path):
    folder = tmp_path / "DIM-T2I"
    folder.mkdir()
    for name, text in (("blip3", "prompt"), ("textvqa", "caption")):
        rows = [json.dumps({"image_path": f"{name}/{number}.png", text: f"Picture {number}."}) for number in range(4)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))  # the last line has no end
        extract(folder, {f"{name}/{number}.png": png(image(number)) for number in range(4)})
    found = Rows(folder, "caption")
    assert kinds_of(folder) == ["caption"]
    assert [example.key for example in found] == [f"blip3/{row}" for row in range(4)] + [f"textvqa/{row}" for row in range(4, 7)]
    assert [(example.source, example.blueprint) for example in found] == [(None, None)] * 7
    assert found[5].texts == ("Picture 1.",)
    assert np.array_equal(np.asarray(found[5].target), np.asarray(image(1)))


@pytest.mark.parametrize("extracted", [True, False])
def test_share_gpt_4o_image(tmp_path, extracted):
    folder = share_gpt(tmp_path / "ShareGPT-4o-Image")
    if extracted:
        extract(folder, files("image/{}.png"))
    else:
        for number in range(3):
            part = {name: data for name, data in files("image/{}.png").items() if int(Path(name).stem) % 3 == number}
            tar(folder / f"text_and_image_to_image_part_{number}.tar", part, "w")
    assert kinds_of(folder) == ["edit", "caption"]
    check_edits(Rows(folder), "Edit {}.")
    captions = Rows(folder, "caption")
    assert (captions[4].texts, captions[4].source) == (("Paint 4.",), None)
    assert np.array_equal(np.asarray(captions[4].target), np.asarray(image(9)))
    if not extracted:
        (folder / "text_and_image_to_image_part_1.tar").unlink()
        with pytest.raises(InputError, match=r"text_and_image_to_image_part_1.tar is missing"):
            Rows(folder, notes=tmp_path / "anew")[1]


def test_ultra_edit(tmp_path):
    folder = ultra_edit(tmp_path / "UltraEdit")
    check_edits(Rows(folder), "Edit {}.")
    assert Rows(folder)[8].blueprint is None
    assert kinds_of(folder) == ["edit"]


def test_ultra_edit_by_many_threads(tmp_path):
    """They take turns at the groups of rows, and each gets the pictures of its row."""
    found = Rows(ultra_edit(tmp_path / "UltraEdit", group=2))
    order = random.Random(1).choices(range(ROWS - 1), k=60)
    with ThreadPoolExecutor(8) as pool:
        for row, example in zip(order, pool.map(found.__getitem__, order), strict=True):
            assert example.texts == (f"Edit {row}.",)
            for one, number in ((example.source, 2 * row), (example.target, 2 * row + 1)):
                assert np.array_equal(np.asarray(one), np.asarray(image(number)))


def test_invalid_ultra_edit_is_refused(tmp_path):
    with pytest.raises(
        InputError,
        match=r"FreeForm-00000-of-00002.parquet: lacks edited_image.bytes; its columns are source_image.bytes, .*, ssim",
    ):
        Rows(ultra_edit(tmp_path / "lacks", edited_image=None))
    bad = ultra_edit(tmp_path / "bad")
    path = bad / "data/FreeForm-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"FreeForm-00001-of-00002.parquet: is not a parquet file, or damaged"):
        Rows(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: "{half", r"edit.jsonl, line 3: is not JSON"),
        (lambda line: "[1]", r"edit.jsonl, line 3: is not a JSON object"),
        (lambda line: "", r"edit.jsonl, line 3: is not JSON"),
        (lambda line: line.replace('"prompt"', '"text"'), r"edit.jsonl, line 3: prompt or caption is None, but must be a text"),
        (lambda line: line.replace("image/4.png", ""), r"edit.jsonl, line 3: image_path is '', but must be a text"),
        (lambda line: line.replace("image/4.png", "image/none.png"), r"edit.jsonl, line 3: there is no .*image/none.png"),
        (lambda line: line.replace("image/5.png", "tos_dataset_edit.jsonl"), r"edit.jsonl, line 3: tos_dataset_edit.jsonl: not a picture"),
    ],
)
def test_a_bad_row_is_named(edits, change, message):
    extract(edits, files("image/{}.png"))
    path = edits / "tos_dataset_edit.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], change(lines[2]), *lines[3:]]) + "\n")
    found = Rows(edits)
    found[1], found[3]
    with pytest.raises(InputError, match=message):
        found[2]


def test_bad_rows_of_share_gpt(tmp_path):
    folder = share_gpt(tmp_path / "set")
    path = folder / "text_and_image_to_image.json"
    path.write_text(path.read_text().replace('["image/4.png"]', '["image/4.png", "image/6.png"]'))
    with pytest.raises(InputError, match=r"image.json, row 3: input_image is \['image/4.png', 'image/6.png'\], but must be a list of one"):
        Rows(folder)[2]
    for text, message in (("[half", "is not a JSON file"), ("{}", "is not a JSON array of rows")):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"text_and_image_to_image.json: {message}"):
            Rows(folder)


def test_own_edits(edits):
    extract(edits, files("{}.png"))
    own = {"source": "0.png", "target": "1.png", "prompt": ["Make it red.", "Red."]}
    lines = [own, own | {"prompt": "Blue.", "blueprint": "1. Blue."}, own | {"prompt": [""]}, own]
    (edits / "tos_dataset_edit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Rows(edits)
    assert (found[0].texts, found[0].blueprint) == (("Make it red.", "Red."), None)
    assert (found[1].texts, found[1].blueprint) == (("Blue.",), "1. Blue.")
    assert np.array_equal(np.asarray(found[1].target), np.asarray(image(1)))
    with pytest.raises(InputError, match=r"edit.jsonl, line 3: prompt is \[''\], but must be a text, or a list of texts"):
        found[2]


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match=r"has no known layout. dim has .*; pairs has "):
        layout_of(tmp_path)
    with pytest.raises(InputError, match=r"none: there is no such folder or file"):
        layout_of(tmp_path / "none")
    (tmp_path / "rows.jsonl").touch()
    assert layout_of(tmp_path) == "dim"
    (tmp_path / "rows.parquet").touch()
    with pytest.raises(InputError, match=r"may be dim or ultra_edit. Give the layout \(--layout\)"):
        layout_of(tmp_path)


def test_adding_a_layout_is_one_file(tmp_path, monkeypatch):
    """The example of CONTRIBUTING.md, as written there."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    (tmp_path / "layouts").mkdir()
    (tmp_path / "layouts/captions.py").write_text(text.split("```python\n", 1)[1].split("```", 1)[0])
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "layouts")])
    extract(tmp_path / "set", files("{}.png"))
    (tmp_path / "set/captions.tsv").write_text("0.png\tA picture.\n1.png\tAnother.\n2.png\n3.png\tOne more.\n")
    layouts.layouts.cache_clear()
    assert layout_of(tmp_path / "set") == "captions"
    with pytest.raises(InputError, match=r"captions.tsv, line 3: needs a file name, a tab and a caption"):
        prepare(tmp_path / "set", tmp_path / "out")
    assert prepare(tmp_path / "set", tmp_path / "out", bad_samples=1) == {"caption/train": 2, "caption/test": 1}
    layouts.layouts.cache_clear()
