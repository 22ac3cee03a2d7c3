"""Judgements of results on training pairs: their labels, what is painted and written, and that an encoder can be trained on them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_jax.cli.designer_options import local_judge
from dim_jax.data.dataset import open_source
from dim_jax.data.pipeline import open_mixture
from dim_jax.data.readers import AnswerReader
from dim_jax.datasets.layouts.pairs import Pair, Picture, encode_webp, write_pairs
from dim_jax.designer.local import DONE, NOT_DONE
from dim_jax.evals.judgements import TABLE, build, is_done
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.buckets import Bucket
from tests.painter_fixtures import QUICK, dim, one_error, painter, picture
from tests.test_evals_emoji import Pretender
from tests.test_train import train

pytest.importorskip("array_record")


def grey(level: float, change: float = 0.0) -> np.ndarray:
    """A grey picture, whose left quarter is lighter by `change`."""
    pixels = np.full((8, 8, 3), level)
    pixels[:, :2] += change
    return pixels


@pytest.mark.parametrize(
    ("result", "done"),
    [
        (grey(0.2, 0.5), True),
        (grey(0.2), False),
        (grey(0.2, 0.24), False),
        (grey(0.2, 0.26), True),
        (grey(0.75, -0.05), False),  # nearer, with the rest spoilt
        (grey(0.25, 0.45), True),  # with the rest nearly as it was
    ],
)
def test_done_is_nearer_to_the_target_and_unchanged_elsewhere(result, done):
    assert is_done(grey(0.2), grey(0.2, 0.5), result) == done


def test_equal_pictures_are_never_an_edit():
    assert not is_done(grey(0.2), grey(0.2), grey(0.2))


PICTURES = [
    Picture("noto", f"1f60{i}", f"face {i}", "train", (f"Face {i}.",), encode_webp(np.asarray(picture(64, 64, i)))) for i in range(4)
]
# Two edits of the first picture, one of the second; another rule has one.
PAIRS = [
    Pair(0, 1, "smile", ("smile", "smile please"), "1. Smile."), Pair(0, 2, "smile", ("frown",), "1. Frown."),
    Pair(1, 3, "smile", ("laugh",), "1. Laugh."), Pair(2, 3, "hat", ("put a hat on",), "1. Hat."),
]  # fmt: skip


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(painter(), "settings", QUICK)
    monkeypatch.setattr(painter(), "prompt_mode", "instruction")
    (tmp_path / "pairs").mkdir()
    write_pairs(tmp_path / "pairs", PICTURES, PAIRS)
    (tmp_path / "pairs/README.md").write_text("Whose pictures these are.")
    return tmp_path / "pairs"


def decoded(number: int) -> Image.Image:
    return picture(64, 64, number)


def test_rows_and_their_labels(pairs, monkeypatch):
    """The painter does "smile", "frown" and "laugh", and leaves the picture without a hat as it is."""
    results = {"smile": decoded(1), "frown": decoded(2), "laugh": decoded(3), "put a hat on": decoded(2)}
    pretender = Pretender(monkeypatch, results)
    monkeypatch.setattr(type(painter()), "reconstruct", lambda self, pictures, settings: list(pictures))
    options = {"pairs_per_rule": 3, "seed": 0, "settings": QUICK}
    counts = build(EditPipeline(painter()), pairs, Path("judged"), **options)
    rows = [json.loads(line) for line in Path("judged", TABLE).read_text().splitlines()]
    assert counts == Counter(row["answer"] for row in rows)
    kinds = {(row["id"].split()[0], row["result"].split("/")[0], row["result"].split("/")[-1], row["answer"]) for row in rows}
    first, second = "noto/1f600>noto/1f601", "noto/1f600>noto/1f602"
    name = {first: "noto%2F1f600%3Enoto%2F1f601.png", second: "noto%2F1f600%3Enoto%2F1f602.png"}
    assert {
        (first, "painted", name[first], DONE), (first, "painted", name[second], NOT_DONE), (second, "painted", name[first], NOT_DONE),
        (first, "rebuilt", "noto%2F1f600.png", NOT_DONE), (first, "rebuilt", "noto%2F1f601.png", DONE),
        ("noto/1f602>noto/1f603", "painted", "noto%2F1f602%3Enoto%2F1f603.png", NOT_DONE),
    } <= kinds  # fmt: skip
    assert len(rows) == 2 * 4 + 2 * 3, "two of the four pairs have no other pair of their source"
    assert next(row for row in rows if row["id"].startswith(first))["prompt"] == ["smile", "smile please"]
    assert sorted(pretender.prompts) == ["frown", "laugh", "put a hat on", "smile"]
    again = build(EditPipeline(painter()), pairs, Path("judged"), **options)
    assert len(pretender.prompts) == 4, "a second run paints nothing"
    assert again == counts


def test_an_encoder_reads_source_and_result(pairs, loaded):
    code, text = dim("build-data", "judgements", "judged", "--from", "pairs", "--checkpoint", "C", "--pairs-per-rule", "2", "--steps", "3")
    assert code == 0, text
    rows = [json.loads(line) for line in Path("judged", TABLE).read_text().splitlines()]
    answers = Counter(row["answer"] for row in rows)
    assert text == f"wrote judged: {answers[DONE]} results done, {answers[NOT_DONE]} results not done\n"
    code, text = dim("prepare", "judged", "data")
    assert code == 0, text
    assert Path("data/README.md").read_text() == "Whose pictures these are."
    source = open_source("data", "judgement", split="train", side=64)
    reader = AnswerReader(painter().processor.at(64), (320,))
    samples = [reader.make_sample(source[i], np.random.default_rng(0)) for i in range(2)]
    for sample in samples:
        row = next(row for row in rows if f"judgements/{row['id']}" == sample.key)
        with Image.open(Path("judged", row["source"])) as before, Image.open(Path("judged", row["result"])) as result:
            assert [one.tobytes() for one in sample.pictures] == [before.tobytes(), result.tobytes()]
        assert sample.prompt in row["prompt"]
        assert sample.answer == row["answer"]
    batch = reader.collate(samples, Bucket(0, 0, 320))
    assert len(batch.inputs.patches) == 4
    assert open_mixture("data", {"judgement": 1.0}, split="train", side=64)[0].kind == "judgement"


def test_an_encoder_is_trained_to_judge(pairs, loaded):
    assert dim("build-data", "judgements", "judged", "--from", "pairs", "--checkpoint", "C", "--pairs-per-rule", "2")[0] == 0
    for name in ("pairs", "judged"):
        assert dim("prepare", name, f"prepared/{name}")[0] == 0
    mix = {"edit": 0.2, "caption": 0.1, "judgement:prepared/judged": 0.7}
    options = {"data__source": "prepared/pairs", "data__mix": str(mix), "data__lengths": "(160,)", "init__encoder": ""}
    code, text = train("nano_reflect", Path("run"), 3, train__show_every="2", **options)
    assert code == 0, text
    assert any(f"wanted: {answer}\n" in Path("run/sheets/000002.md").read_text() for answer in (DONE, NOT_DONE))
    judge = local_judge("run/model", painter())
    scores = judge.judge([decoded(0)] * 2, [decoded(1), decoded(2)], ["smile", "smile"])
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) == 2


def test_tokens_of_a_judgement_count_both_pictures(pairs, loaded):
    assert dim("build-data", "judgements", "judged", "--from", "pairs", "--checkpoint", "C", "--pairs-per-rule", "2")[0] == 0
    assert dim("prepare", "judged", "data", "--tokenizer", str(Path(__file__).parent / "tiny_tokenizer"))[0] == 0
    source, processor = open_source("data", "judgement", split="train", side=64), painter().processor.at(64)
    reader = AnswerReader(processor, (320,))
    stats = source.stats(processor.tokenizer)
    assert stats is not None
    counted = reader.tokens(stats, kind="judgement")
    for row in range(len(source)):
        samples = [reader.make_sample(source[row], np.random.default_rng(seed)) for seed in range(8)]
        inputs = [processor.with_answers([one.prompt], [one.pictures], [one.answer])[0] for one in samples]
        assert counted[row] == max(int(one.mask.sum()) for one in inputs)


def test_what_is_refused(pairs, loaded):
    assert "no such file" in one_error(dim("build-data", "judgements", "judged", "--from", "elsewhere", "--checkpoint", "C"))
    assert dim("build-data", "judgements", "judged", "--from", "pairs", "--checkpoint", "C", "--pairs-per-rule", "0")[0] == 2
    mix = 'data.mix={"judgement": 1.0}'
    text = one_error(dim("train", "--config", "nano_edit", "--workdir", "run", "--set", mix, "--set", "data.source=synthetic"))
    assert "data.mix has judgement: only an encoder learns from judgements" in text
