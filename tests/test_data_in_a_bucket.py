"""Data sets read from a bucket, prepared in one, and trained on from there: the examples and losses of this machine, few requests, errors
that name the file there."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dim_jax.data.dataset import Source, open_source
from dim_jax.data.example import KINDS, Kind
from dim_jax.datasets.layouts import archives, layout_of, open_splits
from dim_jax.datasets.prepare import prepare
from dim_jax.errors import InputError
from dim_jax.storage.paths import AnyPath, as_path, entries, upload
from tests.bucket import counted_requests
from tests.layout_fixtures import (
    ROWS,
    TOKENIZER,
    Rows,
    captions,
    cut,
    dim_edit,
    edits,
    emoji,
    files,
    prepared,
    share_gpt,
    tar,
    ultra_edit,
)  # fmt: skip
from tests.painter_fixtures import dim, one_error
from tests.test_data_pipeline import _unchecked  # noqa: F401
from tests.test_layouts import DIGITS
from tests.test_prepare import same_examples
from tests.test_train import last_error, log
from tests.test_train import train as run

# gcsfs sends whole pieces of up to 5 MB.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes")


def cut_edits(folder: Path) -> Path:
    tar(dim_edit(folder) / "images.tar.gz", files("image/{}.png"), "w:gz")
    cut(folder / "images.tar.gz", DIGITS)
    return folder


def tars(folder: Path) -> Path:
    share_gpt(folder)
    for number in range(2):
        part = {name: data for name, data in files("image/{}.png").items() if int(Path(name).stem) % 2 == number}
        tar(folder / f"text_and_image_to_image_part_{number}.tar", part, "w")
    return folder


def train(source: AnyPath | str, kind: Kind = "edit") -> Source:
    return open_source(str(source), kind, split="train", side=8)


@pytest.fixture
def there(bucket, tmp_path) -> Callable[[Path], str]:
    """Copies a folder to the bucket, and says where it is."""

    def copied(here: Path) -> str:
        path = as_path(f"{bucket}/{tmp_path.name}/{here.name}")
        upload(here, path)
        return str(path)

    return copied


@pytest.mark.parametrize("make", [edits, cut_edits, captions, tars, ultra_edit, emoji])
def test_a_source_in_a_bucket(there, tmp_path, monkeypatch, make):
    monkeypatch.setattr(archives, "SPACING", 33_000)
    here = make(tmp_path / make.__name__)
    remote = as_path(there(here))
    prepare(remote, tmp_path / "out", tokenizer=str(TOKENIZER), workers=1 if make is edits else 0)
    for kind in KINDS:
        if open_splits(here, layout_of(here), kind, tmp_path / "notes"):
            same_examples(Rows(here, kind), train(tmp_path / "out", kind))


@pytest.mark.parametrize(("make", "of_text"), [(edits, 0), (tars, 0), (ultra_edit, 1)])
def test_picture_in_bucket_takes_one_request(there, tmp_path, make, of_text):
    remote = as_path(there(make(tmp_path / make.__name__)))
    found = open_splits(remote, layout_of(remote), "edit", tmp_path / "notes")["train"]
    archives.index_archives(remote, tmp_path / "notes")
    found.raw(0).decoded()
    with counted_requests() as counts:
        raw = found.raw(5)
        assert counts.total() == of_text
        raw.decoded()
    assert counts.total() == of_text + 2
    assert "about" not in counts


def test_a_data_set_is_prepared_in_a_bucket(bucket, there, tmp_path):
    """By the command; a call that was interrupted goes on, and one that is finished is left as it is."""
    remote, out = there(edits(tmp_path / "edits")), f"{bucket}/{tmp_path.name}/out"
    for folder in (str(tmp_path / "out"), out):
        command = ("prepare", remote, folder, "--shards", "2", "--tokenizer", str(TOKENIZER))
        code, text = dim(*command)
        assert (code, f"{folder}: {ROWS - 1} rows of edit/train" in text) == (0, True), text
    same_examples(train(tmp_path / "out"), train(out))
    names = sorted(path.name for path in entries(as_path(out) / "edit"))
    assert names == sorted(path.name for path in (tmp_path / "out/edit").iterdir())
    sums = as_path(out) / "edit/SHA256SUMS"
    sums.write_text("as it is")
    assert dim(*command) == (0, text)
    assert sums.read_text() == "as it is"
    assert dim(*command, "--overwrite") == (0, text)
    assert sums.read_text() == (tmp_path / "out/edit/SHA256SUMS").read_text()


def test_files_of_rows_are_kept_when_they_are_read(there, tmp_path, monkeypatch):
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "kept"))
    remote = there(prepared(edits(tmp_path / "edits"), shards=3))
    found = train(remote)
    assert not list((tmp_path / "kept").rglob("*.array_record*[0-9]"))
    found[ROWS - 2]
    (copy,) = (tmp_path / "kept").rglob("*.array_record*[0-9]")
    assert copy.name == "edit-train.array_record-00002-of-00003"
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=rf"{remote}/edit/edit-train.array_record-00000-of-00003 and 1 more files: no space"):
        train(remote)


@pytest.mark.usefixtures("_unchecked")
def test_training_from_bucket_logs_same_losses(there, tmp_path, monkeypatch):
    """A worker process reaches the bucket by itself."""
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "kept"))
    here = prepared(captions(tmp_path / "captions"))
    remote, logs = there(here), []
    for source, workers in ((str(here), "0"), (remote, "1")):
        workdir, mix = tmp_path / f"run{workers}", {"data__mix__edit": "0.0", "data__mix__caption": "1.0"}
        code, text = run("nano_encoder", workdir, 3, data__source=source, data__workers=workers, **mix)
        assert code == 0, text
        logs.append(log(workdir))
    assert logs[0] == logs[1]
    assert len({line["loss"] for line in logs[0]}) == 3


def lose(path: AnyPath) -> None:
    path.unlink()


def spoil(path: AnyPath) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(40) + data[half + 40 :])


def cut_off(path: AnyPath) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("make", "harm", "name", "says"),
    [
        (edits, lose, "image/4.png", r"tos_dataset_edit.jsonl, line 3: there is no gs://\S*/image/4.png, and no archive in gs://"),
        (edits, spoil, "tos_dataset_edit.jsonl", r"tos_dataset_edit.jsonl, line \d+: is not JSON"),
        (cut_edits, lose, "images.tar.gz.part02", r"images.tar.gz: part 02 is missing"),
        (cut_edits, spoil, "images.tar.gz.part02", r"images.tar.gz.part04: the archive images.tar.gz is damaged"),
        (tars, spoil, "text_to_image.json", r"text_to_image.json: is not a JSON file"),
        (ultra_edit, cut_off, "data/FreeForm-00001-of-00002.parquet", r"data/FreeForm-00001-of-00002.parquet: is not a parquet file"),
        (emoji, lose, "pictures.jsonl", r"pictures.jsonl: no such file. Give a folder that `dim build-data` made"),
        (emoji, spoil, "pictures.array_record", r"pictures.array_record.*damaged"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_named(there, tmp_path, make, harm, name, says):
    remote = there(make(tmp_path / make.__name__))
    harm(as_path(f"{remote}/{name}"))
    assert re.search(f"{remote}/{says}", last_error(dim("prepare", remote, str(tmp_path / "out"))))


@pytest.mark.parametrize(
    ("harm", "says"),
    [(lose, "edit-train.array_record-00001-of-00003: no such file"), (spoil, "edit-train.array_record-00001-of-00003: damaged")],
)
def test_damage_in_a_bucket_is_named(there, tmp_path, harm, says):
    remote = there(prepared(edits(tmp_path / "edits"), shards=3))
    harm(as_path(f"{remote}/edit/edit-train.array_record-00001-of-00003"))
    with pytest.raises(InputError, match=rf"{remote}/edit.*{says}"):
        list(map(train(remote).__getitem__, range(ROWS - 1)))


def test_non_dataset_in_bucket_is_refused(bucket, tmp_path):
    with pytest.raises(InputError, match=rf"{bucket}/nothing: there is no such data set"):
        train(f"{bucket}/nothing")
    (as_path(f"{bucket}/{tmp_path.name}") / "file.txt").write_text("")
    assert f"{bucket}/{tmp_path.name}: has no known layout" in one_error(dim("prepare", f"{bucket}/{tmp_path.name}", "out"))
    code, text = run("nano_autoencoder", tmp_path / "run", 1, data__source="gs:/bucket/emoji")
    assert (
        code,
        'gs:/bucket/emoji: gs is not supported. Give a path of this machine, or of Google Cloud Storage ("gs://BUCKET/...")' in text,
    ) == (1, True), text


def test_a_data_set_is_built_in_a_bucket(bucket, tmp_path):
    for folder in (str(tmp_path / "here"), f"{bucket}/{tmp_path.name}/there"):
        code, text = dim("build-data", "text", folder, "--scenes", "10", "--side", "64")
        assert code == 0, text
    same_examples(Rows(tmp_path / "here"), train(prepared(as_path(f"{bucket}/{tmp_path.name}/there"))))
    assert "exists" in one_error(dim("build-data", "text", f"{bucket}/{tmp_path.name}/there", "--scenes", "10", "--side", "64"))
