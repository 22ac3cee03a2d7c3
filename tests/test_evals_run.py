"""`dim evaluate`: the tracks, what lies where, what is kept through kills and shards, and what is refused."""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim_jax.edit_result import read_metadata
from dim_jax.evals import run
from dim_jax.evals.benchmark import read_finished
from dim_jax.evals.generate import seed_of
from dim_jax.evals.pictures import digest
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import open_picture
from dim_jax.sampling import Sampler
from dim_jax.session import EditSession
from tests import benchmark_fixtures as made
from tests.chat_server import ChatServer, Request, completion, response
from tests.designer_answers import GOOD
from tests.painter_fixtures import QUICK, dim, largest_difference, one_error, painter
from tests.started import started

# The tests' painter reads 24 tokens, and a blueprint has more.
COMMON = ("--checkpoint", "C", "--batch-size", "2", "--keep-last")
USED = replace(QUICK, overflow="keep_last")


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key, quick settings, and a cache of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(painter(), "settings", QUICK)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("DIM_JAX_CACHE", str(folder / "cache"))


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch, loaded):
    work_in(tmp_path, monkeypatch)
    made.imgedit(Path("imgedit"))


def evaluate(*more: str, name: str = "imgedit", data: str = "imgedit", out: str = "out") -> tuple[int, str]:
    return dim("evaluate", name, "--data", data, "--out", out, *COMMON, *more)


def rows(track: str, out: str = "out") -> dict[str, dict]:
    return read_finished(Path(out, track))


def opinion(score: float, *, done: bool = False, instruction: str = "Try again.") -> str:
    return json.dumps({"done": done, "score": score, "reason": "so it is", "instruction": "" if done else instruction})


def answering(opinions: Callable[[int], str]) -> Callable[[Request], Iterator[bytes]]:
    """Blueprints for one picture; for two, the opinion that comes after so many others."""
    asked = iter(range(10**6))

    def reply(request: Request) -> Iterator[bytes]:
        text = GOOD if len(request.pictures) == 1 else opinions(next(asked))
        yield response(200, completion(text))

    return reply


def asked_of(server: ChatServer) -> Counter[int]:
    """Questions by how many pictures they have: 1 for blueprints, 2 for opinions."""
    return Counter(len(request.pictures) for request in server.requests)


# The direct track, and what is written


def test_the_direct_track(monkeypatch):
    code, text = evaluate()
    assert code == 0, text
    assert "all of ImgEdit-Bench (single turn) are 737" in text
    assert "4 of 4 cases are painted" in text
    run_ = json.loads(Path("out/run.json").read_text())
    assert (run_["benchmark"], run_["seed"], run_["weights"], run_["tracks"]) == ("imgedit", 0, digest(painter()), ["direct"])
    assert run_["settings"]["num_steps"] == 3
    found = rows("direct")
    assert {key: row["category"] for key, row in found.items()} == {key: row["edit_type"] for key, row in made.IMGEDIT.items()}
    row = found["1149"]
    assert (row["prompt"], row["painted_prompt"], row["pictures"]) == (
        "Remove the box and add light.", "Remove the box and add light.", ["pictures/compose/1149.png"],
    )  # fmt: skip
    assert row["seconds"] > 0
    metadata = read_metadata(Path("out/direct", row["pictures"][0]))
    source = open_picture("imgedit/Benchmark/singleturn/compose/human/14.jpg")
    (case,) = [case for case in run_cases() if case.id == "1149"]
    assert (metadata["prompt"], metadata["seed"]) == (row["prompt"], seed_of(case, 0, source))
    (ours,) = EditPipeline(painter())([row["prompt"]], [source], seeds=[metadata["seed"]], settings=USED)
    with Image.open(Path("out/direct", row["pictures"][0])) as kept:
        assert largest_difference(kept, ours.image) <= 1
    # A second run finds all of it.
    monkeypatch.setattr(Sampler, "_batch", lambda *_, **__: pytest.fail("painted again"))
    before = Path("out/direct/cases.jsonl").read_bytes()
    assert evaluate()[0] == 0
    assert Path("out/direct/cases.jsonl").read_bytes() == before


def run_cases():
    from dim_jax.evals.benchmark import benchmark

    return benchmark("imgedit").read(Path("imgedit"))


def test_an_interrupted_run_repeats_nothing_and_loses_nothing(monkeypatch):
    calls, paint = [], Sampler._batch

    def stop_at_the_second(self, requests, *args, **options):
        calls.append({request.prompt for request in requests})
        if len(calls) == 2:
            raise KeyboardInterrupt
        return paint(self, requests, *args, **options)

    monkeypatch.setattr(Sampler, "_batch", stop_at_the_second)
    assert evaluate()[0] == 130
    assert {row["prompt"] for row in rows("direct").values()} == calls[0]
    # A kill may tear the last line, after its picture was kept.
    lines = Path("out/direct/cases.jsonl").read_bytes()
    Path("out/direct/cases.jsonl").write_bytes(lines[:-9])
    assert evaluate()[0] == 0
    assert len(calls) == 3
    assert not calls[0] & calls[2]
    assert len(rows("direct")) == 4
    # A damaged picture is painted again, and no other.
    Path("out/direct/pictures/add/97.png").write_bytes(b"\x89PNG and no more")
    assert evaluate()[0] == 0
    assert calls[3] == {"Add a chandelier."}


def test_shards_share_a_folder():
    for shard in ("2/2", "1/2"):
        code, text = evaluate("--shard", shard)
        assert code == 0, text
    assert sorted(path.name for path in Path("out/direct").glob("*.jsonl")) == ["cases.1of2.jsonl", "cases.2of2.jsonl"]
    parts = [{json.loads(line)["id"] for line in path.read_text().splitlines()} for path in sorted(Path("out/direct").glob("*.jsonl"))]
    assert parts[0] | parts[1] == set(made.IMGEDIT)
    assert not parts[0] & parts[1]
    evaluate(out="whole")
    for key, row in rows("direct", "whole").items():
        pictures = [Path(out, "direct", row["pictures"][0]) for out in ("out", "whole")]
        assert rows("direct")[key]["pictures"] == row["pictures"]
        assert read_metadata(pictures[0]) == read_metadata(pictures[1])
        assert largest_difference(open_picture(pictures[0]), open_picture(pictures[1])) <= 1


def test_a_kill_in_a_process_of_its_own_and_the_way_on(tmp_path, monkeypatch):
    """SIGKILL once a picture is there; another process finishes, and paints no picture twice."""
    from dim_jax.weights.bundled import bundled_checkpoint

    command = [
        sys.executable,
        "-m",
        "dim_jax.cli",
        "evaluate",
        "imgedit",
        "--data",
        str(tmp_path / "imgedit"),
        "--out",
        str(tmp_path / "k"),
    ]
    command += ["--checkpoint", str(bundled_checkpoint()), "--batch-size", "1", "--steps", "2", "--limit", "3"]
    done = tmp_path / "k/direct/cases.jsonl"
    with started(tmp_path / "first.txt", command) as first:
        first.wait_until(lambda: done.exists() and done.read_bytes().count(b"\n") >= 1)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "k").rglob("*.png")}
    assert times
    with started(tmp_path / "second.txt", command) as second:
        assert second.ended()[0] == 0, second.said()
    assert len(read_finished(tmp_path / "k/direct")) == 3
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not [path for path in (tmp_path / "k").rglob("*") if ".partial" in path.name]


# Designers


def test_the_designed_track_reads_blueprints():
    blueprints = [{"id": key, "prompt": GOOD.replace("cup", f"cup {key}")} for key in made.IMGEDIT if key != "673"]
    made.put_lines(Path("cot.jsonl"), blueprints)
    code, text = evaluate("--designer", "file:cot.jsonl")
    assert code == 0, text
    assert '1 cases have no blueprint, such as "673": cot.jsonl has no id "673"' in text
    assert "out/designed: 3 of 4 cases are painted; scores are of those alone" in text
    assert set(rows("direct")) == set(made.IMGEDIT)
    assert set(rows("designed")) == set(made.IMGEDIT) - {"673"}
    row = rows("designed")["97"]
    assert (row["prompt"], row["painted_prompt"]) == ("Add a chandelier.", GOOD.replace("cup", "cup 97"))
    direct, designed = (read_metadata(Path("out", track, "pictures/add/97.png")) for track in ("direct", "designed"))
    assert direct["seed"] == designed["seed"], "the same noise in all tracks"
    assert (designed["designer"], designed["instruction"]) == ("file:cot.jsonl", "Add a chandelier.")
    assert (direct["designer"], direct["instruction"]) == ("none", "")


def test_the_reflected_track_takes_the_round_that_the_designer_scores_highest():
    """Three rounds each: 3, 8 and 5. The first one is the designed picture, which is not painted again."""
    scores = {1: 3, 2: 8, 3: 5}

    def opinions(number: int) -> str:
        return opinion(scores[number // 4 + 1], instruction=f"Again {number // 4 + 1}.")

    with ChatServer(answering(opinions)) as server:
        options = ("--designer", "openai:m", "--base-url", server.url, "--concurrency", "1")
        assert evaluate(*options, "--tracks", "designed")[0] == 0
        assert asked_of(server) == {1: 4}
        designed = {path.name: path.stat().st_ino for path in Path("out/designed").rglob("*.png")}
        code, text = evaluate(*options, "--tracks", "reflected", "--rounds", "3")
        assert code == 0, text
        # Two more blueprints and three opinions each: the first blueprints were there, and two cases ask the same of one picture.
        assert asked_of(server) == {1: 4 + 6, 2: 12}
        assert evaluate(*options, "--tracks", "reflected", "--rounds", "3")[0] == 0
        assert asked_of(server) == {1: 10, 2: 12}, "nothing is asked twice"
    row = rows("reflected")["97"]
    assert [(one["score"], one.get("best", False), one["instruction"]) for one in row["rounds"]] == [
        (3, False, "Add a chandelier."), (8, True, "Again 1."), (5, False, "Again 2."),
    ]  # fmt: skip
    folder = Path("out/reflected")
    assert row["pictures"] == ["pictures/add/97.png"]
    pictures = [(folder / one["picture"]).read_bytes() for one in row["rounds"]]
    assert (folder / row["pictures"][0]).read_bytes() == pictures[1]
    assert len(set(pictures)) == 3, "each round has noise of its own"
    assert (folder / row["rounds"][0]["picture"]).stat().st_ino == designed["97.png"]
    assert json.loads(Path("out/run.json").read_text())["tracks"] == ["designed", "reflected"]


def test_rounds_end_when_the_designer_is_content_or_says_nothing_of_use():
    answers = {0: opinion(9, done=True), 1: "It looks nice!", 2: opinion(2), 3: opinion(7, done=True), 4: opinion(6)}
    with ChatServer(answering(answers.__getitem__)) as server:
        code, text = evaluate(
            "--designer", "openai:m", "--base-url", server.url, "--concurrency", "1", "--tracks", "reflected", "--rounds", "2"
        )
    assert code == 0, text
    found = [[(one.get("score"), one.get("done"), "failed" in one) for one in row["rounds"]] for row in rows("reflected").values()]
    assert sorted(found, key=str) == sorted(
        [[(9, True, False)], [(None, None, True)], [(2, False, False), (6, False, False)], [(7, True, False)]], key=str
    )
    (failed,) = [row["rounds"][0]["failed"] for row in rows("reflected").values() if "failed" in row["rounds"][0]]
    assert failed == "the answer has no JSON object"
    assert len(list(Path("out/reflected").glob("reflections*.jsonl"))) == 2, "with the answers that are none"


def test_the_round_nearest_to_the_target_stands_beside_it():
    made.magicbrush(Path("magic"))
    with ChatServer(answering(lambda number: opinion(5, instruction=f"Again {number}."))) as server:
        options = ("--designer", "openai:m", "--base-url", server.url, "--concurrency", "1", "--tracks", "reflected", "--rounds", "2")
        code, text = evaluate(*options, name="magicbrush", data="magic")
    assert code == 0, text
    assert "without clip_i, which needs a network (--clip)" in text
    metrics = json.loads(Path("out/reflected/metrics.json").read_text())
    for key, row in rows("reflected").items():
        target = np.asarray(open_picture(f"magic/images/{key.split('-')[0]}/{key.split('-')[0]}-output{key[-1]}.png"), float) / 255
        errors = [
            ((np.asarray(open_picture(Path("out/reflected", one["picture"])), float) / 255 - target) ** 2).mean() for one in row["rounds"]
        ]
        assert [one.get("oracle", False) for one in row["rounds"]] == [error == min(errors) for error in errors]
        assert metrics["cases"][key]["l2"] == pytest.approx(errors[0]), "the first of two that the designer scores alike"
        assert metrics["oracle"]["cases"][key]["l2"] == pytest.approx(min(errors))


# Several turns, several pictures, the makers' layouts


def test_edits_in_turns_go_on_from_the_latents_as_a_session_does(monkeypatch):
    made.imgedit_multiturn(Path("turns"))
    calls, paint = [], Sampler._batch

    def stop_at_the_second(self, requests, *args, **options):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return paint(self, requests, *args, **options)

    monkeypatch.setattr(Sampler, "_batch", stop_at_the_second)
    assert evaluate(name="imgedit-multiturn", data="turns")[0] == 130, "after the first turn"
    code, text = evaluate("--official", "--stage", "generate", name="imgedit-multiturn", data="turns")
    assert code == 0, text
    assert len(calls) == 4, "the first turn was not painted again"
    row = rows("direct")["version_backtrace-1"]
    assert row["pictures"] == [f"pictures/version_backtrace/version_backtrace-1.t{k}.png" for k in (1, 2, 3)]
    first = open_picture("turns/multiturn/version_backtrace/000066341.jpg")
    session = EditSession(EditPipeline(painter()), first, settings=USED)
    for k, name in enumerate(row["pictures"], 1):
        metadata = read_metadata(Path("out/direct", name))
        assert metadata["prompt"] == f"Edit {k} of version_backtrace."
        ours = session.edit(metadata["prompt"], seed=metadata["seed"])
        assert largest_difference(open_picture(Path("out/direct", name)), ours.image) <= 1
    assert not list(Path("out").rglob("*.npy")), "latents are kept no longer than they are needed"
    assert Path("out/direct/official/version_backtrace/1_turn3.png").read_bytes() == Path("out/direct", row["pictures"][2]).read_bytes()


# What is refused


def test_a_folder_is_of_one_evaluation():
    assert evaluate()[0] == 0
    for more, says in (
        (("--seed", "1"), "seed 0, not seed 1"),
        (("--steps", "2"), "settings"),
        (("--designer", "file:x.jsonl"), "x.jsonl"),
    ):
        assert says in one_error(noteless(evaluate(*more)))
    made.geneval(Path("geneval"))
    assert "benchmark imgedit, not benchmark geneval" in one_error(noteless(evaluate(name="geneval", data="geneval")))
    assert evaluate("--limit", "2")[0] == 0, "a smaller sample of the same"


def noteless(result: tuple[int, str]) -> tuple[int, str]:
    return result[0], "".join(line for line in result[1].splitlines(keepends=True) if "the scores are not those of the whole" not in line)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--tracks", "designed"), "need a designer that writes blueprints"),
        (("--tracks", "fast"), 'no track "fast"'),
        (("--shard", "0/2"), "write a shard as its number, from 1"),
        (("--shard", "3/2"), "write a shard as its number, from 1"),
        (("--seed", "-1"), "must not be negative"),
        (("--stage", "judge"), "nothing is painted there"),
        (("--designer", "nobody:x"), "is not a designer"),
    ],
    ids=["no-designer", "no-track", "shard-0", "shard-3", "seed", "judge-first", "nobody"],
)
def test_what_cannot_be_done(more, says):
    assert says in one_error(noteless(evaluate(*more)))
    assert not list(Path().glob("out/*/cases*"))


def test_a_file_of_blueprints_cannot_look_at_results():
    made.put_lines(Path("cot.jsonl"), [{"id": key, "prompt": GOOD} for key in made.IMGEDIT])
    error = one_error(noteless(evaluate("--designer", "file:cot.jsonl", "--tracks", "reflected")))
    assert "cannot look at results" in error
    assert "no track reflected" in one_error(text_to_image("--designer", "openai:m", "--tracks", "reflected"))


def text_to_image(*more: str) -> tuple[int, str]:
    made.geneval(Path("geneval"))
    return noteless(evaluate(*more, name="geneval", data="geneval", out="t2i"))


def test_another_run_is_painting_the_same():
    from dim_jax.designer.journal import JsonlLog

    os.makedirs("out/direct")
    held = JsonlLog.locked(Path("out/direct/cases.jsonl"), wait=False)
    assert "another run is writing to it" in one_error(noteless(evaluate()))
    held.close()
    assert evaluate()[0] == 0
    assert run.Shard.read("2/3").tag == ".2of3"
