"""A visitor of `dim web` without a browser: what the page would send, and what it would get."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

API = "/gradio_api"


@dataclass
class Visitor:
    """One with cookies of his own, and a page that he has opened. `received`: everything that the server has sent him."""

    url: str
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    received: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.http = httpx.Client(base_url=self.url, timeout=120)
        self.page = self.get("/").text
        self.config = self.get("/config").json()

    def close(self) -> None:
        self.http.close()

    def get(self, path: str) -> httpx.Response:
        response = self.http.get(path)
        self.received += [response.text, str(response.headers)]
        return response

    def post(self, path: str, **options: Any) -> httpx.Response:
        response = self.http.post(API + path, **options)
        self.received += [response.text, str(response.headers)]
        return response

    def upload(self, name: str, data: bytes) -> str:
        """A file's path on the server, as it tells those who uploaded it."""
        (path,) = self.post("/upload", files={"files": (name, data)}).json()
        return path

    def component(self, **properties: Any) -> dict:
        """The one that has these."""
        found = (one for one in self.config["components"] if properties.items() <= one.get("props", {}).items())
        return next(found)

    def join(self, component: dict, event: str, **values: Any) -> httpx.Response:
        """Begin what an event of a component begins; `values` are those of inputs, by label, instead of the page's first ones."""
        dependency = next(one for one in self.config["dependencies"] if [component["id"], event] in one["targets"])
        inputs = [next(one for one in self.config["components"] if one["id"] == number)["props"] for number in dependency["inputs"]]
        data = [values.get(props["label"].partition(" ")[0].strip(":?"), props.get("value")) for props in inputs]
        body = {"data": data, "fn_index": dependency["id"], "session_hash": self.session, "trigger_id": component["id"]}
        return self.post("/queue/join", json=body)

    def events(self, component: dict, event: str, **values: Any) -> Iterator[dict]:
        """What the page hears of it, to its end."""
        started = self.join(component, event, **values)
        assert started.status_code == 200, started.text
        event_id = started.json()["event_id"]
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                self.received.append(line)
                if line.startswith("data: "):
                    message = json.loads(line.removeprefix("data: "))
                    if message.get("event_id") == event_id:
                        yield message
                        if message["msg"] == "process_completed":
                            return

    def open(self, file: Path) -> list[dict]:
        """Choose a picture."""
        return list(self.events(self.component(label="Picture: drop one here, or click"), "upload", Picture=self.given(file)))

    def given(self, file: Path) -> dict:
        """What a browser says of a file that it has uploaded."""
        return {"path": self.upload(file.name, file.read_bytes()), "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}

    def paint(self, prompt: str, **values: Any) -> list[dict]:
        """Paint a round."""
        return list(self.events(self.component(elem_id="dim-paint"), "click", What=prompt, **values))


def paths(messages: list[dict]) -> list[str]:
    """The files that were spoken of, in order."""
    text = json.dumps(messages)
    return [part.partition('"')[0] for part in text.split('"path": "')[1:]]
