"""The published sets as sources of pairs: one row of each layout, through `dim build-data dim-edit`, to a data set."""

import json
from pathlib import Path

import pytest

from dim_jax.datasets.construction.edit import TABLE
from dim_jax.datasets.construction.sources import open_source
from dim_jax.errors import InputError
from tests.chat_server import ChatServer
from tests.construction_fixtures import judging, own_config, tiny_models
from tests.layout_fixtures import ROWS, Rows, extract, files, image, png, share_gpt, ultra_edit
from tests.painter_fixtures import dim


def test_ultra_edit_and_share_gpt_become_one_data_set(tmp_path, monkeypatch):
    """Pictures to the byte, instructions from either's own columns, and the filter of UltraEdit for its pairs alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    ultra_edit(Path("ue"))
    extract(share_gpt(Path("sg")), files("image/{}.png"))
    table = Path("sg/text_and_image_to_image.json")
    table.write_text(table.read_text().replace("Edit ", "Change "))  # the same pictures with the same instructions would be one pair
    own_config(*tiny_models(tmp_path), bounds="[filter.ultraedit]\nssim = [-1.0, 1.0]\ndino = [2.0, 3.0]\nclip = [-1.0, 1.0]\n")
    arguments = ["build-data", "dim-edit", "out", "--config", "own.toml", "--source", "ultraedit:ue", "--source", "sharegpt4o:sg"]
    code, text = dim(*arguments, "--until", "score")
    assert (code, f"{2 * ROWS} pairs; keep {ROWS}" in text) == (0, True), text
    Path("own.toml").write_text(Path("own.toml").read_text().replace("[2.0, 3.0]", "[-1.0, 1.0]"))
    with ChatServer(judging()) as server:
        code, text = dim(*arguments, "--designer", "openai:m", "--base-url", server.url)
    assert (code, f"design {2 * ROWS}" in text) == (0, True), text
    rows = [json.loads(line) for line in Path("out", TABLE).read_text().splitlines()]
    assert len({row["id"] for row in rows}) == 2 * ROWS
    for number, row in enumerate(rows):
        assert row["id"].startswith("ultraedit:ue/" if number < ROWS else "sharegpt4o:sg/")
        for name, picture in (("image_path", 2 * (number % ROWS)), ("image_path_target", 2 * (number % ROWS) + 1)):
            assert (Path("out") / row[name]).read_bytes() == png(image(picture))
    # What was written is what `dim prepare` reads.
    assert len(Rows("out")) == 2 * ROWS - 1


def test_sources_without_pairs(tmp_path):
    for kind in ("ultraedit", "sharegpt4o"):
        with pytest.raises(InputError, match="no such file or folder"):
            open_source(f"{kind}:{tmp_path}/none")
        with pytest.raises(InputError, match="no pairs"):
            open_source(f"{kind}:{tmp_path}")
