"""From packages of emoji to a measured model, in short form: the commands of docs/nano.md with few steps and small sizes."""

import json

import pytest

from dim_jax.weights.convert import open_weights
from tests.emoji_fixtures import archives
from tests.painter_fixtures import dim
from tests.test_kills import last_logged, running, wait_for_lines
from tests.test_train import log, train

EMOJI = {"data__lengths": "(320, 1200)", "model__condition_length": "1024"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the data set in it."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "packages").mkdir()
    code, text = dim("build-data", "emoji", str(folder / "emoji"), "--packages", str(archives(folder / "packages")))
    assert code == 0, text
    return folder


def test_build_train_resume_after_kill_evaluate(place, monkeypatch):
    monkeypatch.chdir(place)
    code, text = dim("build-data", "tints", "tints", "--from", "emoji")
    assert code == 0, text
    for name in ("emoji", "tints"):
        code, text = dim("prepare", name, f"data/prepared/{name}")
        assert code == 0, text
    options = EMOJI | {"data__source": str(place / "data/prepared/emoji")}
    as_below = {"optim__cosine": "True", "train__log_every": "1", "train__save_every": "2"}
    with running(place / "autoencoder", "nano_autoencoder", **options, **as_below) as killed:
        wait_for_lines(killed, place / "autoencoder", 3)
    steps = max(10, last_logged(place / "autoencoder"))
    frozen = {"init__autoencoder": "autoencoder"}
    stages = [
        ("nano_autoencoder", "autoencoder", steps, {}),
        ("nano_t2i", "t2i", 2, frozen),
        ("nano_colours", "colours", 2, frozen | {"init__sana": "t2i", "init__connector": "t2i"}),  # nano_edit, with tints in its mixture
    ]
    said, own = {}, {"colours": {"data__mirrored": "('hair', 'hare')"}}
    for config, name, count, init in stages:
        places = {key: str(place / value / "model") for key, value in init.items()}
        code, said[name] = train(config, place / name, count, **options, **places, init__encoder="", **own.get(name, {}))
        assert code == 0, said[name]
        assert [line["step"] for line in log(place / name)] == list(range(1, count + 1))
    assert "data.mirrored: no example has the rule hare. There are " in said["colours"]
    assert "data.mirrored" not in said["t2i"]
    t2i, edit = (open_weights(place / name / "model") for name in ("t2i", "colours"))
    assert not t2i.config.sana.is_edit
    assert edit.config.sana.is_edit

    result = place / "result.json"
    checkpoint = ("--checkpoint", str(place / "colours/model"))
    code, text = dim("evaluate", "emoji", *checkpoint, "--data", str(place / "emoji"), "-o", str(result), "--pairs-per-rule", "1")
    assert code == 0, text
    found = json.loads(result.read_text())
    assert result.with_suffix(".png").is_file()
    assert found["overall"]["pairs"] == len(found["rules"]) > 10
    assert 0 < found["overall"]["psnr_copy"] < 40
