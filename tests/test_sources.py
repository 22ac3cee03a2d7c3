"""The published sets in small, as they lie on disk: read by index, from folders and archives; what is missing or wrong is named."""

import io
import json
import pickle
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.indexing import index_source
from dim_jax.data.pipeline import open_mixture
from dim_jax.data.row_stats import RowCounter, read_facts, write_facts
from dim_jax.data.sources import Source, archives, kinds_of, open_source
from dim_jax.errors import InputError
from tests.painter_fixtures import dim, one_error, picture

TOKENIZER = Path(__file__).parent / "tiny_tokenizer"
ROWS = 12


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def image(number: int) -> Image.Image:
    """A picture of its own size for each number."""
    return picture(16 + number, 40 - number, number)


def files(name: str) -> dict[str, bytes]:
    """Sources have even numbers, targets odd ones."""
    return {name.format(number): png(image(number)) for number in range(2 * ROWS)}


def extract(folder: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tar(path: Path, contents: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as archive:
        directory = tarfile.TarInfo("./image")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, data in contents.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def cut(path: Path, endings: tuple[str, ...]) -> None:
    """As `split` does."""
    data = path.read_bytes()
    size = -(-len(data) // len(endings))
    for number, ending in enumerate(endings):
        path.with_name(path.name + ending).write_bytes(data[number * size : (number + 1) * size])
    path.unlink()


def dim_edit(folder: Path) -> Path:
    folder.mkdir()
    with (folder / "tos_dataset_edit.jsonl").open("w") as file:
        for row in range(ROWS):
            fields = {"id": f"{row:04}", "image_path": f"image/{2 * row}.png", "image_path_target": f"image/{2 * row + 1}.png"}
            file.write(json.dumps(fields | {"prompt": f"1. **Edit Instruction**: make it {row} “red”."}, ensure_ascii=False) + "\n")
    return folder


def share_gpt(folder: Path) -> Path:
    folder.mkdir()
    edits = [
        {"input_prompt": f"Edit {row}.", "input_image": [f"image/{2 * row}.png"], "output_image": f"image/{2 * row + 1}.png"}
        for row in range(ROWS)
    ]
    (folder / "text_and_image_to_image.json").write_text(json.dumps(edits))
    captions = [{"input_prompt": f"Paint {row}.", "output_image": f"image/{2 * row + 1}.png"} for row in range(ROWS - 1)]
    (folder / "text_to_image.json").write_text(json.dumps(captions))
    return folder


def ultra_edit(folder: Path, *, group: int = 3, **changes) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate((range(7), range(7, ROWS))):
        stored = [[{"bytes": png(image(2 * row + side)), "path": None} for row in rows] for side in (0, 1)]
        columns = {
            "source_image": stored[0],
            "edited_image": stored[1],
            "edit_prompt": [f"Edit {row}." for row in rows],
            "ssim": [0.5] * len(rows),
        }
        columns |= changes
        table = pyarrow.table({name: values for name, values in columns.items() if values})
        parquet.write_table(table, folder / f"data/FreeForm-{number:05}-of-00002.parquet", row_group_size=group)
    return folder


def train(source: Path | str, kind="edit", index: str = "") -> Source:
    return open_source(str(source), kind, split="train", side=8, index=index)


def check_edits(found: Source, texts: str) -> None:
    """All rows but the last, which is held out, in any order, also from a copy that travelled."""
    assert len(found) == ROWS - 1
    order = random.Random(0).sample(range(ROWS - 1), ROWS - 1)
    for row in order:
        example = pickle.loads(pickle.dumps(found))[row]
        assert example.texts == (texts.format(row),)
        for one, number in ((example.source, 2 * row), (example.target, 2 * row + 1)):
            assert np.array_equal(np.asarray(one), np.asarray(image(number)))
        assert found.size(row) == image(2 * row).size
        assert found.row_texts(row).texts == example.texts


@pytest.fixture
def edits(tmp_path) -> Path:
    return dim_edit(tmp_path / "DIM-Edit")


PROMPT = "1. **Edit Instruction**: make it {} “red”."


def test_dim_edit_in_folders(edits):
    extract(edits, files("image/{}.png"))
    found = train(edits)
    check_edits(found, PROMPT)
    assert found[3].blueprint == found[3].texts[0]
    assert found[3].key == "tos_dataset_edit/0003"
    held_out = open_source(str(edits), "edit", split="test", side=8)
    assert [example.key for example in held_out] == ["tos_dataset_edit/0011"]
    check_edits(train(edits / "tos_dataset_edit.jsonl"), PROMPT)


DIGITS = tuple(f".part{number:02}" for number in range(5))


@pytest.fixture
def cut_edits(edits, monkeypatch) -> Path:
    """The pictures in a compressed archive of five parts; points to start from are close, so that there are many."""
    monkeypatch.setattr(archives, "SPACING", 33_000)
    tar(edits / "images.tar.gz", files("image/{}.png"), "w:gz")
    cut(edits / "images.tar.gz", DIGITS)
    return edits


def test_dim_edit_in_parts_of_an_archive(cut_edits):
    with pytest.raises(InputError, match=r"images.tar.gz: no index of these archives in .*Run dim index first"):
        train(cut_edits)[0]
    assert index_source(str(cut_edits), None) == {"edit": ROWS - 1}
    check_edits(train(cut_edits), PROMPT)
    before = {path: path.stat().st_mtime_ns for path in (cut_edits / "index").iterdir()}
    assert sorted(path.name for path in before) == ["edit.npz", "images.tar.gz.points", "members.npz"]
    index_source(str(cut_edits), None)
    assert before == {path: path.stat().st_mtime_ns for path in (cut_edits / "index").iterdir()}  # finished work is kept


def test_an_index_elsewhere(cut_edits, tmp_path):
    index_source(str(cut_edits), None, into=str(tmp_path / "indexes"))
    assert not (cut_edits / "index").exists()
    check_edits(train(cut_edits, index=str(tmp_path / "indexes")), PROMPT)


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
        index_source(str(edits), None)
    assert "images.tar.gz" in str(error.value)
    if len(endings) > 1 and lost >= 0 and (lost, endings) != (0, DIGITS):  # some count from 1
        assert f"part {endings[lost].removeprefix('.part')} is missing" in str(error.value)
    else:
        assert "download what is missing before or after" in str(error.value)


def test_an_archive_that_was_extracted_is_not_read(cut_edits):
    extract(cut_edits, files("image/{}.png"))
    index_source(str(cut_edits), None)
    assert not (cut_edits / "index/images.tar.gz.points").exists()
    check_edits(train(cut_edits), PROMPT)


def test_archives_that_changed(cut_edits):
    index_source(str(cut_edits), None)
    with (cut_edits / "images.tar.gz.part04").open("ab") as file:
        file.write(b"more")
    archives._opened.cache_clear()  # a later run has not opened them yet
    with pytest.raises(InputError, match=r"members.npz: is of other archives than images.tar.gz"):
        train(cut_edits)[0]


def test_captions_of_dim(tmp_path):
    folder = tmp_path / "DIM-T2I"
    folder.mkdir()
    for name, text in (("blip3", "prompt"), ("textvqa", "caption")):
        rows = [json.dumps({"image_path": f"{name}/{number}.png", text: f"Picture {number}."}) for number in range(4)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))  # the last line has no end
        extract(folder, {f"{name}/{number}.png": png(image(number)) for number in range(4)})
    found = train(folder, "caption")
    assert kinds_of(str(folder)) == ["caption"]
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
    assert index_source(str(folder), ChatTokenizer.from_pretrained(TOKENIZER)) == {"edit": ROWS - 1, "caption": ROWS - 2}
    check_edits(train(folder), "Edit {}.")
    captions = train(folder, "caption")
    assert (captions[4].texts, captions[4].source) == (("Paint 4.",), None)
    assert np.array_equal(np.asarray(captions[4].target), np.asarray(image(9)))
    if not extracted:
        (folder / "text_and_image_to_image_part_1.tar").unlink()
        with pytest.raises(InputError, match=r"text_and_image_to_image_part_1.tar is missing"):
            index_source(str(folder), None, overwrite=True)


def test_ultra_edit(tmp_path):
    folder = ultra_edit(tmp_path / "UltraEdit")
    check_edits(train(folder), "Edit {}.")
    assert train(folder)[8].blueprint is None
    assert kinds_of(str(folder)) == ["edit"]
    with pytest.raises(InputError, match="holds no rows of the kind caption"):
        train(folder, "caption")


def test_ultra_edit_by_many_threads(tmp_path):
    """They take turns at the groups of rows, and each gets the pictures of its row."""
    found = train(ultra_edit(tmp_path / "UltraEdit", group=2))
    order = random.Random(1).choices(range(ROWS - 1), k=60)
    with ThreadPoolExecutor(8) as pool:
        for row, example in zip(order, pool.map(found.__getitem__, order), strict=True):
            assert example.texts == (f"Edit {row}.",)
            for one, number in ((example.source, 2 * row), (example.target, 2 * row + 1)):
                assert np.array_equal(np.asarray(one), np.asarray(image(number)))


def test_ultra_edit_that_is_none(tmp_path):
    with pytest.raises(
        InputError,
        match=r"FreeForm-00000-of-00002.parquet: lacks edited_image.bytes; its columns are source_image.bytes, .*, ssim",
    ):
        train(ultra_edit(tmp_path / "lacks", edited_image=None))
    bad = ultra_edit(tmp_path / "bad")
    path = bad / "data/FreeForm-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"FreeForm-00001-of-00002.parquet: is no parquet file, or damaged"):
        train(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: "{half", r"edit.jsonl, line 3: is no JSON"),
        (lambda line: "[1]", r"edit.jsonl, line 3: is no JSON object"),
        (lambda line: "", r"edit.jsonl, line 3: is no JSON"),
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
    found = train(edits)
    found[1], found[3]
    with pytest.raises(InputError, match=message):
        found[2]


def test_bad_rows_of_share_gpt(tmp_path):
    folder = share_gpt(tmp_path / "set")
    path = folder / "text_and_image_to_image.json"
    path.write_text(path.read_text().replace('["image/4.png"]', '["image/4.png", "image/6.png"]'))
    with pytest.raises(InputError, match=r"image.json, row 3: input_image is \['image/4.png', 'image/6.png'\], but must be a list of one"):
        train(folder)[2]
    for text in ("[half", "{}"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"text_and_image_to_image.json: is no JSON"):
            train(folder)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match=r"no data set that is known here. Known are folders of `dim build-data`"):
        train(tmp_path)
    with pytest.raises(InputError, match=r"there is no such source"):
        train(tmp_path / "none")


def test_a_mixture_of_sources(edits, tmp_path):
    folder = share_gpt(tmp_path / "other")
    mix = {"edit": 8.0, f"edit:{folder}": 1.0, f"caption:{folder}": 1.0, "caption": 0.0}
    parts = open_mixture(str(edits), mix, split="train", side=8)
    assert [(part.name, part.kind, part.weights, len(part.source)) for part in parts] == [
        (f"caption:{folder}", "caption", {0: 1.0}, ROWS - 2),
        (f"edit:{edits}", "edit", {0: 8.0}, ROWS - 1),
        (f"edit:{folder}", "edit", {0: 1.0}, ROWS - 1),
    ]


def test_facts(edits):
    extract(edits, files("image/{}.png"))
    tokenizer = ChatTokenizer.from_pretrained(TOKENIZER)
    counting = RowCounter(train(edits), tokenizer, sized=True)
    path = edits / "index/edit.npz"
    assert write_facts(counting, path, workers=2) == []
    found = read_facts(path, counting)
    assert list(zip(found.width, found.height, strict=True)) == [image(2 * row).size for row in range(ROWS - 1)]
    for row in range(ROWS - 1):
        assert found.blueprint[row] == found.texts[row] >= len(tokenizer.encode(PROMPT.format(row)))


def test_an_index_of_something_else(edits, tmp_path):
    extract(edits, files("image/{}.png"))
    tokenizer = ChatTokenizer.from_pretrained(TOKENIZER)
    path, source = edits / "index/edit.npz", train(edits)
    write_facts(RowCounter(source, tokenizer, sized=False), path)
    other = json.loads((TOKENIZER / "tokenizer.json").read_text())
    other["added_tokens"].append(other["added_tokens"][-1] | {"content": "<|new|>", "id": 5000})
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    for counting, message in (
        (
            RowCounter(open_source(str(edits), "edit", split="test", side=8), tokenizer, sized=False),
            "counted of 11 rows, but the source has 1",
        ),
        (
            RowCounter(source, ChatTokenizer.from_pretrained(tmp_path / "tokenizer.json"), sized=False),
            "counted with the tokenizer .*tiny_tok",
        ),
        (RowCounter(source, tokenizer, sized=True), "has no sizes of pictures"),
    ):
        with pytest.raises(InputError, match=rf"edit.npz: {message}.*dim index --overwrite"):
            read_facts(path, counting)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"edit.npz: is damaged"):
        read_facts(path, RowCounter(source, tokenizer, sized=False))


def test_counting_goes_on_where_it_stopped(edits, monkeypatch):
    monkeypatch.setattr("dim_jax.data.row_stats.CHUNK", 4)
    extract(edits, files("image/{}.png"))
    source, path = train(edits), edits / "index/edit.npz"
    (edits / "image/12.png").rename(edits / "image/away.png")
    with pytest.raises(InputError, match=r"line 7: there is no .*image/12.png"):
        write_facts(RowCounter(source, None, sized=True), path)
    assert not path.exists()
    (edits / "image/away.png").rename(edits / "image/12.png")
    (edits / "image/0.png").unlink()  # it was counted already
    write_facts(RowCounter(source, None, sized=True), path)
    assert read_facts(path, RowCounter(source, None, sized=True)).width[0] == image(0).width
    assert [file.name for file in path.parent.iterdir()] == ["edit.npz"]


def test_the_command(edits):
    extract(edits, files("image/{}.png"))
    (edits / "image/12.png").write_bytes(b"no picture")
    command = ("index", str(edits), "--tokenizer", str(TOKENIZER))
    assert "line 7: image/12.png: not a picture" in one_error(dim(*command))
    code, text = dim(*command, "--bad-samples", "1")
    assert code == 0, text
    assert "11 rows of the kind edit" in text
    (line,) = (edits / "index/edit.bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 7
    (edits / "image/12.png").write_bytes(png(image(12)))
    assert dim(*command, "--overwrite")[0] == 0
    assert not (edits / "index/edit.bad_samples.jsonl").exists()
