"""From packages of emoji to a measured model, in short form: the commands of docs/nano.md with few steps and small sizes."""

import json

import pytest

from dim_jax.datasets.emoji import tints
from dim_jax.weights.convert import open_weights
from tests.emoji_fixtures import archives
from tests.painter_fixtures import dim
from tests.test_train import log, train

EMOJI = {"data__lengths": "(320, 1200)", "model__condition_length": "1024"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the data set in it."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "packages").mkdir()
    code, text = dim(
        "build-data", "emoji", str(folder / "emoji"), "--packages", str(archives(folder / "packages", few=12, tones=1, flags=6))
    )
    assert code == 0, text
    return folder


def test_build_train_evaluate(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(tints, "THINGS", {"train": 40, "test": 4})
    monkeypatch.setattr(tints, "RECOLOURED_PAIRS", dict.fromkeys(tints.RECOLOURED_PAIRS, 5))
    code, text = dim("build-data", "tints", "tints", "--from", "emoji")
    assert code == 0, text
    for name in ("emoji", "tints"):
        code, text = dim("prepare", name, f"data/prepared/{name}")
        assert code == 0, text
    # Colours, which reads both sets; other tests train the other parts, stop runs, and start one where another ended.
    options = EMOJI | {"data__source": str(place / "data/prepared/emoji"), "data__mirrored": "('hair', 'hare')"}
    fresh = {f"init__{part}": "" for part in ("encoder", "autoencoder", "sana", "connector")}
    code, text = train("nano_colours", place / "colours", 2, **options, **fresh)
    assert code == 0, text
    assert [line["step"] for line in log(place / "colours")] == [1, 2]
    assert "data.mirrored: no example has the rule hare. There are " in text
    assert open_weights(place / "colours/model").config.sana.is_edit

    result = place / "result.json"
    checkpoint = ("--checkpoint", str(place / "colours/model"))
    code, text = dim("evaluate", "emoji", *checkpoint, "--data", str(place / "emoji"), "-o", str(result), "--pairs-per-rule", "1")
    assert code == 0, text
    found = json.loads(result.read_text())
    assert result.with_suffix(".png").is_file()
    assert found["overall"]["pairs"] == len(found["rules"]) > 10
    assert 0 < found["overall"]["psnr_copy"] < 40
