"""The hub, by its own library and a server of this machine: what is fetched, kept and refused, and what a push leaves there."""

import os
import re
import socket
import subprocess
import sys

import pytest

from dim_jax.errors import InputError
from dim_jax.storage import hub
from tests.full_disk import files_of_at_most
from tests.hub_server import READ_ONLY, HubServer, use
from tests.local_server import free_port
from tests.painter_fixtures import dim, one_error

NAME, ALL = "org/model", ("*",)
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 200, "vae/config.json": b"{ }"}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """With one repository; each test has a cache of its own."""
    with HubServer() as server:
        use(server, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library's, before it tries again
        server.add(NAME, FILES)
        yield server


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(name=NAME, **options) -> str:
    with pytest.raises(InputError) as error:
        hub.fetch(name, ALL, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_what_is_read_is_fetched_and_once(server):
    folder = hub.fetch(NAME, ("*.json",))
    assert content(folder) == {name: data for name, data in FILES.items() if name.endswith(".json")}
    assert content(hub.fetch(NAME, ALL, ignored=("vae/*",))).keys() == {"config.json", "model.safetensors", "vae/config.json"}
    loaded = [path for method, path, _ in server.requests if method == "GET" and ("/resolve/" in path or "/cdn/" in path)]
    assert len(loaded) == len(set(loaded)) == 3
    server.add("org/other", FILES)
    with pytest.raises(InputError, match=r"none of the files \*\.onnx"):
        hub.fetch("org/other", ("*.onnx",))


def test_a_path_that_exists_counts_and_others_are_names(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    commit = server.repositories[NAME].branches["main"]
    located = hub.locate(NAME, ALL)
    assert (located.path.name, located.name) == (commit, f"{NAME}@{commit}")
    (tmp_path / NAME).mkdir()
    assert hub.locate(NAME, ALL) == hub.Located(hub.as_path(NAME), NAME)
    for path in ("org/none.safetensors", "/org/none", "./org/none", "org", "a/b/c"):
        assert hub.locate(path, ALL).name == path
    with pytest.raises(InputError, match=r"a/b/c: a revision \(v1\) goes with a model of the hub"):
        hub.locate("a/b/c", ALL, revision="v1")
    with pytest.raises(InputError, match="names a revision, and v2 is another one"):
        hub.locate("org/x@v1", ALL, revision="v2")


def test_revisions_and_a_branch_that_moves(server, monkeypatch):
    repository = server.repositories[NAME]
    first = repository.branches["main"]
    repository.branches["v1"] = repository.branches["refs/pr/1"] = first
    assert hub.locate(NAME, ALL).path.name == first
    second = repository.commit(FILES | {"config.json": b'{"new": 1}'})
    assert hub.locate(NAME, ALL).path.name == second
    assert (hub.locate(NAME, ALL).path / "config.json").read_bytes() == b'{"new": 1}'
    for revision in ("v1", first, "refs/pr/1"):
        assert hub.locate(f"{NAME}@{revision}", ALL).path.name == hub.locate(NAME, ALL, revision=revision).path.name == first
    assert 'it has no revision "v9"' in refused(revision="v9")
    # Without the hub: what main was last, and the tag; a commit needs no question at all.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(server.requests)
    assert hub.locate(NAME, ALL).path.name == second
    assert hub.locate(f"{NAME}@v1", ALL).path.name == hub.locate(f"{NAME}@{first}", ALL).path.name == first
    assert "HF_HUB_OFFLINE is set" in refused(revision="v2")
    assert len(server.requests) == before


def test_offline_a_part_is_not_a_model(server, monkeypatch):
    hub.fetch(NAME, ("config.json",))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.fetch(NAME, ("config.json",)).is_dir()
    for name in (NAME, "org/other"):
        message = refused(name)
        assert message.startswith(f"{name}: is not a folder or file here, nor whole in the cache")
        assert "HF_HUB_OFFLINE is set" in message


def test_what_may_not_be_read(server, monkeypatch):
    server.add("org/private", FILES, private=True)
    server.add("org/gated", FILES, gated=True)
    assert content(hub.fetch("org/private", ALL)) == FILES
    assert "there is no such repository, or it is private" in refused("org/missing")
    assert "its owner grants access" in refused("org/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "401, the token is not known: log in" in refused("org/gated")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", os.devnull)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", os.devnull)
    assert "or it is private: log in (hf auth login, or set HF_TOKEN)" in refused("org/private-too")
    assert content(hub.fetch("org/private", ALL)) == FILES  # from the cache


@pytest.mark.parametrize("faults", [{"/cdn/": [429, 429]}, {"/resolve/": [500, 503, "cut"]}, {"/tree/": [429]}])
def test_faults_that_pass(server, faults, caplog):
    server.faults |= faults
    assert content(hub.fetch(NAME, ALL)) == FILES
    assert server.faults == {key: [] for key in faults}
    assert not caplog.records


def test_a_connection_that_is_cut_goes_on_where_it_was(server, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)  # what is kept: 10 MiB of a file of GiB
    server.faults["/cdn/"] = ["cut", "cut"]
    assert content(hub.fetch(NAME, ALL)) == FILES
    size = len(FILES["model.safetensors"])
    assert [asked for _, path, asked in server.requests if "/cdn/" in path] == [None, f"bytes={size // 2}-", f"bytes={size * 3 // 4}-"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("faults", "says"),
    [({"/cdn/": ["cut"] * 99}, "cannot be fetched"), ({"/api/models": [500]}, "the hub answers 500"), ({"/cdn/": [503]}, "answers 503"),
     ({"/api/models": [429]}, "429, too many requests: wait some minutes"), ({"/cdn/": [403]}, "403")],
)  # fmt: skip
def test_faults_that_stay_and_what_was_fetched_before(server, faults, says):
    server.faults |= faults
    assert says in refused()
    server.faults.clear()
    server.requests.clear()
    assert content(hub.fetch(NAME, ALL)) == FILES


@pytest.mark.parametrize(
    ("route", "body", "says"),
    [("/cdn/", FILES["model.safetensors"][::-1], "model.safetensors came with other bytes"), ("/cdn/", b"<html>", "should be of size"),
     ("/api/models", b"[]", "its answer is not that of a hub"), ("/api/models", b"[" * 10**5, "its answer is not that of a hub"),
     ("/tree/", b"3", "its answer is not that of a hub"), ("/api/models", b"<html>", "cannot be fetched")],
)  # fmt: skip
def test_answers_of_something_else_are_refused_and_not_kept(server, route, body, says):
    server.bodies[route] = body
    assert says in refused()
    server.bodies.clear()
    assert content(hub.fetch(NAME, ALL)) == FILES


def test_a_full_disk_and_a_folder_that_cannot_be_made(server, tmp_path, monkeypatch, recwarn):
    with files_of_at_most(8192):
        assert "File too large). Free some space, or name another folder for its cache (HF_HOME)." in refused()
    assert content(hub.fetch(NAME, ALL)) == FILES
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file/cache"))
    assert "or name another folder for its cache (HF_HOME)." in refused()
    assert not recwarn


def test_a_hub_that_is_gone_leaves_the_cache(server, monkeypatch):
    folder = hub.fetch(NAME, ALL)
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    assert hub.fetch(NAME, ALL) == folder
    assert "cannot be fetched" in refused("org/other")


def test_a_process_by_its_environment(server, tmp_path):
    """HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN, as people set them."""
    server.add("org/private", FILES, private=True)
    program = "from dim_jax.storage import hub; print(hub.locate('org/private@main', ['*']).name)"
    options = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": READ_ONLY}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | options, check=True
    )  # fmt: skip
    assert done.stdout == f"org/private@{server.repositories['org/private'].branches['main']}\n"
    assert not done.stderr


def test_a_hub_that_says_nothing_is_out_of_reach(server, monkeypatch):
    monkeypatch.setattr(hub, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts; nobody answers
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "timed out" in refused()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("HF_ENDPOINT", "http://[::1", "Invalid IPv6"), ("HF_ENDPOINT", "http://hub:99999", "Port out of range"),
     ("HF_HUB_ETAG_TIMEOUT", "2s", "2s")],
)  # fmt: skip
def test_variables_that_the_library_could_not_read(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    assert re.search(f"{name} is .*, which cannot be read .*{says}", one_error(dim("convert", NAME, "out")))
