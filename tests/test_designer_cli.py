"""`dim design`, and `dim edit` with a designer: what the user gives, sees and keeps."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dim_jax.designer.local import LocalDesigner
from dim_jax.designer.sections import format_sections
from dim_jax.edit_result import read_metadata
from dim_jax.pipeline import EditPipeline
from dim_jax.settings import Settings
from tests.chat_server import ChatServer, good, status
from tests.designer_answers import GOOD, TEXTS
from tests.painter_fixtures import QUICKLY, dim, largest_difference, one_error, painter, picture

# The tests' painter reads 24 tokens, and a blueprint has more.
EDIT = ("edit", "--checkpoint", "c", "--image", "in.png", "-o", "out.png", "--keep-last", *QUICKLY)


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("DIM_BLUEPRINTS", str(tmp_path / "cache/kept.jsonl"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    picture(40, 40, 1).save("in.png")


def table(number: int = 5, name: str = "rows.jsonl") -> None:
    rows = ({"id": str(i), "image_path": "./in.png", "prompt": f"Edit {i}.", "image_path_target": "./in.png"} for i in range(number))
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def many(server: ChatServer, *more: str) -> tuple[int, str]:
    return dim("design", "rows.jsonl", "-o", "cot.jsonl", "--designer", "openai:m", "--base-url", server.url, *more)


# dim edit


def test_the_painter_reads_what_the_designer_wrote(loaded):
    with ChatServer(good(f"```\n{GOOD}  \n```")) as server:
        designed = ("--designer", "openai:m", "--base-url", server.url, "--prompt", "Make it blue.")
        assert dim(*EDIT, *designed) == (0, "wrote out.png\n")
        metadata = read_metadata("out.png")
        assert (metadata["prompt"], metadata["designer"], metadata["instruction"]) == (GOOD, "openai:m", "Make it blue.")
        (ours,) = EditPipeline(painter())(
            [GOOD], [Image.open("in.png")], settings=Settings(num_steps=3, resolution=64, overflow="keep_last")
        )
        with Image.open("out.png") as painted:
            assert largest_difference(painted, ours.image) <= 1
        # Another seed is another picture of the same blueprint, and is not paid for again.
        assert dim(*EDIT, *designed, "--seed", "1", "--overwrite")[0] == 0
    assert len(server.requests) == 1
    assert "sk-mine" not in Path("cache/kept.jsonl").read_text()


def test_each_round_has_its_own_blueprint(loaded, capsys):
    """Asked for the first before the painter is loaded, for the others from the picture so far; none of them is paid for twice."""
    second = format_sections(TEXTS)
    with ChatServer(good(GOOD), good(second)) as server:
        designed = ("--designer", "openai:m", "--base-url", server.url, "--prompt", "Make it blue.", "--then", "Add a hat.")
        assert dim(*EDIT, *designed, "--show-blueprint", "--rounds") == (0, "wrote out.png\n")
        metadata = read_metadata("out.png")
        (first,) = metadata["earlier"]
        assert (first["prompt"], first["designer"], first["instruction"]) == (GOOD, "openai:m", "Make it blue.")
        assert (metadata["prompt"], metadata["designer"], metadata["instruction"]) == (second, "openai:m", "Add a hat.")
        assert dim(*EDIT, *designed, "--overwrite")[0] == 0
    assert len(server.requests) == 2
    urls = [request.body["messages"][0]["content"][0]["image_url"]["url"] for request in server.requests]
    sent = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    with Image.open("in.png") as source, Image.open("out.1.png") as between:
        assert [picture.tobytes() for picture in sent] == [source.tobytes(), between.tobytes()]


def test_ready_blueprints_of_rounds(loaded):
    other = format_sections(TEXTS)
    Path("cot.jsonl").write_text("".join(json.dumps({"id": i, "prompt": text}) + "\n" for i, text in (("in", GOOD), ("in.2", other))))
    arguments = (*EDIT, "--designer", "file:cot.jsonl", "--prompt", "Blue.", "--then", "Hat.")
    assert dim(*arguments)[0] == 0
    metadata = read_metadata("out.png")
    assert (metadata["earlier"][0]["prompt"], metadata["prompt"]) == (GOOD, other)
    assert 'has no id "in.3"' in one_error(dim(*arguments, "--then", "Cut.", "--overwrite"))


def test_a_blueprint_from_a_file_is_shown_and_painted_as_it_stands(loaded, capsys):
    Path("mine.txt").write_text("\n  Anything that I want.\n")
    code, _ = dim(*EDIT, "--blueprint", "mine.txt")
    assert code == 0
    metadata = read_metadata("out.png")
    assert (metadata["prompt"], metadata["designer"], metadata["instruction"]) == ("Anything that I want.", "file:mine.txt", "")


def test_ready_blueprints_by_id(loaded):
    other = format_sections(TEXTS)
    Path("cot.jsonl").write_text("".join(json.dumps({"id": i, "prompt": text}) + "\n" for i, text in (("in", GOOD), (7, other))))
    assert dim(*EDIT, "--designer", "file:cot.jsonl", "--prompt", "Blue.")[0] == 0
    assert read_metadata("out.png")["prompt"] == GOOD
    assert dim(*EDIT, "--designer", "file:cot.jsonl", "--prompt", "Blue.", "--id", "7", "--overwrite")[0] == 0
    assert read_metadata("out.png")["prompt"] == other
    assert not Path("cache").exists()
    assert 'has no id "8"' in one_error(dim(*EDIT, "--designer", "file:cot.jsonl", "--prompt", "Blue.", "--id", "8", "--overwrite"))


def test_local_designer_edits(loaded, monkeypatch):
    """Random weights write no blueprint; the error says what came instead. With weights that do, it would be painted."""
    message = one_error(dim(*EDIT, "--designer", "local", "--prompt", "Make it blue."))
    assert "local wrote no blueprint for in.png: " in message
    assert not Path("out.png").exists()
    written = []
    answer = LocalDesigner._write

    def learned(self, *question):
        """A trained model is too large for a test: its answer stands in for that of the random one, which is written all the same."""
        (found,) = answer(self, *question)
        written.append(self.encoder is painter().dim.encoder)
        return [type(found)(GOOD, None, found.tokens_in, found.tokens_out)]

    monkeypatch.setattr(LocalDesigner, "_write", learned)
    assert dim(*EDIT, "--designer", "local", "--prompt", "Make it blue.")[0] == 0
    assert written == [True]
    assert read_metadata("out.png")["designer"] == "local"
    assert read_metadata("out.png")["prompt"] == GOOD


def test_a_refusal_is_one_error_and_nothing_is_loaded(monkeypatch):
    with ChatServer(good("I'm sorry, I can't help with that.")) as server:
        designed = ("--designer", "openai:m", "--base-url", server.url, "--prompt", "Make it blue.")
        assert "openai:m wrote no blueprint for in.png: the model refused" in one_error(dim(*EDIT, *designed))
        assert "refused" in one_error(dim(*EDIT, *designed))
    assert len(server.requests) == 2  # whoever asks again wants another answer


@pytest.mark.parametrize(
    "arguments",
    [
        EDIT, (*EDIT, "--designer", "local"), (*EDIT, "--prompt", "x", "--show-blueprint"),
        (*EDIT, "--designer", "local", "--prompt", "x", "--blueprint", "in.png"),
        ("design", "--designer", "none", "--image", "in.png", "--prompt", "x"), ("design", "--designer", "openai:m", "--image", "in.png"),
        ("design", "rows.jsonl", "--designer", "openai:m"), ("design", "--image", "in.png", "--prompt", "x"),
    ],
)  # fmt: skip
def test_wrong_usage(arguments):
    code, text = dim(*arguments)
    assert code == 2, text
    assert os.listdir() == ["in.png"]


@pytest.mark.parametrize(("content", "words"), [(b" \n", "empty"), (b"\xff\xfe", "cannot be read"), (None, "cannot be read")])
def test_a_blueprint_file_that_cannot_be_used(content, words):
    if content is not None:
        Path("mine.txt").write_bytes(content)
    assert words in one_error(dim(*EDIT, "--blueprint", "mine.txt"))


# dim design


def test_one_picture_in_a_process_of_its_own():
    """Standard output holds the blueprint alone, and no JAX is loaded."""
    script = "import sys; from dim_jax.cli.main import main; sys.argv[0] = 'dim'; main()"
    check = "import atexit, sys; atexit.register(lambda: print(sorted({'jax', 'flax', 'torch'} & set(sys.modules)), file=sys.stderr)); "
    with ChatServer() as server:
        arguments = ("design", "--image", "in.png", "--prompt", "Blue.", "--designer", "vllm:m", "--base-url", server.url)
        done = subprocess.run([sys.executable, "-c", check + script, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{GOOD}\n", "[]\n")


def test_one_picture_to_a_file_that_edit_reads(loaded, capsys):
    with ChatServer() as server:
        arguments = ("design", "--image", "in.png", "--prompt", "Blue.", "--designer", "vllm:m", "--base-url", server.url, "-o", "b.txt")
        assert dim(*arguments) == (0, "wrote b.txt\n")
        assert "exists" in one_error(dim(*arguments))
    assert Path("b.txt").read_text() == f"{GOOD}\n"
    assert dim(*EDIT, "--blueprint", "b.txt", "--prompt", "Blue.")[0] == 0
    metadata = read_metadata("out.png")
    assert (metadata["prompt"], metadata["designer"], metadata["instruction"]) == (GOOD, "file:b.txt", "Blue.")


def test_design_jsonl_resumes():
    table()
    with ChatServer() as server:
        code, text = many(server, "--budget-tokens", "7000", "--concurrency", "1")
        assert code == 0
        assert "stopped by the budget" in text
        code, text = many(server)
        assert (code, text.count("\n")) == (0, 1)
        assert "0 failed" in text
        assert "5,500 tokens" in text
    assert len(server.requests) == 5
    rows = [json.loads(line) for line in Path("cot.jsonl").read_text().splitlines()]
    assert all(row["prompt"] == GOOD and row["image_path_target"] == "./in.png" for row in rows)
    # What was written is what `file:` reads.
    Path("again.jsonl").unlink(missing_ok=True)
    assert "5 answered" in dim("design", "rows.jsonl", "-o", "again.jsonl", "--designer", "file:cot.jsonl")[1]


def test_many_rows_with_prices_and_failures():
    table()
    Path("prices.json").write_text('{"openai:m": {"input": 2, "output": 10}}')
    with ChatServer(status(400, "no"), good()) as server:
        code, text = many(server, "--prices", "prices.json", "--budget-dollars", "1", "--requests-per-minute", "6000")
        assert code == 0
        assert "4 answered, 1 failed" in text
        assert "$0.01" in text
        assert "cot.failures.jsonl" in text
        assert "1 answered, 0 failed, 4 skipped" in many(server, "--retry-failed")[1]


def test_a_wrong_key_is_one_error():
    table()
    with ChatServer(status(401)) as server:
        assert "OPENAI_API_KEY" in one_error(many(server))
    assert sorted(os.listdir()) == ["in.png", "rows.jsonl"]


ROW = {"id": "1", "image_path": "in.png", "prompt": "x"}
BAD_ROWS = {
    "no json": ("{", "line 1: is not JSON"),
    "no object": ("[1]", "line 1: each line must be"),
    "no id": (json.dumps({**ROW, "id": None}), '"id"'),
    "no picture": (json.dumps({"id": "1", "prompt": "x"}), "image_path"),
    "no instruction": (json.dumps({**ROW, "prompt": " "}), "prompt"),
    "twice": (f"{json.dumps(ROW)}\n{json.dumps(ROW)}", "row 2"),
    "empty": ("\n", "no rows"),
    "missing": (json.dumps({**ROW, "image_path": "none.png"}), "1 of 1 pictures are missing, such as none.png"),
}


@pytest.mark.parametrize(("text", "words"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_told_before_anything_is_asked(text, words):
    Path("rows.jsonl").write_text(text)
    with ChatServer() as server:
        assert words in one_error(many(server))
    assert not server.requests


def test_a_table_with_a_byte_order_mark():
    table(1)
    Path("rows.jsonl").write_bytes(b"\xef\xbb\xbf" + Path("rows.jsonl").read_bytes())
    with ChatServer() as server:
        assert "1 answered" in many(server)[1]


@pytest.mark.parametrize("output", ["rows.jsonl", "cot.json", "none/cot.jsonl"])
def test_invalid_outputs_are_refused(output):
    table()
    before = Path("rows.jsonl").read_bytes()
    assert output in one_error(dim("design", "rows.jsonl", "-o", output, "--designer", "vllm:m"))
    assert Path("rows.jsonl").read_bytes() == before


def test_ready_blueprints_that_contradict_each_other_are_named_by_their_line():
    lines = [json.dumps({"id": "1", "prompt": text}) for text in (GOOD, GOOD + " And more.")]
    Path("cot.jsonl").write_text(f"{lines[0]}\n\n{lines[1]}\n")
    assert 'cot.jsonl, line 3: id "1" has another blueprint' in one_error(dim(*EDIT, "--designer", "file:cot.jsonl", "--prompt", "Blue."))
