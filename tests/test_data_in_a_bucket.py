"""Every source read from a bucket: the examples, counts and losses of this machine, few requests, errors that name the file there."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dim_jax.data.builders import build
from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.indexing import index_source
from dim_jax.data.pairs import SPLITS
from dim_jax.data.row_stats import COLUMNS, RowCounter, RowStats, read_facts
from dim_jax.data.sources import Kind, archives, kinds_of, open_source
from dim_jax.errors import InputError
from dim_jax.paths import AnyPath, as_path, entries, upload
from tests.bucket import counted_requests
from tests.painter_fixtures import dim, one_error
from tests.test_builders import captions, edits, emoji, same_examples
from tests.test_data_pipeline import _unchecked  # noqa: F401
from tests.test_sources import DIGITS, ROWS, TOKENIZER, cut, dim_edit, files, share_gpt, tar, train, ultra_edit
from tests.test_train import last_error, log
from tests.test_train import train as run

# gcsfs sends whole pieces of up to 5 MB.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes")


CHAT = ChatTokenizer.from_pretrained(TOKENIZER)


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


def prepared(folder: Path) -> Path:
    folder.mkdir()
    build("dim_edit", edits(folder / "raw"), folder / "tfds", shards=3)
    return folder / "tfds" / "dim_edit"


@pytest.fixture
def there(bucket, tmp_path) -> Callable[[Path], str]:
    """Copies a folder to the bucket, and says where it is."""

    def copied(here: Path) -> str:
        path = as_path(f"{bucket}/{tmp_path.name}/{here.name}")
        upload(here, path)
        return str(path)

    return copied


@pytest.mark.parametrize("make", [edits, cut_edits, captions, tars, ultra_edit, emoji, prepared])
def test_the_same_examples_and_counts(there, tmp_path, monkeypatch, make):
    monkeypatch.setattr(archives, "SPACING", 33_000)
    here = make(tmp_path / make.__name__)
    remote = there(here)
    assert kinds_of(str(here)) == kinds_of(remote)
    for source in (str(here), remote):
        index_source(source, CHAT, workers=1 if make is edits else 0)
    assert [path.name for path in entries(as_path(f"{remote}/index"))] == [path.name for path in entries(here / "index")]
    for kind in kinds_of(str(here)):
        one, other = (facts(source, kind) for source in (str(here), remote))
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)
        for split in SPLITS:
            same_examples(*(open_source(source, kind, split=split, side=8) for source in (str(here), remote)))


def facts(source: str, kind: Kind) -> RowStats:
    return read_facts(as_path(source) / f"index/{kind}.npz", RowCounter(train(source, kind), CHAT, sized=True))


def test_an_index_elsewhere_in_a_bucket(there, tmp_path):
    remote = there(cut_edits(tmp_path / "edits"))
    with pytest.raises(InputError, match=rf"images.tar.gz: no index of these archives in {remote}/index. Run dim index first"):
        train(remote)[0]
    into = f"{remote}-indexes"
    code, text = dim("index", f"{remote}/tos_dataset_edit.jsonl", "--tokenizer", str(TOKENIZER), "--into", into)
    assert (code, f"{ROWS - 1} rows of the kind edit" in text) == (0, True), text
    assert not as_path(f"{remote}/index").exists()
    same_examples(*(train(f"{folder}/tos_dataset_edit.jsonl", index=into) for folder in (tmp_path / "edits", remote)))


@pytest.mark.parametrize(("make", "of_text"), [(edits, 0), (tars, 0), (ultra_edit, 1)])
def test_a_picture_is_one_request(there, tmp_path, make, of_text):
    remote = there(make(tmp_path / make.__name__))
    index_source(remote, None)
    found = train(remote)
    found[0]
    with counted_requests() as counts:
        found.row_texts(5)
        assert counts.total() == of_text
        found[5]
    assert counts.total() == of_text + 2
    assert "about" not in counts


def test_files_of_rows_are_kept_when_they_are_read(there, tmp_path, monkeypatch):
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "kept"))
    remote = there(prepared(tmp_path / "prepared"))
    found = train(remote)
    assert not list((tmp_path / "kept").rglob("*.array_record*[0-9]"))
    found[ROWS - 2]
    (copy,) = (tmp_path / "kept").rglob("*.array_record*[0-9]")
    assert copy.name == "dim_edit-train.array_record-00002-of-00003"
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=rf"{remote}/edit/1.0.0/dim_edit-train.array_record-00000-of-00003 and 1 more files: no space"):
        train(remote)


@pytest.mark.usefixtures("_unchecked")
def test_a_run_logs_the_same(there, tmp_path, monkeypatch):
    """Pictures from a tar, read by a worker process, which reaches the bucket by itself and shares the copy of the jsonl."""
    monkeypatch.setenv("DIM_JAX_CACHE", str(tmp_path / "kept"))
    here = captions(tmp_path / "captions")
    pictures = {path.name: path.read_bytes() for path in here.glob("*.png")}
    for name in pictures:
        (here / name).unlink()
    tar(here / "pictures.tar", pictures, "w")
    remote, logs = there(here), []
    for source, workers in ((str(here), "0"), (remote, "1")):
        index_source(source, None)
        workdir, mix = tmp_path / f"run{workers}", {"data__mix__edit": "0.0", "data__mix__caption": "1.0"}
        code, text = run("nano_autoencoder", workdir, 3, data__source=source, data__workers=workers, **mix)
        assert code == 0, text
        logs.append(log(workdir))
    assert logs[0] == logs[1]
    assert len({line["loss"] for line in logs[0]}) == 3
    assert [path.name for path in (tmp_path / "kept").rglob("*") if path.is_file() and path.name[0] != "."] == ["blip3.jsonl"]


def lose(path: AnyPath) -> None:
    path.unlink()


def spoil(path: AnyPath) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(40) + data[half + 40 :])


def cut_off(path: AnyPath) -> None:
    path.write_bytes(path.read_bytes()[:-10])


TFDS = "edit/1.0.0/dim_edit-train.array_record-00001-of-00003"


@pytest.mark.parametrize(
    ("make", "harm", "name", "says"),
    [
        (edits, lose, "image/4.png", r"tos_dataset_edit.jsonl, line 3: there is no gs://\S*/image/4.png, and no archive in gs://"),
        (edits, spoil, "tos_dataset_edit.jsonl", r"tos_dataset_edit.jsonl, line \d+: is no JSON"),
        (cut_edits, lose, "images.tar.gz.part02", r"images.tar.gz: part 02 is missing"),
        (cut_edits, spoil, "images.tar.gz.part02", r"images.tar.gz.part04: the archive images.tar.gz is damaged"),
        (tars, spoil, "text_to_image.json", r"text_to_image.json: is no JSON"),
        (ultra_edit, cut_off, "data/FreeForm-00001-of-00002.parquet", r"data/FreeForm-00001-of-00002.parquet: is no parquet file"),
        (emoji, lose, "pictures.jsonl", r"pictures.jsonl: no such file. Give a folder that `dim build-data` made"),
        (emoji, lose, "pictures.array_record", r"pictures.array_record: no such file"),
        (emoji, spoil, "pictures.array_record", r"pictures.array_record.*damaged"),
        (prepared, lose, TFDS, f"{TFDS}: no such file"),
        (prepared, spoil, TFDS, r"edit/1.0.0, train, row \d+: damaged"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_named(there, tmp_path, make, harm, name, says):
    remote = there(make(tmp_path / make.__name__))
    harm(as_path(f"{remote}/{name}"))
    assert re.search(f"{remote}/{says}", last_error(dim("index", remote)))


def test_what_is_no_source(bucket, tmp_path):
    with pytest.raises(InputError, match=rf"{bucket}/nothing: there is no such source"):
        train(f"{bucket}/nothing")
    (as_path(f"{bucket}/{tmp_path.name}") / "file.txt").write_text("")
    with pytest.raises(InputError, match=rf"{bucket}/{tmp_path.name}: no data set that is known here"):
        train(f"{bucket}/{tmp_path.name}")
    code, text = run("nano_autoencoder", tmp_path / "run", 1, data__source="gs:/bucket/emoji")
    assert (code, 'gs:/bucket/emoji: paths are of this machine, or of Google Cloud Storage ("gs://BUCKET/...")' in text) == (1, True), text


def test_a_data_set_is_built_in_a_bucket(bucket, tmp_path):
    for folder in (str(tmp_path / "here"), f"{bucket}/{tmp_path.name}/there"):
        code, text = dim("build-data", "text", folder, "--scenes", "10", "--side", "64")
        assert code == 0, text
    same_examples(train(tmp_path / "here"), train(f"{bucket}/{tmp_path.name}/there"))
    assert "exists" in one_error(dim("build-data", "text", f"{bucket}/{tmp_path.name}/there", "--scenes", "10", "--side", "64"))


def test_a_data_set_of_tfds_is_built_from_a_bucket_and_in_one(bucket, there, tmp_path):
    remote, out = there(edits(tmp_path / "edits")), f"{bucket}/{tmp_path.name}/tfds"
    for folder in (str(tmp_path / "tfds"), out):
        command = ("build-data", "tfds", "dim_edit", folder, "--from", remote, "--shards", "2")
        code, text = dim(*command)
        assert code == 0, text
        assert f"{folder}/dim_edit: " in text
        same_examples(train(remote), train(f"{folder}/dim_edit"))
    version = as_path(out) / "dim_edit/edit/1.0.0"
    names = sorted(path.name for path in version.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "tfds/dim_edit/edit/1.0.0").iterdir())
    (version / "SHA256SUMS").write_text("as it is")
    assert dim(*command) == (0, text)
    assert (version / "SHA256SUMS").read_text() == "as it is"
    assert f"{out}: workers write to a folder that they share" in one_error(dim(*command, "--beam", "--runner=DirectRunner"))
