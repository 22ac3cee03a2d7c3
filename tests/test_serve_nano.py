"""`dim serve` as it is started, with the bundled model: real edits by the OpenAI client, the page's examples, and ComfyUI's nodes."""

import importlib.util
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from dim_jax.designer.blueprint import parse
from dim_jax.processing.pictures import open_picture
from dim_jax.weights.bundled import bundled_checkpoint
from tests.painter_fixtures import largest_difference
from tests.started import started
from tests.test_docs import blocks
from tests.test_serve import connected, opened, png

ROOT = Path(__file__).parents[1]
SAMPLES = bundled_checkpoint() / "samples"
TOKEN = "nano-token"
QUICK = {"steps": 4, "seed": 1, "designer": "none"}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a running one. Pairs are painted in one batch, so that few programs are compiled."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "tokens").write_text(f"other\n{TOKEN}\n")
    options = ("--port", "0", "--batch", "2", "--wait-ms", "300", "--token", str(folder / "tokens"), "--designer", "local")
    with started(folder / "log", [sys.executable, "-m", "dim_jax.cli", "serve", *options]) as run:
        run.wait_until(lambda: "serving nano at" in run.said())
        yield re.search(r"http://127.0.0.1:\d+", run.said())[0]
        run.process.send_signal(signal.SIGTERM)
        code, said = run.ended(60)
    assert code == 0, said
    assert TOKEN not in said
    assert "POST /v1/images/edits 200" in said


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with connected(server, TOKEN) as made:
        yield made


def test_an_edit_changes_what_it_should(client):
    book = open_picture(SAMPLES / "book.png")
    for item in client.images.edit(image=png(book), prompt="Make the book red.", n=2, extra_body=QUICK).data:
        cover = np.asarray(opened(item).convert("RGB"), float)[12:44, 20:50].mean((0, 1))
        assert cover[0] > cover[1:].max() + 50


def test_the_designer_writes_a_blueprint(client):
    answer = client.images.edit(
        image=png(open_picture(SAMPLES / "woman.png")), prompt="Give the woman white hair.", n=2, extra_body={"steps": 4, "seed": 1}
    )
    written = {item.revised_prompt for item in answer.data}
    assert len(written) == 1
    assert "white hair" in parse(written.pop()).instruction.lower()
    metadata = opened(answer.data[0]).info
    assert (metadata["designer"], metadata["instruction"]) == ("local", "Give the woman white hair.")


def test_results_do_not_depend_on_who_asks_at_the_same_time(client):
    """Not even where another prompt is longer, so that the condition of both is padded: to one of 255 grey levels."""
    moon, longer = png(open_picture(SAMPLES / "moon.png")), "Show a full moon. " * 8

    def edit(prompt: str) -> Image.Image:
        return opened(client.images.edit(image=moon, prompt=prompt, extra_body=QUICK).data[0])

    with ThreadPoolExecutor(2) as clients:
        twins = list(clients.map(edit, ["Show a full moon."] * 2))
        mixed = list(clients.map(edit, ["Show a full moon.", longer]))
    assert largest_difference(twins[0], twins[1]) <= 1
    assert largest_difference(twins[0], mixed[0]) <= 1
    assert largest_difference(twins[0], mixed[1]) > 1


def test_outside_of_the_mask_a_photograph_is_what_it_was(client):
    source = open_picture(ROOT / "examples/coffee.jpg").resize((300, 200))
    alpha = np.full((200, 300), 255, np.uint8)
    alpha[50:150, 100:220] = 0
    mask = png(Image.fromarray(np.dstack([np.zeros((200, 300, 3), np.uint8), alpha])))
    for item in client.images.edit(image=png(source), mask=mask, prompt="Make the cup blue.", n=2, extra_body=QUICK).data:
        result, before = np.asarray(opened(item)), np.asarray(source)
        np.testing.assert_array_equal(result[alpha > 0], before[alpha > 0])
        assert (result[alpha == 0] != before[alpha == 0]).mean() > 0.5


def test_the_pages_examples(server, client, tmp_path, monkeypatch):
    (tmp_path / "build").mkdir()
    (tmp_path / "dim_jax").mkdir()
    (tmp_path / "dim_jax/nano").symlink_to(bundled_checkpoint())
    monkeypatch.chdir(tmp_path)
    programs = [block for block in blocks(ROOT / "docs/serve.md") if block.language == "python" and block.reason]
    assert len(programs) == 2
    for block in programs:
        text = block.text.replace("http://127.0.0.1:8000", server).replace('api_key="none"', f'api_key="{TOKEN}"')
        names = dict[str, object]()
        exec(compile(text, "docs/serve.md", "exec"), names)
        names["client"].close()
    assert open_picture("build/white-1.png").size == (64, 64)


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("comfyui_dim", ROOT / "examples/comfyui_dim/__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(image: Image.Image) -> torch.Tensor:
    """As ComfyUI loads a picture."""
    return torch.from_numpy(np.asarray(image, np.float32) / 255)[None]


def test_comfyui_nodes(server, nodes, monkeypatch):
    monkeypatch.setenv("DIM_SERVE_TOKEN", TOKEN)
    made = {name: (node(), getattr(node(), node.FUNCTION)) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}
    assert made.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    woman, options = pixels(open_picture(SAMPLES / "woman.png")), {"seed": 1, "count": 2, "steps": 4, "guidance": -1, "server": server}
    for node, function in made.values():
        assert function.__func__.__code__.co_varnames[1 : function.__func__.__code__.co_argcount]
        assert {*node.INPUT_TYPES()["required"]} <= {*function.__func__.__code__.co_varnames}
    edit, generate = made["DimEdit"][1], made["DimGenerate"][1]
    (images,) = edit(woman, "Give the woman white hair.", **options)
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    (masked,) = edit(woman, "Give the woman white hair.", mask=mask, **options)
    assert torch.equal(masked[:, 32:], woman[:, 32:].expand(2, -1, -1, -1))
    assert not torch.equal(masked[:, :32], woman[:, :32].expand(2, -1, -1, -1))
    assert (masked[:, :32] - images[:, :32]).abs().mean() < 0.1, "the same edit, fitted to what stays"
    assert generate("Noto emoji of a cat.", width=0, height=0, **options)[0].shape == (2, 64, 64, 3)


def test_comfyui_nodes_say_what_is_wrong(server, nodes, monkeypatch):
    options = {"width": 0, "height": 0, "seed": 1, "count": 1, "steps": 4, "guidance": 1.0}
    generate = nodes.DimGenerate().generate
    monkeypatch.setenv("DIM_SERVE_TOKEN", "wrong")
    with pytest.raises(RuntimeError, match="401: A token is needed"):
        generate("a", server=server, **options)
    with pytest.raises(RuntimeError, match="Start `dim serve`"):
        generate("a", server="http://127.0.0.1:9", **options)
