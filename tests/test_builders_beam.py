"""The builders as pipelines of Apache Beam: the same bytes as from one process, and bad rows named. Needs the extras `tfds` and `beam`.

Pipelines run in processes of their own, through the command, whose program has a main guard.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")
pytest.importorskip("tensorflow_datasets")
from dim_jax.data.builders import build
from tests.test_sources import dim_edit, extract, files

RUNNERS = ("--runner=DirectRunner", "--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing")


@pytest.fixture
def edits(tmp_path) -> Path:
    extract(folder := dim_edit(tmp_path / "raw"), files("image/{}.png"))
    return folder


def write(edits: Path, out: Path, beam: str) -> subprocess.CompletedProcess:
    options = ["--from", str(edits), "--shards", "4", "--beam", beam]
    command = [sys.executable, "-m", "dim_jax.cli", "build-data", "tfds", "dim_edit", str(out), *options]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("beam", RUNNERS)
def test_workers_write_the_bytes_of_one_process(edits, tmp_path, beam):
    done = write(edits, tmp_path / "many", beam)
    assert done.returncode == 0, done.stderr
    build("dim_edit", edits, tmp_path / "one", shards=4)
    one, many = ({path.name: path.read_bytes() for path in (tmp_path / name / "dim_edit/edit/1.0.0").iterdir()} for name in ("one", "many"))
    assert one == many
    assert len([name for name in one if "array_record" in name]) == 5


def test_bad_rows_are_named_and_nothing_is_left(edits, tmp_path):
    for number in (9, 19):  # of two shards; not those by which sizes are estimated, which would stop it before
        path = edits / f"image/{number}.png"
        path.write_bytes(path.read_bytes()[:-30])
    done = write(edits, tmp_path / "out", RUNNERS[0])
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Rows of 2 shards cannot be used. The first: " in error
    assert "tos_dataset_edit.jsonl, line 5: image/9.png: the picture is damaged" in error
    assert list((tmp_path / "out/dim_edit/edit").iterdir()) == []
