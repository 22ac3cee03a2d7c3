"""A Hugging Face hub on this machine, as far as its library asks it: repositories, files in ranges, uploads, commits; and faults."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.local_server import LocalServer

TOKEN, READ_ONLY = "hf_mine", "hf_read"
LARGE = 5000  # bytes from which a file is stored by its hash, as LFS has it


@dataclass
class Repository:
    """Branches and commits; a commit is its files."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], message: str = "files", branch: str = "main") -> str:
        """These are all files of the branch from now on; the commit's hash."""
        hashes = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())
        sha = hashlib.sha1(json.dumps([len(self.commits), hashes]).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class HubServer(LocalServer):
    """Serves in a `with` statement.

    Attributes:
        repositories: by path, "ORG/NAME" or "datasets/ORG/NAME".
        faults: what becomes of the next requests whose path holds the key: an HTTP status, or "cut" after half of the answer.
        bodies: what is answered instead, with status 200, where the path holds the key.
        requests: method, path and range of each.
        uploaded: files by their hash, which commits then name.
    """

    def __init__(self):
        hub = self

        class Handler(_Handler):
            server_of = hub

        super().__init__(Handler)
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.bodies: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.uploaded: dict[str, bytes] = {}

    def add(self, name: str, files: Mapping[str, bytes], **more: Any) -> Repository:
        repository = self.repositories[name] = Repository(**more)
        repository.commit(files)
        return repository

    def fault(self, path: str) -> int | str | None:
        with self.lock:
            waiting = next((waiting for key, waiting in self.faults.items() if key in path and waiting), None)
            return waiting.pop(0) if waiting else None


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.handle_request()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def handle_request(self) -> None:
        hub, path = self.server_of, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub.requests.append((self.command, path, self.headers.get("Range")))
        self.fault = hub.fault(path)
        if isinstance(self.fault, int):
            return self.fail(self.fault, "", "no luck")
        if body_of := [data for key, data in hub.bodies.items() if key in path]:
            return self.answer(200, body_of[0])
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.token not in ("", TOKEN, READ_ONLY):
            return self.fail(401, "", "Invalid credentials in Authorization header")
        for pattern, answer in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return answer(self, body, **found.groupdict())
        return self.fail(404, "", f"no route {self.command} {path}")

    def fail(self, status: int, code: str, message: str, **more: str) -> None:
        self.answer(status, json.dumps({"error": message, **more}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self, status: int, data: bytes = b"", headers: Mapping[str, Any] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.fault == "cut"
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def open(self, name: str, *, write: bool = False) -> Repository | None:
        """The repository, if this token may read it or write to it; else the answer is sent."""
        repository = self.server_of.repositories.get(name)
        if repository is None or (repository.private and not self.token):
            self.fail(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        if write and self.token != TOKEN:
            self.fail(403, "", "You don't have the rights")
            return None
        return repository

    def files_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.open(name)
        if repository is None:
            return None
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return sha, repository.commits[sha]

    # Reading

    def whoami(self, body: bytes) -> None:
        self.json({"name": "me", "orgs": []}) if self.token else self.fail(401, "", "Invalid username or password.")

    def info(self, body: bytes, kind: str, repo: str, revision: str | None = None) -> None:
        name = _name(kind, repo)
        if found := self.files_of(name, revision or "main"):
            siblings = [{"rfilename": file} for file in found[1]]
            self.json({"id": repo, "sha": found[0], "private": self.server_of.repositories[name].private, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        if found := self.files_of(_name(kind, repo), revision):
            self.json([_entry(path, data) for path, data in found[1].items()])

    def resolve(self, body: bytes, kind: str | None, repo: str, revision: str, file: str) -> None:
        """A small file comes from here, a large one from another host, which must not see the token."""
        found = self.files_of(f"{kind or ''}{repo}", revision)
        if found is None:
            return
        if self.server_of.repositories[f"{kind or ''}{repo}"].gated:
            self.fail(403 if self.token else 401, "GatedRepo", f"Access to model {repo} is restricted")
        elif file not in found[1]:
            self.fail(404, "EntryNotFound", "Entry not found")
        else:
            data, headers = found[1][file], {"X-Repo-Commit": found[0], "ETag": f'"{_oid(found[1][file])}"', "Accept-Ranges": "bytes"}
            if len(data) < LARGE:
                self.send(data, headers)
                return
            sha, place = hashlib.sha256(data).hexdigest(), self.server_of.url.replace("127.0.0.1", "localhost")
            self.server_of.uploaded[sha] = data
            linked = {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": len(data), "Location": f"{place}/cdn/{sha}"}
            self.answer(302, headers=headers | linked)

    def cdn(self, body: bytes, sha: str) -> None:
        assert not self.token, "the token went to another host"
        self.send(self.server_of.uploaded[sha], {"ETag": f'"{sha}"'})

    def send(self, data: bytes, headers: dict[str, Any]) -> None:
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(asked[1])
            self.answer(206, data[start:], headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            self.answer(200, data, headers)

    # Writing

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("private") or asked.get("visibility") == "private"
        if name in self.server_of.repositories:
            self.fail(409, "", "You already created this model repo", url=f"{self.server_of.url}/{name}")
        elif self.token != TOKEN:
            self.fail(403, "", f"You don't have the rights to create a model under {asked['organization']}")
        else:
            self.server_of.add(name, {".gitattributes": b""}, private=private)
            self.json({"url": f"{self.server_of.url}/{name}", "name": name})

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        if repository := self.open(repo, write=True):
            if branch in repository.branches:
                self.fail(409, "", "Reference already exists")
                return
            repository.branches[branch] = repository.branches["main"]
            self.json({})

    def validate(self, body: bytes) -> None:
        """As strict as the library's own reader of cards."""
        from huggingface_hub import ModelCard

        try:
            assert ModelCard(json.loads(body)["content"], ignore_metadata_errors=False).data.to_dict()
            self.json({"errors": [], "warnings": []})
        except (ValueError, AssertionError) as error:
            self.answer(400, json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode())

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self.open(repo, write=True):
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": file["path"], "uploadMode": modes[file["size"] >= LARGE], "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.json({"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.server_of.url}/lfs/{asked['oid']}"}}
            objects.append(asked | ({} if asked["oid"] in self.server_of.uploaded else {"actions": upload}))
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, sha: str) -> None:
        assert hashlib.sha256(body).hexdigest() == sha
        self.server_of.uploaded[sha] = body
        self.answer(200)

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        repository = self.open(repo, write=True)
        if repository is None:
            return
        header, *operations = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit") not in (None, repository.branches[revision]):
            self.fail(412, "", "A commit has happened since")
            return
        files = repository.files(revision).copy()
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server_of.uploaded[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        sha = repository.commit(files, header["value"]["summary"], revision)
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.server_of.url}/{repo}/commit/{sha}"})


KIND, REPO, REVISION = r"(?P<kind>model|dataset)s", r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+|refs/pr/\d+)"
ROUTES: dict[str, Any] = {
    r"GET /api/whoami-v2": _Handler.whoami,
    rf"GET /api/{KIND}/{REPO}": _Handler.info,
    rf"GET /api/{KIND}/{REPO}/revision/{REVISION}": _Handler.info,
    rf"GET /api/{KIND}/{REPO}/tree/{REVISION}/?": _Handler.tree,
    rf"(?:HEAD|GET) /(?P<kind>datasets/)?{REPO}/resolve/{REVISION}/(?P<file>.+)": _Handler.resolve,
    r"(?:HEAD|GET) /cdn/(?P<sha>\w+)": _Handler.cdn,
    r"POST /api/repos/create": _Handler.create,
    rf"POST /api/models/{REPO}/branch/(?P<branch>.+)": _Handler.branch,
    r"POST /api/validate-yaml": _Handler.validate,
    rf"POST /api/models/{REPO}/preupload/{REVISION}": _Handler.preupload,
    r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /lfs/(?P<sha>\w+)": _Handler.upload,
    rf"POST /api/models/{REPO}/commit/{REVISION}": _Handler.commit,
}


def _name(kind: str, repo: str) -> str:
    return repo if kind == "model" else f"{kind}s/{repo}"


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
    if len(data) < LARGE:
        return entry
    return entry | {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}


def use(server: HubServer, cache: Any, patch: pytest.MonkeyPatch, token: str = TOKEN) -> None:
    """The hub's library, which reads its environment once, takes this server, an empty cache and this token."""
    constants = "huggingface_hub.constants"
    patch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    patch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)  # whose uploads go by a protocol of their own
    patch.setattr(f"{constants}.ENDPOINT", server.url)
    patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(f"{constants}.HF_URL_HOSTS", frozenset({"127.0.0.1"}))
    patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    patch.setenv("HF_TOKEN", token)
