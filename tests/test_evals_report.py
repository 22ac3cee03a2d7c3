"""The report: its numbers and tables, that stored answers give the same bytes again, two runs beside each other."""

import json
from pathlib import Path

import pytest

from dim_jax.designer.limits import Price
from dim_jax.errors import InputError
from dim_jax.evals import report
from dim_jax.evals.benchmark import Case, PublishedRow
from dim_jax.evals.judge import judge
from dim_jax.evals.protocols import protocol
from tests.chat_server import ChatServer, Request
from tests.evals_fixtures import LINES, answering, benchmark, judge_of, make_cases, paint, runner

IMGEDIT = protocol("imgedit")
OUT = Path("out")
FILES = ("report.json", "report.md", "report.html")
PUBLISHED = PublishedRow("Painter | 9", {"add": 3.5, "remove": 2.0, "overall": 3.0}, "arXiv 1234.5678", "GPT-9")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def by_number(numbers: dict[int, str]):
    """An answer to each case by its number."""
    return answering(lambda request: next(text for i, text in numbers.items() if f"number {i} red" in request.text))


ANSWERS = {
    0: LINES.format(4, 4, 4),
    1: LINES.format(2, "1.5", 1),
    2: "It is <b>fine</b>. </script><script>alert(1)</script>",
    3: LINES.format(5, 5, 5),
}


def judged(out: Path = OUT, tracks=("direct",), seed: int = 100, answers=ANSWERS, model: str = "m") -> list[Case]:
    cases = make_cases(Path("data"), ["add", "add", "style", "style"])
    paint(out, cases, tracks, seed)
    with ChatServer(by_number(answers)) as server:
        judge(out, cases, IMGEDIT, judge_of(server, model), runner()[0])
    return cases


def write(cases: list[Case], runs: dict[str, Path] | None = None, out: Path = OUT, **options) -> dict:
    return report.write(out, benchmark(cases, published=(PUBLISHED,)), cases, runs or {"run": OUT}, IMGEDIT, **options)


def test_what_is_written():
    cases = judged()
    found = write(cases, price=lambda name: Price(2, 8), official_seed=7)
    assert json.loads((OUT / "report.json").read_text()) == found
    (track,) = found["tracks"]
    own = track["judges"]["openai:m"]
    assert (own["judged"], own["failed"], own["failed_share"], own["not_asked"]) == (3, 1, 0.25, 0)
    assert own["metrics"]["score"]["mean"] == pytest.approx(((4 + 1.5) / 2 + 5) / 2)
    assert own["metrics"]["score"]["worst"] == pytest.approx(((4 + 1.5) / 2 + 3) / 2)
    assert (own["tokens_in"], own["tokens_out"]) == (6000, 600), "the three refused answers too"
    assert own["dollars"] == pytest.approx(0.0168)
    # ImgEdit's script drops "1.5", so its second case is (2 + 1) / 2.
    assert own["official"]["categories"]["add"]["score"] == 2.75
    assert own["official"]["overall"]["score"] == pytest.approx((2.75 + 5) / 2)
    case = found["cases"][2]
    said = case["results"][0]["judges"]["openai:m"]
    assert said["failed"]
    assert said["metrics"] is None
    assert said["answers"]["edit"] == {"text": ANSWERS[2], "attempts": 3, "reason": said["answers"]["edit"]["reason"]}


def test_the_tables():
    write(judged(), price=lambda name: Price(2, 8), official_seed=7)
    text = (OUT / "report.md").read_text()
    assert "| model | add | remove | style | compliance | quality | preservation | overall | judge | source |" in text
    assert "| direct | 2.75 | – | 5.00 | 4.00 | 3.88 | 3.75 | 3.88 | openai:m (m) | this run |" in text
    assert "| Painter \\| 9 | 3.50 | 2.00 | – | – | – | – | 3.00 | GPT-9 | arXiv 1234.5678 |" in text
    assert "1 (25.0%)" in text
    assert "$0.02" in text
    assert "## As the makers' scripts count: direct, openai:m" in text
    assert "known faults" in text
    assert "wording of the questions: ours" in text
    assert str(Path.cwd()) not in text + (OUT / "report.json").read_text() + (OUT / "report.html").read_text()


def test_stored_answers_give_the_same_bytes():
    cases = judged(tracks=("direct", "designed"))
    write(cases, official_seed=0)
    before = [(OUT / name).read_bytes() for name in FILES]
    for name in FILES:
        (OUT / name).unlink()
    for _ in range(2):
        with ChatServer() as server:  # asked by nobody
            judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
            write(cases, official_seed=0)
        assert not server.requests
        assert [(OUT / name).read_bytes() for name in FILES] == before


def test_the_page_cannot_be_broken_by_what_is_said():
    write(judged())
    page = (OUT / "report.html").read_text()
    assert "</script><script>alert" not in page
    assert page.count("</script>") == 2
    assert "http://" not in page
    assert "https://" not in page


def test_tracks_and_runs_are_compared():
    better = ANSWERS | {1: LINES.format(4, 4, 4)}
    judged(Path("a"))
    cases = judged(Path("b"), ("direct", "designed"), seed=900, answers=better)
    found = write(cases, {"a": Path("a"), "b": Path("b")}, Path("both"))
    rows = {(tuple(row["a"]), tuple(row["b"])): row for row in found["comparisons"]}
    assert set(rows) == {(("a", "direct"), ("b", "direct")), (("b", "direct"), ("b", "designed"))}, "runs on one track, tracks of one run"
    row = rows[("a", "direct"), ("b", "direct")]
    assert (row["cases"], row["metric"], row["by"]) == (3, "score", "openai:m")
    assert row["difference"] == pytest.approx((4 - 1.5) / 3)
    assert row["low"] <= row["difference"] <= row["high"]
    assert rows[("b", "direct"), ("b", "designed")]["difference"] == 0
    assert "| a, direct | b, direct |" in Path("both/report.md").read_text()


def test_two_judges():
    cases = judged()
    with ChatServer(by_number(ANSWERS | {1: LINES.format(3, 3, 3)})) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server, "other"), runner()[0])
    found = write(cases)
    assert list(found["tracks"][0]["judges"]) == ["openai:m", "openai:other"]
    (row,) = found["agreement"]
    assert row["metrics"]["score"]["cases"] == 3
    assert row["metrics"]["score"]["equal"] == pytest.approx(2 / 3)
    assert "## Agreement of judges" in (OUT / "report.md").read_text()


def test_measures_without_a_judge():
    cases = make_cases(Path("data"), ["add", "style"])
    paint(OUT, cases, ("direct", "designed"))
    for track, value in (("direct", 10.0), ("designed", 20.0)):
        rows = {case.id: {"psnr": value + i} for i, case in enumerate(cases)}
        (OUT / track / "metrics.json").write_text(json.dumps({"cases": rows, "mean": {"psnr": value + 0.5}}))
    found = report.write(OUT, benchmark(cases, None), cases, {"run": OUT})
    assert found["protocol"] is None
    (row,) = found["comparisons"]
    assert (row["by"], row["metric"], row["difference"]) == ("measured", "psnr", 10)
    assert "| designed | 20.50 |" in (OUT / "report.md").read_text()
    assert found["cases"][1]["results"][0]["measures"] == {"psnr": 11.0}


def test_part_of_the_cases():
    cases = judged()
    more = [*cases, *make_cases(Path("more"), ["add"] * 5)[4:]]
    found = write(more)
    assert found["tracks"][0]["painted"] == 4
    assert "4 of 5 cases" in (OUT / "report.md").read_text()
    assert found["cases"][4]["results"] == []
    assert found["tracks"][0]["judges"]["openai:m"]["cases"] == 4


def test_nothing_painted_and_damage():
    cases = make_cases(Path("data"), ["add"])
    OUT.mkdir()
    with pytest.raises(InputError, match="out: nothing is painted there"):
        write(cases)
    paint(OUT, cases)
    (OUT / "direct/cases.jsonl").write_text('{"no": 1}\n')
    with pytest.raises(InputError, match=r"cases\.jsonl, line 1 was not written by"):
        write(cases)
    assert not (OUT / "report.json").exists()


def test_what_a_judge_is_asked_in_a_designed_track():
    """The bare instruction, not the blueprint."""
    asked: list[Request] = []

    def answer(request: Request) -> str:
        asked.append(request)
        return LINES.format(4, 4, 4)

    cases = make_cases(Path("data"), ["add"])
    paint(OUT, cases, ("designed",))
    with ChatServer(answering(answer)) as server:
        judge(OUT, cases, IMGEDIT, judge_of(server), runner()[0])
    assert "Paint number 0 red." in asked[0].text
    assert "Blueprint" not in asked[0].text
