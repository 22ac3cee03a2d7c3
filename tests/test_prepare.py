"""`dim prepare`: the same rows in the same order as in the source, checked, counted, as TFDS reads them; killed, damaged and odd input."""

import hashlib
import itertools
import json
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow_datasets as tfds

from dim_jax.data.dataset import Dataset, Source, open_source, read_stats, write_stats
from dim_jax.data.example import KINDS, SPLITS, Texts
from dim_jax.data.pipeline import evenly_spaced_examples, make_plan, open_mixture
from dim_jax.data.readers import PaintReader
from dim_jax.data.records import Records, new_records
from dim_jax.datasets import prepare as preparing
from dim_jax.datasets.layouts import layout_of, open_splits
from dim_jax.datasets.prepare import prepare
from dim_jax.errors import InputError
from dim_jax.models.qwen import QwenConfig
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.processing.processor import Processor
from tests.layout_fixtures import ROWS, TOKENIZER, Rows, captions, edits, emoji, gpt, image, png, prepared, ultra_edit
from tests.painter_fixtures import dim, one_error, picture
from tests.started import started

RAW = {"dim_t2i": captions, "dim_edit": edits, "ultra_edit": ultra_edit, "sharegpt4o": gpt, "emoji": emoji}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Every raw data set in small under its name, and what was made of it, as NAME-prepared."""
    place = tmp_path_factory.mktemp("prepare")
    for name, make in RAW.items():
        prepared(make(place / name), shards=3, tokenizer=str(TOKENIZER))
    return place


def same_examples(one: Rows | Source, other: Source) -> None:
    """Both have the same rows, the second also in a copy that travelled, and backwards."""
    assert len(one) == len(other) > 0
    other = pickle.loads(pickle.dumps(other))
    for row in reversed(range(len(one))):
        a, b = one[row], other[row]
        assert (a.key, a.rule, a.texts, a.blueprint) == (b.key, b.rule, b.texts, b.blueprint)
        assert np.array_equal(np.asarray(a.target), np.asarray(b.target))
        assert (a.source is None) == (b.source is None)
        assert a.source is None or np.array_equal(np.asarray(a.source), np.asarray(b.source))
        assert other.size(row) == (a.source or a.target).size


@pytest.mark.parametrize("name", RAW)
def test_prepared_examples_equal_the_source(place, name):
    for kind, split in itertools.product(KINDS, SPLITS):
        if open_splits(place / name, layout_of(place / name), kind, place / "notes"):
            found = open_source(str(place / f"{name}-prepared"), kind, split=split, side=0)
            same_examples(Rows(place / name, kind, split), found)
            stats, chat = found.stats(ChatTokenizer.from_pretrained(TOKENIZER)), ChatTokenizer.from_pretrained(TOKENIZER)
            assert stats is not None
            for row in range(len(found)):
                texts = found.row_texts(row)
                assert stats.texts[row] >= max(len(chat.encode(text)) for text in texts.texts)
                assert stats.blueprint[row] == (len(chat.encode(texts.blueprint)) if texts.blueprint else 0)
    if name == "emoji":
        assert open_source(str(place / "emoji-prepared"), "edit", split="train", side=0).rules() == ["expression", "state"]
        assert len(Dataset(place / "emoji-prepared/edit", "known")) == 1


def test_tfds_reads_them(place):
    builder = tfds.builder_from_directory(place / "dim_edit-prepared/edit")
    found = builder.as_data_source("train")
    assert len(found) == ROWS - 1
    assert np.array_equal(found[4]["target"], np.asarray(image(9)))
    assert (found[4]["key"].decode(), found[4]["blueprint"].decode()[:25]) == ("tos_dataset_edit/0004", "1. **Edit Instruction**: ")
    info = tfds.builder_from_directory(place / "emoji-prepared/edit").info
    assert {split: one.num_examples for split, one in info.splits.items()} == {"train": 2, "test": 1, "known": 1}
    assert info.splits["train"].shard_lengths == [1, 1]


def test_counts_and_checksums(place):
    folder = place / "dim_edit-prepared/edit"
    found = tfds.builder_from_directory(folder).info.metadata["statistics"]["train"]
    assert (found["rows"], found["texts"]) == (ROWS - 1, ROWS - 1)
    assert found["words of blueprint"] == {"mean": 7.0, "most": 7}
    assert found["width of source"] == {"least": 16, "mean": 26.0, "most": 36}
    assert found["height of target"] == {"least": 19, "mean": 29.0, "most": 39}
    emoji = tfds.builder_from_directory(place / "emoji-prepared/edit").info.metadata["statistics"]["train"]
    assert (emoji["rules"], emoji["texts"], emoji["words of texts"]) == ({"expression": 1, "state": 1}, 3, {"mean": 2.7, "most": 4})
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sorted(sums) == sorted(path.name for path in folder.glob("*.array_record-*"))
    assert len(sums) == 4
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_workers_write_the_same_bytes(place, tmp_path):
    prepare(place / "dim_edit", tmp_path / "out", shards=3, workers=2, tokenizer=str(TOKENIZER))
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*") if path.is_file())
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (place / "dim_edit-prepared" / name).read_bytes() or name.suffix == ".npz"
    assert len(files) == 9


def test_finished_shards_are_not_rewritten(place, tmp_path):
    shutil.copytree(place / "dim_edit-prepared", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    rows = {"edit/train": ROWS - 1, "edit/test": 1}
    assert prepare(place / "dim_edit", tmp_path / "out", tokenizer=str(TOKENIZER)) == rows
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(InputError, match=r"out: was started with other arguments \(tokenizer was '.+', is ''\)"):
        prepare(place / "dim_edit", tmp_path / "out")
    with pytest.raises(InputError, match=r"was started with other arguments \(layout was 'dim', is 'ultra_edit'; source was 'dim_edit'"):
        prepare(place / "ultra_edit", tmp_path / "out", tokenizer=str(TOKENIZER))
    assert prepare(place / "dim_edit", tmp_path / "out", overwrite=True) == rows
    assert open_source(str(tmp_path / "out"), "edit", split="train", side=0).stats(ChatTokenizer.from_pretrained(TOKENIZER)) is None


def test_interrupted_prepare_resumes(place, tmp_path, monkeypatch):
    """Shards that were written are not read again."""
    source, out = edits(tmp_path / "raw"), tmp_path / "out"
    write = preparing.write_shard
    calls = []

    def killed(shard):
        calls.append(shard)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(shard)

    monkeypatch.setattr(preparing, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, shards=3)
    with pytest.raises(InputError, match="out: is not a prepared data set"):
        open_source(str(out), "edit", split="train", side=0)
    (source / "image/1.png").unlink()  # of a row that was written
    monkeypatch.setattr(preparing, "write_shard", write)
    (source / "README.md").write_text("Mine.")
    assert prepare(source, out) == {"edit/train": ROWS - 1, "edit/test": 1}
    assert (out / "README.md").read_text() == "Mine."
    whole, other = (open_source(str(folder), "edit", split="train", side=0) for folder in (place / "dim_edit-prepared", out))
    same_examples(whole, other)
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == ["README.md", "edit"]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_rows_within_a_budget(tmp_path, workers):
    """They are named and listed; the same call with a larger budget goes on, and leaves them out."""
    source, out = edits(tmp_path / "raw"), tmp_path / "out"
    for number in (13, 23):  # of the seventh row, and of the one that is held out: it leaves its split empty
        path = source / f"image/{number}.png"
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"tos_dataset_edit.jsonl, line 7: image/13.png: the picture is damaged.* 1 rows so far"):
        prepare(source, out, shards=3, workers=workers)
    assert prepare(source, out, shards=3, workers=workers, bad_samples=2) == {"edit/train": ROWS - 2, "edit/test": 0}
    assert list(evenly_spaced_examples(open_mixture(str(out), {"edit": 1.0}, split="test", side=0), 8)) == []
    (source / "image/23.png").write_bytes(png(image(23)))
    assert prepare(source, out, shards=3, workers=workers, bad_samples=1, overwrite=True) == {"edit/train": ROWS - 2, "edit/test": 1}
    (row,) = map(json.loads, (out / "bad_rows.jsonl").read_text().splitlines())
    assert (row["kind"], row["split"], row["row"]) == ("edit", "train", 7)
    assert "line 7: image/13.png: the picture is damaged" in row["error"]
    found = open_source(str(out), "edit", split="train", side=0)
    assert [found[row].key for row in (5, 6)] == ["tos_dataset_edit/0005", "tos_dataset_edit/0007"]
    assert found.size(6) == image(14).size


def test_killed_prepare_resumes(tmp_path):
    """SIGKILL in the middle: the next call finishes what the first began, and TFDS reads it."""
    source, out = edits(tmp_path / "raw"), tmp_path / "out"
    command = ("prepare", str(source), str(out), "--shards", "6", "--tokenizer", str(TOKENIZER))
    with started(tmp_path / "output", [sys.executable, "-m", "dim_jax.cli", *command]) as run:
        run.wait_until(lambda: any(out.glob(".prepare/*0-of*.json")))
        run.process.kill()
    code, text = dim(*command)
    assert (code, f"{ROWS - 1} rows of edit/train, 1 rows of edit/test" in text) == (0, True), text
    same_examples(Rows(source), open_source(str(out), "edit", split="train", side=0))


def test_ctrl_c_in_the_middle_of_a_shard(tmp_path):
    """It goes to the run and to its workers: one line, and no half shard; the same call goes on."""
    source, out = edits(tmp_path / "raw"), tmp_path / "out"
    (source / "image/0.png").write_bytes(png(picture(1500, 1500)))  # decoded for every row: a shard takes seconds
    rows = [json.dumps({"id": str(row), "source": "image/0.png", "target": "image/1.png", "prompt": "red"}) for row in range(60)]
    (source / "tos_dataset_edit.jsonl").write_text("\n".join(rows))
    command = ("prepare", str(source), str(out), "--shards", "2", "--workers", "2")
    with started(tmp_path / "output", [sys.executable, "-m", "dim_jax.cli", *command]) as run:
        run.wait_until(lambda: any(out.glob("edit/.*.partial")))
        for process in (psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)):
            process.send_signal(signal.SIGINT)
        assert run.ended() == (130, "stopped by Ctrl-C\n")
    assert [path.name for path in out.rglob("*train*")] == []
    code, text = dim(*command[:-2])
    assert (code, "59 rows of edit/train, 1 rows of edit/test" in text) == (0, True), text


def test_without_the_packages_it_says_what_to_install(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = r"needs the package tensorflow_datasets. Install it: pip install 'dim_jax\[data\]'"
    with pytest.raises(InputError, match=message):
        open_source(str(place / "dim_edit-prepared"), "edit", split="train", side=0)
    assert "Install it: pip install 'dim_jax[data]'" in one_error(dim("prepare", str(place / "dim_edit"), str(tmp_path / "out")))


def test_invalid_sources_are_refused(place, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    for source, options, message in (
        (place / "none", (), "none: there is no such folder or file"),
        (place / "dim_edit", ("--layout", "dim_edits"), 'There is no layout "dim_edits". There are: dim, pairs, sharegpt4o, ultra_edit'),
        (place / "dim_edit-prepared", (), "has no known layout"),
    ):
        assert message in one_error(dim("prepare", str(source), out, *options))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(InputError, match=r"out: no space in .* KiB are needed, 100 B are free"):
        prepare(place / "dim_edit", Path(out))


def test_what_is_no_prepared_data_set(place, tmp_path):
    for source, message in (
        (place / "dim_edit", r"dim_edit: is not a prepared data set. Prepare it \(dim prepare .*dim_edit OUT\), and give OUT"),
        (tmp_path / "none", "none: there is no such data set"),
    ):
        with pytest.raises(InputError, match=message):
            open_source(str(source), "edit", split="train", side=0)
    with pytest.raises(InputError, match="holds no rows of the kind caption"):
        open_source(str(place / "dim_edit-prepared"), "caption", split="train", side=0)
    shutil.copytree(place / "dim_edit-prepared", tmp_path / "out")
    path = tmp_path / "out/edit/features.json"
    path.write_text(path.read_text().replace('"texts"', '"label"'))
    with pytest.raises(InputError, match=r"has no texts. Give a data set that `dim prepare` made"):
        open_source(str(tmp_path / "out"), "edit", split="train", side=0)


def test_rows_that_are_read_together_equal_those_read_one_by_one(place, monkeypatch):
    alone, together = (open_source(str(place / "emoji-prepared"), "caption", split="train", side=0) for _ in range(2))
    rows = np.arange(len(alone))[::-1]
    expected = [alone[row].key for row in rows.tolist()]
    together.prefetch(rows)
    monkeypatch.setattr(Records, "__getitem__", lambda records, index: pytest.fail(f"{records.path} was read again"))
    assert [together[row].key for row in rows.tolist()] == expected


def test_damaged_shards_are_refused(place, tmp_path):
    shutil.copytree(place / "dim_edit-prepared", tmp_path / "out")
    path = tmp_path / "out/edit/edit-train.array_record-00001-of-00003"
    data = bytearray(path.read_bytes())
    data[400:440] = bytes(40)
    path.write_bytes(data)
    found = open_source(str(tmp_path / "out"), "edit", split="train", side=0)
    found.prefetch(np.arange(len(found)))
    found[2]
    with pytest.raises(
        InputError, match=r"out/edit, train, row 4: .*edit-train.array_record-00001-of-00003: damaged .*sha256sum --check SHA256SUMS"
    ):
        found[3]


def records(*examples: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.unlink()
        with new_records(path) as file:
            for example in examples:
                file.write(example)

    return write


def text(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))

    return change


def fewer_rules(path: Path) -> None:
    stored = read_stats(path)
    write_stats(path, stored._replace(rule=stored.rule[:3]))


@pytest.mark.parametrize(
    ("name", "harm", "says"),
    [
        # Cut off where a block ends: ArrayRecord counts rows, and raises an error without a text when one is read.
        ("edit-train.array_record-00001-of-00003", lambda path: path.write_bytes(path.read_bytes()[: 2**15]), "damaged"),
        ("edit-train.array_record-00001-of-00003", records(b"one"), "has 1 rows, but dataset_info.json says 4"),
        ("edit-train.array_record-00001-of-00003", records(b"", b"", b"", b""), "row 4: its record in .*is not an example"),
        ("dataset_info.json", text('"4"', '"-4"'), r"dataset_info.json: has 3 files of train with \[3, -4, -4\] rows"),
        ("dataset_info.json", text('"4"', '"4000000000"'), "dataset_info.json: has 3 files of train with .3, 4000000000, 4000000000. rows"),
        ("dataset_info.json", text('"name": "edit"', f'"name": "{"x" * 300}"'), "cannot be read .File name too long"),
        ("features.json", lambda path: path.write_text("[" * 10**5), r"dataset_info.json or features.json cannot be read"),
        ("dataset_info.json", lambda path: path.write_text(""), r"dataset_info.json or features.json cannot be read"),
        ("features.json", text("text_feature.Text", "text_feature.Tex"), r"cannot be read \(Unrecognized FeatureConnector"),
        ("features.json", text('"source"', '"before"'), "has no source"),
        ("train.stats.npz", fewer_rules, "train.stats.npz: cannot be read .*one for each row"),
    ],
)  # fmt: skip
def test_a_prepared_data_set_that_disagrees_with_itself(place, tmp_path, name, harm, says):
    """Each is one line that names the data set and its file, before anything is trained on it."""
    shutil.copytree(place / "dim_edit-prepared", tmp_path / "out")
    harm(tmp_path / "out/edit" / name)

    def read() -> None:
        found = open_source(str(tmp_path / "out"), "edit", split="train", side=0)
        found.rules()
        list(map(found.__getitem__, range(len(found))))

    with pytest.raises(InputError, match=f"out/edit.*({says})") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_mixture_and_its_plan(place):
    """What was counted when it was prepared gives the plan that a run gets by counting."""
    one, other = str(place / "dim_edit-prepared"), str(place / "sharegpt4o-prepared")
    mix = {"edit": 8.0, f"edit:{other}": 1.0, f"caption:{other}": 1.0, "caption": 0.0}
    parts = open_mixture(one, mix, split="train", side=8)
    assert [(part.name, part.kind, part.weights, len(part.source)) for part in parts] == [
        (f"caption:{other}", "caption", {0: 1.0}, ROWS - 2),
        (f"edit:{one}", "edit", {0: 8.0}, ROWS - 1),
        (f"edit:{other}", "edit", {0: 1.0}, ROWS - 1),
    ]
    processor = Processor.from_pretrained(TOKENIZER, resolution=32, condition_length=256, layout=QwenConfig.tiny().vision.layout)
    reader = PaintReader(processor, (64, 96, 128), ((16, 32), (32, 32), (32, 16)), "instruction")
    planned = []
    for counted in (True, False):
        if not counted:
            parts = [part._replace(source=Uncounted(part.source)) for part in parts]
        plan = make_plan(parts, reader, processor.tokenizer, batch_size=2, seed=3)
        planned.append([(step.component, step.bucket, *step.rows.tolist()) for step in map(plan.batch_at, range(20))])
    assert planned[0] == planned[1]
    assert len({bucket for _, bucket, *_ in planned[0]}) > 1


class Uncounted:
    """A data set that nobody counted with this tokenizer."""

    def __init__(self, source: Source):
        self._source = source

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    # By name, since from Python 3.12 on a check of a protocol does not ask __getattr__.
    def row_texts(self, index: int) -> Texts:
        return self._source.row_texts(index)

    def size(self, index: int) -> tuple[int, int]:
        return self._source.size(index)

    def stats(self, tokenizer) -> None:
        return None
