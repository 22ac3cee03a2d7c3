"""The score stage on workers of Apache Beam: the same scores as in one process, and nothing twice. Needs the extra `beam`.

Pipelines run in processes of their own, through the command, whose program has a main guard.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.construction_fixtures import drawing, own_config, own_pairs, tiny_models

pytest.importorskip("apache_beam")
COLOURS = ("blue", "green", "black", "orange", "purple", "brown")
SCRIPT = "import sys\nif __name__ == '__main__':\n    from dim_jax.cli.main import main\n    main()\n"


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_config(*tiny_models(tmp_path), batch_size=1)
    Path("dim.py").write_text(SCRIPT)
    pairs: list = [(drawing("red"), drawing("blue", ground=colour), f"Paint {i}.") for i in range(6) for colour in COLOURS]
    own_pairs(Path(), [*pairs, (drawing("red"), b"broken", "Broken.")])


def start(out: str, *more: str) -> subprocess.Popen:
    arguments = ["build-data", "dim-edit", out, "--source", "pairs:mine.jsonl", "--config", "own.toml", "--until", "keep", *more]
    return subprocess.Popen([sys.executable, "dim.py", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def scores(out: str) -> dict[int, dict]:
    rows = [json.loads(line) for line in (Path(out) / "stages/scores.jsonl").read_text().splitlines()]
    assert len({row["index"] for row in rows}) == len(rows)
    return {row["index"]: row for row in rows}


def test_workers_give_the_scores_of_one_process():
    for out, more in (("one", ()), ("many", ("--beam", "--runner=DirectRunner"))):
        process = start(out, *more)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert "37 pairs; keep 36" in errors
    one, many = scores("one"), scores("many")
    assert one.keys() == many.keys() == set(range(37))
    for index, row in one.items():
        assert many[index].get("reason") == row.get("reason")
        for name in ("ssim", "dino", "clip"):
            assert many[index].get(name) == pytest.approx(row.get(name), abs=2e-5)
    assert not Path("many/stages/scores.parts").exists()


def test_killed_beam_pipeline_resumes():
    process = start("many", "--beam", "--runner=DirectRunner")
    parts, end = Path("many/stages/scores.parts"), time.monotonic() + 120
    while not list(parts.glob("pairs-*.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.read_text() for path in parts.glob("pairs-*.jsonl")}
    process = start("many", "--beam", "--runner=DirectRunner")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert set(scores("many")) == set(range(37))
    text = Path("many/stages/scores.jsonl").read_text()
    assert all(part in text for part in kept.values())
