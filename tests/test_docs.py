"""The pages of the documentation: every code block runs here as it stands, or says why it does not and is checked all the same.

A page's blocks run in order in a folder of its own. There the nano model, which paints in two steps, is at `weights/DIM`, where the pages
have the published weights, and servers of this machine stand in for OpenAI's and for the Hugging Face hub. A block with a title is the file
of that name. A block after `<!-- not run: REASON -->` is not run: its commands are parsed, its Python is compiled and what it imports is
imported.
"""

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dim_jax.config import read_config
from dim_jax.sampling import Sampler
from dim_jax.weights import bundled
from tests.chat_server import ChatServer, good
from tests.hub_server import HubServer, use
from tests.painter_fixtures import dim, parse, quick_nano

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?"
    r'```(?P<language>\w*)(?: title="(?P<title>.+?)")?\n'
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"bash", "console", "diff", "json", "python", "text", "toml"}
SHELL = {"cmp", "diff", "ls"}
BY_CI = {"make", "pip", "source"}  # the set-up, which was run before the tests
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


class Block(NamedTuple):
    language: str
    text: str
    title: str | None
    reason: str | None  # why it is not run


class Command(NamedTuple):
    words: list[str]
    output: str  # what the page shows after it; "": nothing


def blocks(page: Path) -> list[Block]:
    return [Block(found["language"], found["text"], found["title"], found["reason"]) for found in BLOCK.finditer(page.read_text())]


def commands(block: Block) -> Iterator[Command]:
    """Of a shell block, or those after "$ " of a console block."""
    if block.language == "bash":
        for line in block.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield Command(words, "")
    else:
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            yield Command(shlex.split(line), output)


def check(words: list[str]) -> None:
    """Of a command that is not run, what can be known: what it names exists."""
    if words[0] == "make":
        assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in words[1:])
    elif words[:2] == ["pip", "install"]:
        assert set(re.findall(r"\w+", words[2])) <= EXTRAS
    elif words[0] == "python" or words[0].startswith("launch/"):
        own = list(takewhile(lambda word: word not in ("dim", "--"), words))
        script = ROOT / own[words[0] == "python"]
        text = script.read_text() + (ROOT / "launch/common.sh").read_text()
        options = [word[2:].partition("=")[0] for word in own if word.startswith("--")]
        assert script.suffix == ".sbatch" or all(option in text for option in options)  # sbatch has options of its own
    if "dim" in words and "--help" not in words:
        parse(words[words.index("dim") :])
    elif "--" in words:  # launch scripts: the arguments of dim train
        parse(["dim", "train", *words[words.index("--") + 1 :]])


def run(command: Command) -> None:
    words, output = command
    if words[0] == "dim":
        code, said = dim(*words[1:])
        assert code == 0, said
    elif words[0] in SHELL:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert not done.stderr
        assert done.stdout == output if output else done.returncode == 0
    else:
        assert words[0] in BY_CI, f"{words[0]} is not run; say why: <!-- not run: REASON -->"
        check(words)


def run_block(block: Block) -> None:
    assert block.language in LANGUAGES, "name the language of the block"
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.text)
    if block.language in ("bash", "console"):
        for command in commands(block):
            run(command) if block.reason is None else check(command.words)
    elif block.language == "json":
        assert [json.loads(line) for line in block.text.splitlines()]
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "python" and block.title:
        read_config(Path(block.title), {})
    elif block.language == "python":
        tree = ast.parse(block.text)
        if block.reason is not None:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, "a page", "exec"), {})


PAINTERS: dict[tuple, Sampler] = {}  # compiling takes most of the time, so a checkpoint is opened once


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Path:
    return quick_nano(tmp_path_factory.mktemp("nano") / "nano", 2)


@pytest.fixture
def _place(tmp_path, nano, monkeypatch):
    """A folder with what a checkout has, and with what the pages take for granted."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    Path("build").mkdir()  # as `make demo` does
    monkeypatch.setattr(bundled, "NANO", nano)
    for name in ("dim_jax/nano", "weights/DIM"):
        Path(name).parent.mkdir()
        Path(name).symlink_to(nano, target_is_directory=True)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("DIM_BLUEPRINTS", str(tmp_path / "blueprints.jsonl"))
    load = Sampler.from_pretrained

    def open_once(path: Any, **options: Any) -> Sampler:
        key = Path(path).resolve(), str(sorted(options.items()))
        if nano.resolve() != key[0]:
            return load(path, **options)
        if key not in PAINTERS:
            PAINTERS[key] = load(path, **options)
        return PAINTERS[key]

    monkeypatch.setattr(Sampler, "from_pretrained", open_once)
    with ChatServer(good()) as server, HubServer() as hub:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        use(hub, tmp_path / "hub", monkeypatch)
        yield


@pytest.mark.usefixtures("_place")
@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES if blocks(page)])
def test_code_blocks(page):
    for block in blocks(ROOT / page):
        try:
            run_block(block)
        except BaseException as error:
            error.add_note(f"{page}:\n{block.text}")
            raise


@pytest.mark.usefixtures("_place")
def test_the_notebook():
    """Its cells in order and in one place, as a kernel runs them; each ends with the picture that it shows."""
    names: dict[str, Any] = {}
    for cell in json.loads((ROOT / "examples/edit.ipynb").read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert (cell["outputs"], cell["execution_count"]) == ([], None), "clear the outputs"
        *body, last = ast.parse("".join(cell["source"])).body
        assert isinstance(last, ast.Expr)
        exec(compile(ast.Module(body, []), "a cell", "exec"), names)
        assert eval(compile(ast.Expression(last.value), "a cell", "eval"), names).size == (256, 256)
    assert names["result"].image != names["picture"]
    assert [edit.seed for edit in names["session"].rounds] == [1]


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_every_block_is_fenced(page):
    """So none is missed: no indented blocks, and no fence that `BLOCK` does not see."""
    text = (ROOT / page).read_text()
    assert text.count("\n```") == 2 * len(blocks(ROOT / page))
    assert not re.search(r"\n\n(?:    |\t)", BLOCK.sub("", text))


def test_files_that_are_named_exist():
    """But in reports, which are of their day."""
    for page in PAGES:
        if page.parent.name != "reports":
            named = re.findall(r"`(\w+/[\w/]+\.(?:py|sh|sbatch|svg|md))`", BLOCK.sub("", page.read_text()))
            places = (ROOT, ROOT / "dim_jax", ROOT / "dim_jax/datasets/construction")
            assert not [name for name in named if not any((place / name).is_file() for place in places)], page
