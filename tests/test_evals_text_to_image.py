"""`dim evaluate` of text to image: GenEval in its makers' layout, and prompts that a designer writes out."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dim_jax.edit_result import read_metadata
from tests import benchmark_fixtures as made
from tests.chat_server import ChatServer, Request, completion, response
from tests.test_evals_run import evaluate, rows, text_to_image, work_in


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch, loaded):
    work_in(tmp_path, monkeypatch)


SCORER = """
import json, pathlib, sys
rows = [{"filename": str(file), "tag": "x", "correct": file.stem < "0002"} for file in pathlib.Path(sys.argv[1]).rglob("samples/*.png")]
assert all(json.loads((pathlib.Path(row["filename"]).parents[1] / "metadata.jsonl").read_text())["include"] for row in rows)
pathlib.Path(sys.argv[2]).write_text("".join(json.dumps(row) + chr(10) for row in rows))
"""


def test_geneval_in_its_makers_layout_by_its_makers_scorer():
    made.geneval(Path("geneval"))
    Path("scorer.py").write_text(SCORER)
    command = f"{sys.executable} scorer.py {{pictures}} {{results}}"
    code, text = evaluate("--official-scorer", command, name="geneval", data="geneval")
    assert code == 0, text
    official = Path("out/direct/official")
    assert sorted(str(path.relative_to(official)) for path in official.rglob("*.png")) == [
        f"0000{i}/samples/000{k}.png" for i in range(3) for k in range(4)
    ]
    assert json.loads((official / "00002/metadata.jsonl").read_text()) == made.GENEVAL[2]
    metrics = json.loads(Path("out/direct/metrics.json").read_text())
    assert metrics["mean"] == {"correct": 0.5}
    assert metrics["categories"] == {"counting": {"correct": 0.5}, "single_object": {"correct": 0.5}}
    row = rows("direct")["2"]
    assert row["pictures"] == [f"pictures/counting/2.{k}.png" for k in range(4)]
    seeds = {read_metadata(Path("out/direct", name))["seed"] for name in row["pictures"]}
    assert len(seeds) == 4
    # Prompts that were written before are the designed track.
    made.put_lines(Path("rewritten.jsonl"), [{"id": str(i), "prompt": f"A fine picture {i}."} for i in range(3)])
    assert evaluate("--designer", "file:rewritten.jsonl", "--tracks", "designed", name="geneval", data="geneval")[0] == 0
    assert rows("designed")["1"]["painted_prompt"] == "A fine picture 1."
    for wrong, says in (("true", "must name {pictures}"), ("nothing-there {pictures} {results}", "cannot be started"),
                        ("false {pictures} {results}", "ended with 1"), ("true {pictures} {results}", "wrote no results")):  # fmt: skip
        assert says in evaluate("--stage", "judge", "--official-scorer", wrong, name="geneval", data="geneval")[1]


def test_prompts_for_text_to_image_are_written_out_by_a_designer():
    """Each once, whatever the number of pictures; a prompt that comes back too short has none, and its case is not painted."""

    def written_out(request: Request) -> Iterator[bytes]:
        assert not request.pictures
        prompt = request.text.split("\n\n")[1]
        yield response(
            200, completion("Too short." if "cow" in prompt else f"{prompt}, {'in the light of a late afternoon, ' * 9}on grass.")
        )

    with ChatServer(written_out) as server:
        options = ("--designer", "openai:m", "--base-url", server.url, "--stage", "generate")
        for _ in range(2):
            code, text = text_to_image(*options)
            assert code == 0, text
    assert len(server.requests) == 3
    found = rows("designed", "t2i")
    assert set(found) == {"0", "2"}
    assert found["2"]["painted_prompt"].startswith("three forks, in the light of")
    assert read_metadata(Path("t2i/designed", found["2"]["pictures"][3]))["designer"] == "openai:m"
    assert '1 cases have no blueprint, such as "1": the answer is too short' in text
    assert set(rows("direct", "t2i")) == {"0", "1", "2"}
