"""From packages of emoji to a measured model, in short form: the commands of docs/nano.md with few steps and small sizes."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dim_jax.datasets.emoji import tints
from dim_jax.weights.convert import open_weights
from tests.emoji_fixtures import archives, icon_archives
from tests.painter_fixtures import dim
from tests.test_train import log, train

FEW = {"few": 12, "tones": 1, "flags": 6}
EMOJI = {"data__lengths": "(320, 1200)", "model__condition_length": "1024"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the four data sets in it, prepared."""
    folder = tmp_path_factory.mktemp("learning")

    def build(name: str, out: str, packages: Callable[[Path], Path] | None = None, *options: str) -> None:
        given = ("--packages", str(packages(tmp_path_factory.mktemp("packages")))) if packages else ()
        for arguments in (
            ("build-data", name, str(folder / out), *given, *options),
            ("prepare", str(folder / out), str(folder / "data/prepared" / out)),
        ):
            code, text = dim(*arguments)
            assert code == 0, text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tints, "THINGS", {"train": 40, "test": 4})
        patch.setattr(tints, "RECOLOURED_PAIRS", dict.fromkeys(tints.RECOLOURED_PAIRS, 5))
        build("emoji", "emoji", partial(archives, **FEW))
        build("tints", "tints", None, "--from", str(folder / "emoji"))
        build("icons", "icons", icon_archives)
        build("emoji", "older", partial(archives, older=True, **FEW), "--set", "noto_v1", "--set", "emojione")
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
