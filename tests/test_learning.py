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
    """A folder with the four data sets in it, prepared."""
    folder = tmp_path_factory.mktemp("learning")

    def build(name: str, *options: str) -> None:
        for arguments in (
            ("build-data", name, str(folder / name), *options),
            ("prepare", str(folder / name), f"{folder}/data/prepared/{name}"),
        ):
            code, text = dim(*arguments)
            assert code == 0, text

    packages = archives(tmp_path_factory.mktemp("packages"), few=12, tones=1, flags=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tints, "THINGS", {"train": 40, "test": 4})
        patch.setattr(tints, "RECOLOURED_PAIRS", dict.fromkeys(tints.RECOLOURED_PAIRS, 5))
        build("emoji", "--packages", str(packages))
        build("tints", "--from", str(folder / "emoji"))
    for name in ("icons", "older"):  # of the same form; tests/test_emoji_*.py build them
        (folder / "data/prepared" / name).symlink_to("emoji")
    return folder


def test_build_train_evaluate(place, monkeypatch):
    monkeypatch.chdir(place)
    # The bundled painter's run, which reads all sets; other tests train the other parts, stop runs, and start one where another ended.
    options = EMOJI | {"data__source": str(place / "data/prepared/emoji"), "data__mirrored": "('hair', 'hare')"}
    fresh = {f"init__{part}": "" for part in ("encoder", "autoencoder", "sana", "connector")}
    code, text = train("nano_speedrun", place / "speedrun", 2, **options, **fresh)
    assert code == 0, text
    assert [line["step"] for line in log(place / "speedrun")] == [1, 2]
    assert "data.mirrored: no example has the rule hare. There are " in text
    assert open_weights(place / "speedrun/model").config.sana.is_edit

    result = place / "result.json"
    checkpoint = ("--checkpoint", str(place / "speedrun/model"))
    code, text = dim("evaluate", "emoji", *checkpoint, "--data", str(place / "emoji"), "-o", str(result), "--pairs-per-rule", "1")
    assert code == 0, text
    found = json.loads(result.read_text())
    assert result.with_suffix(".png").is_file()
    assert found["overall"]["pairs"] == len(found["rules"]) > 10
    assert 0 < found["overall"]["psnr_copy"] < 40
