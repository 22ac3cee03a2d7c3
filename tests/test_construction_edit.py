"""`dim build-data dim-edit`, from own pairs to a data set: what is kept, dropped with a reason, paid for once, and told."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from dim_jax.datasets.construction.edit import DESIGNED, REJECTS, SCORES, TABLE
from tests.chat_server import ChatServer, Turnstile, good, status
from tests.construction_fixtures import drawing, judging, own_config, own_pairs, tiny_models
from tests.designer_answers import GOOD
from tests.painter_fixtures import dim, one_error
from tests.started import started

OUT = Path("out")
COLOURS = ("blue", "green", "black", "orange", "purple", "brown")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    own_config(*models)


def build(server: ChatServer | None, *more: str) -> tuple[int, str]:
    designer = ("--designer", "openai:m", "--base-url", server.url) if server else ()
    return dim("build-data", "dim-edit", "out", "--source", "pairs:mine.jsonl", "--config", "own.toml", *designer, *more)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (OUT / name).read_text().splitlines()]


def six() -> None:
    """Six pairs: one whose pictures are alike, one that is damaged, one each of the verdicts, one that occurs before."""
    red = drawing("red")
    pairs: list = [(red, drawing("blue"), "Paint it blue."), (red, red, "Do nothing."), (red, drawing("yellow"), "The wrong thing.")]
    pairs += [(red, drawing("black"), "Done partly."), (red, b"\x89PNG", "Broken."), (red, drawing("blue"), "Paint it blue.")]
    own_pairs(Path(), pairs)


def test_build_dim_edit_end_to_end(models):
    six()
    own_config(*models, bounds="[filter.pairs]\nssim = [-1.0, 0.999]\n")
    with ChatServer(judging()) as server:
        code, text = build(server)
        assert (code, text.count("\n")) == (0, 3), text
        assert "assess.jsonl: 3 answered, 0 failed" in text
        assert "blueprints.jsonl: 2 answered" in text
        assert "out: 6 pairs; keep 4, assess 3, design 2" in text
        # Both questions show source and target, in this order; the second asks with the instruction as it was mended.
        blue = [request for request in server.requests if "Paint it blue." in request.text]
        assert ["The one disc, in full." in request.text for request in blue] == [False, True]
        for request in blue:
            assert request.pictures == [Path("0a.png").read_bytes(), Path("0b.png").read_bytes()]
    found = rows(TABLE)
    assert [row["id"] for row in found] == ["pairs:mine.jsonl/p0", "pairs:mine.jsonl/p3"]
    for row, name in zip(found, ("0", "3"), strict=True):
        assert set(row) == {"id", "image_path", "image_path_target", "prompt"}
        assert row["prompt"] == GOOD
        assert (OUT / row["image_path"]).read_bytes() == Path(f"{name}a.png").read_bytes()
        assert (OUT / row["image_path_target"]).read_bytes() == Path(f"{name}b.png").read_bytes()
        assert row["image_path"].startswith("image/")
    reasons = {row["id"].rpartition("/")[2]: (row["stage"], row["reason"]) for row in rows(REJECTS)}
    assert reasons["p1"] == ("filter", "ssim 1.000 is over 0.999")
    assert reasons["p2"] == ("assess", "misaligned: It was looked at.")
    assert reasons["p4"][0] == "read"
    assert "4b.png" in reasons["p4"][1]
    assert reasons["p5"] == ("keep", "the same pair and instruction as pairs:mine.jsonl/p0")
    assert len(reasons) == 4


def test_the_page_of_statistics(models):
    six()
    own_config(*models, bounds="[filter.pairs]\nssim = [-1.0, 0.999]\n")
    with ChatServer(judging()) as server:
        build(server)
    page, found = (OUT / "README.md").read_text(), json.loads((OUT / "statistics.json").read_text())
    words = len(GOOD.split())
    assert found["words"] == {"mean": words, "median": words, "shortest": words, "longest": words}
    assert f"| here | 2 | {words} | {words} | {words} | {words} |" in re.sub(r"\.0\b", "", page)
    assert "252.64" in page
    for line in ("| read | 6 | 1 | 5 |", "| joint filter | 5 | 1 | 4 |", "| the same pair again | 4 | 1 | 3 |"):
        assert line in page
    for line in ("| instruction assessed | 3 | 1 | 2 |", "| blueprint written | 2 | 0 | 2 |", "| assess | misaligned | 1 |"):
        assert line in page
    assert (found["assess"]["misaligned"], found["assess"]["partially aligned"], found["assess"]["aligned"]) == (1, 1, 1)
    assert found["assess"]["tokens"] == {"in": 3000, "out": 300}
    assert found["filter"]["out of bounds"] == {"ssim": 1, "dino": 0, "clip": 0}
    for name in ("scores.png", "statistics.png"):
        with Image.open(OUT / name) as plot:
            assert len(plot.convert("L").getcolors() or ()) > 2


def test_changed_bounds_reuse_scores_and_answers(models):
    own_pairs(Path(), [(drawing("red"), drawing(colour), f"Paint it {colour}.") for colour in COLOURS])
    code, text = build(None, "--until", "keep")
    assert (code, "6 pairs; keep 6" in text) == (0, True), text
    scores = (OUT / SCORES).read_bytes()
    values = sorted(row["clip"] for row in rows(SCORES))
    own_config(*models, bounds=f"[filter.pairs]\nclip = [{values[2]}, 1.0]\n")
    with ChatServer(judging()) as server:
        assert "keep 4, assess 4, design 4" in build(server)[1]
        assert len(server.requests) == 8
        own_config(*models, bounds=f"[filter.pairs]\nclip = [{values[1]}, 1.0]\n")
        assert "keep 5, assess 5, design 5" in build(server)[1]
        assert len(server.requests) == 10
        own_config(*models, bounds=f"[filter.pairs]\nclip = [{values[3]}, 1.0]\n")
        assert "keep 3, assess 3, design 3" in build(server)[1]
        assert len(server.requests) == 10
    assert len(rows(TABLE)) == 3
    assert (OUT / SCORES).read_bytes() == scores


def test_failures_are_rejects_with_reasons_until_they_are_retried():
    own_pairs(Path(), [(drawing("red"), drawing(colour), f"Paint it {colour}.") for colour in COLOURS[:3]])
    replies = [good("It is aligned."), *[judging()] * 2, good("I'm sorry, I can't help."), judging()]
    with ChatServer(*replies) as server:
        assert build(server, "--concurrency", "1")[0] == 0
        assert len(rows(TABLE)) == 1
        reasons = {row["stage"]: row["reason"] for row in rows(REJECTS)}
        assert "no verdict" in reasons["assess"]
        assert "the model refused" in reasons["design"]
        assert build(server)[0] == 0
        assert len(server.requests) == 5
        assert build(server, "--retry-failed")[0] == 0
    assert len(rows(TABLE)) == 3
    assert rows(REJECTS) == []


def test_a_budget_is_for_all_stages_and_ends_the_build_with_what_is_left():
    """1,100 tokens an answer, and what a question may cost at most is set aside."""
    own_pairs(Path(), [(drawing("red"), drawing(colour), f"Paint it {colour}.") for colour in COLOURS])
    options = ("--concurrency", "1", "--max-tokens", "100")
    with ChatServer(judging()) as server:
        text = build(server, *options, "--budget-tokens", "5500")[1]
        assert re.search(r"assess\.jsonl: stopped by the budget, \d of 6 are left", text)
        assert not (OUT / TABLE).exists()
        spent = len(server.requests)
        assert 1 < spent <= 5
        code, text = build(server, *options, "--budget-tokens", "11000")
        assert code == 1
        assert "blueprints.jsonl: stopped by the budget" in text
        assert len(server.requests) <= 10
        assert build(server, *options, "--budget-tokens", "50000")[0] == 0
    assert len(server.requests) == 12
    assert len(rows(TABLE)) == 6


def test_another_model_judges(models):
    own_pairs(Path(), [(drawing("red"), drawing("blue"), "Paint it blue.")])
    with ChatServer(judging()) as server:
        build(server, "--assessor", "openai:small")
        assert [request.body["model"] for request in server.requests] == ["small", "m"]


SCRIPT = "import sys; from dim_jax.cli.main import main; sys.argv[0] = 'dim'; main()"


def test_resume_after_kill_asks_nothing_twice():
    own_pairs(Path(), [(drawing("red"), drawing("blue", ground=colour), f"Paint it {i}.") for i in range(4) for colour in COLOURS])
    turnstile = Turnstile(judging(), 36)
    arguments = ("build-data", "dim-edit", "out", "--source", "pairs:mine.jsonl", "--config", "own.toml", "--designer", "openai:m")
    with ChatServer(turnstile) as server:
        command = [sys.executable, "-c", SCRIPT, *arguments, "--base-url", server.url, "--concurrency", "2"]
        with started(Path("output"), command, {**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path()) as run:
            run.wait_until(lambda: (OUT / DESIGNED).exists() and (OUT / DESIGNED).read_bytes().count(b"\n") >= 5)
        assert (OUT / DESIGNED).read_bytes().count(b"\n") < 24
        turnstile.opened = 1000
        assert build(server)[0] == 0
        assert 48 <= len(server.requests) <= 48 + 2
    assert len(rows(TABLE)) == 24


def test_invalid_build_options_are_refused(models):
    own_pairs(Path(), [(drawing("red"), drawing("blue"), "x")])
    assert "needs a designer" in one_error(build(None))
    assert not OUT.exists()
    assert build(None, "--until", "paint")[0] == 2
    assert dim("build-data", "dim-edit", "out", "--source", "pairs:mine.jsonl", "--designer", "none")[0] == 2
    assert "one name" in one_error(build(None, "--until", "score", "--source", "pairs:mine.jsonl"))
    OUT.mkdir()
    (OUT / "mine").write_text("x")
    assert "Choose another output" in one_error(build(None, "--until", "score"))
    own_config(*models, bounds="[filter.pairs]\nssim = [1, 0]\n")
    assert "filter.pairs.ssim" in one_error(build(None, "--until", "score"))
    with ChatServer(status(401)) as server:
        own_config(*models)
        (OUT / "mine").unlink()
        assert "OPENAI_API_KEY" in one_error(build(server))


def test_build_with_no_pairs_left_writes_empty_table(models):
    """Bounds that nothing meets, and instructions that are all wrong: an empty set, its page, and every pair among the rejects."""
    own_pairs(Path(), [(drawing("red"), drawing(colour), "The wrong thing.") for colour in COLOURS[:2]])
    with ChatServer(judging()) as server:
        assert build(server)[0] == 0
        assert (rows(TABLE), len(rows(REJECTS)), len(server.requests)) == ([], 2, 2)
        own_config(*models, bounds="[filter.pairs]\nssim = [1.0, 1.0]\n")
        assert build(server)[0] == 0
        assert (rows(TABLE), len(rows(REJECTS)), len(server.requests)) == ([], 2, 2)
    assert "| joint filter | 2 | 2 | 0 |" in (OUT / "README.md").read_text()
