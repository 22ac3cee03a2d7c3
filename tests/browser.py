"""A headless Chromium for tests of pages, driven by WebDriver (W3C) through chromedriver, with the standard library alone."""

import base64
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.local_server import free_port

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
NEEDED = "DIM_NEEDS_BROWSER"  # where it is set, a missing browser fails tests instead of skipping them
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element, by the standard


def chromium() -> tuple[str, str]:
    """Chromium and chromedriver; without them the test is skipped, or fails where they must be there."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if found is None or driver is None:
        say = pytest.fail if os.environ.get(NEEDED) else pytest.skip
        say("needs Chromium and chromedriver (on Debian the packages chromium and chromium-driver; make browser installs them as root)")
    assert found is not None
    assert driver is not None
    return found, driver


class Browser:
    """One window."""

    def __init__(self, url: str, chromium: str, profile: Path):
        self._url = url
        options = {"binary": chromium, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._session = f"/session/{self._call('POST', '/session', {'capabilities': wanted})['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())["value"]

    def resize(self, width: int, height: int) -> None:
        """The page itself, without the window's frame."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        body = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def open(self, address: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript returns, such as "return document.title"."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def type(self, selector: str, text: str) -> None:
        """Keys into an element, which gets the focus."""
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})[ELEMENT]
        self._call("POST", f"{self._session}/element/{found}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def errors(self) -> list[str]:
        """What the page complained of in its console, so far."""
        return [row["message"] for row in self._call("POST", f"{self._session}/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        self._call("DELETE", self._session)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`; gone at the end."""
    found, driver = chromium()
    port = free_port()
    with subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "started successfully" in line:
                    break
            window = Browser(f"http://127.0.0.1:{port}", found, folder / "profile")
            try:
                yield window
            finally:
                window.close()
        finally:
            process.terminate()
