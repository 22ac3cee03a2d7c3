"""`dim web` as it is started, with the bundled model: its page in a browser, and what a client sends that is no browser."""

import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from dim_jax.edit_result import read_metadata
from dim_jax.web.gate import COOKIE
from dim_jax.weights.bundled import bundled_checkpoint
from tests.browser import browser, resize
from tests.chat_server import ChatServer, raw, response
from tests.painter_fixtures import quick_nano
from tests.started import started
from tests.web_fixtures import API, Visitor, paths

SAMPLES = bundled_checkpoint() / "samples"
KEY = "sk-secret-key-of-the-tests"
SHOWN = "return document.querySelector(arguments[0])?.checkVisibility() ? document.querySelector(arguments[0]).innerText : ''"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a running one: the bundled model at four steps, with a designer whose server refuses, and quotes the key."""
    folder = tmp_path_factory.mktemp("web")
    nano = quick_nano(folder / "nano", 4)
    with (
        pytest.MonkeyPatch.context() as patch,
        ChatServer(raw(response(401, json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()))) as designer,
    ):
        patch.setenv("OPENAI_API_KEY", KEY)
        options = ("--port", "0", "--designer", "openai:gpt-4o", "--base-url", designer.url, "--batch", "2", "--max-upload", "1")
        with started(folder / "log", [sys.executable, "-m", "dim_jax.cli", "web", str(nano), *options]) as run:
            run.wait_until(lambda: "nano is at" in run.said())
            (url,) = re.findall(r"http://127.0.0.1:\d+", run.said())
            yield url
            run.process.send_signal(signal.SIGTERM)
            code, said = run.ended(60)
    assert code == 0, said
    assert "Traceback" not in said, said


@pytest.fixture
def arrive(server) -> Iterator[Callable[[], Visitor]]:
    """Another visitor, as often as it is called."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Visitor(server)))


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def wait(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shown(window: Chrome, selector: str) -> str:
    """The text of what is seen, or ""."""
    return window.execute_script(SHOWN, selector)


def visited(window: Chrome, server: str) -> None:
    """The page, once it can be used."""
    resize(window, 1280, 900)
    window.get("about:blank")
    window.get(server)
    wait(lambda: shown(window, "#dim-paint"))


def choose(window: Chrome, example: str) -> None:
    next(one for one in window.find_elements(By.CSS_SELECTOR, ".dim-examples button") if example in one.text).click()
    wait(lambda: shown_canvas(window) and window.execute_script("return document.querySelector('#dim-prompt :is(input, textarea)').value"))


def shown_canvas(window: Chrome) -> bool:
    return bool(window.find_elements(By.CSS_SELECTOR, "canvas"))


def seen_files(window: Chrome, end: str) -> list[str]:
    """The addresses of such names that the page has fetched, in order."""
    names = window.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    return [name for name in names if name.endswith(end)]


def fetched(window: Chrome, end: str) -> bytes:
    """The last file of such a name, for somebody with the browser's cookie."""
    return httpx.get(seen_files(window, end)[-1], cookies={COOKIE: window.get_cookie(COOKIE)["value"]}).raise_for_status().content


def redness(picture: Image.Image, rows: slice = slice(12, 44)) -> float:
    """How much redder the middle of some rows is than green or blue, in grey levels."""
    middle = np.asarray(picture.convert("RGB"), float)[rows, 20:45].mean((0, 1))
    return middle[0] - middle[1:].max()


def test_an_edit_from_the_first_click_to_the_file(window, server, tmp_path):
    """What the brush went over becomes red, and nothing else changes."""
    visited(window, server)
    choose(window, "book red")
    time.sleep(1)  # the canvas draws the picture when the browser finds the time, and says nothing of it
    canvas = window.find_element(By.CSS_SELECTOR, "canvas")
    stroke = ActionChains(window, duration=50).move_to_element_with_offset(canvas, -80, -60).click_and_hold()
    for _ in range(8):
        stroke.move_by_offset(20, 0)
    stroke.release().perform()
    window.find_element(By.ID, "dim-paint").click()
    wait(lambda: "Round 1" in shown(window, ".dim-facts") and seen_files(window, "round-1.png"))
    assert "changed" in shown(window, ".dim-facts")
    (tmp_path / "round-1.png").write_bytes(fetched(window, "round-1.png"))
    metadata = read_metadata(tmp_path / "round-1.png")
    assert (metadata["prompt"], metadata["settings"]["num_steps"], metadata["checkpoint"]) == ("Make the book red.", 4, "nano")
    with Image.open(tmp_path / "round-1.png") as after, Image.open(io.BytesIO(fetched(window, "before.png"))) as before:
        assert redness(after, slice(19, 24)) > 50 > redness(before, slice(19, 24))
        changed = (np.asarray(after) != np.asarray(before)).any(-1)
    assert 0.05 < changed.mean() < 0.4
    assert not changed[32:].any()
    others = window.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert others
    assert all(one.startswith((server, "data:", "blob:")) for one in others), "nothing is fetched from elsewhere"
    assert [line for line in window.get_log("browser") if line["level"] == "SEVERE"] == []
    window.find_element(By.ID, "dim-undo").click()
    wait(lambda: not shown(window, ".dim-facts"))


def test_an_uploaded_photograph_is_upright(window, server, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (600, 300), "blue")
    sideways.paste("red", (0, 0, 300, 300))  # on top once it is upright
    sideways.save(tmp_path / "phone.jpg", exif=exif)
    visited(window, server)
    window.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "phone.jpg"))
    wait(lambda: shown_canvas(window))

    def red_above_blue() -> bool:
        """A quarter of the canvas' height above its middle, and below."""
        with Image.open(io.BytesIO(window.find_element(By.CSS_SELECTOR, "canvas").screenshot_as_png)) as seen:
            pixels = np.asarray(seen.convert("RGB"), int)
        above, below = (pixels[len(pixels) * part // 4, pixels.shape[1] // 2] for part in (1, 3))
        return above[0] - above[2] > 200 and below[2] - below[0] > 200

    wait(red_above_blue)


def test_a_bad_upload_is_explained(window, server, tmp_path):
    (tmp_path / "picture.png").write_text("no picture")
    visited(window, server)
    window.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "picture.png"))
    wait(lambda: "The picture" in shown(window, ".dim-error"))
    choose(window, "book red")
    assert not shown(window, ".dim-error")


def test_the_keyboard_alone(window, server):
    visited(window, server)

    def tab_to(text: str) -> None:
        for _ in range(60):
            window.switch_to.active_element.send_keys(Keys.TAB)
            active = window.switch_to.active_element
            if text in (active.text, active.get_attribute("id"), active.get_attribute("aria-label")) or text in active.text:
                return
        raise AssertionError(f"{text} is not reached")

    tab_to("Give the woman white hair.")
    window.switch_to.active_element.send_keys(Keys.ENTER)
    wait(lambda: shown_canvas(window))
    wait(lambda: not shown(window, ".dim-examples"))
    window.find_element(By.TAG_NAME, "body").click()
    tab_to("Designer and blueprint")
    ActionChains(window).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert window.switch_to.active_element.get_property("value") == "Give the woman white hair."
    ActionChains(window).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    window.switch_to.active_element.send_keys("Make the woman a cook.", Keys.ENTER)
    wait(lambda: "Make the woman a cook." in shown(window, ".dim-facts"))
    tab_to("Undo")
    window.switch_to.active_element.send_keys(Keys.ENTER)
    wait(lambda: not shown(window, ".dim-facts"))


def test_two_visitors_at_once(window, server):
    """In two pages of one browser, painted in one batch or one after the other."""
    pages = {"book red": window.current_window_handle}
    window.switch_to.new_window("tab")
    pages["full moon"] = window.current_window_handle
    for example, handle in pages.items():
        window.switch_to.window(handle)
        visited(window, server)
        choose(window, example)
    for handle in pages.values():
        window.switch_to.window(handle)
        window.find_element(By.ID, "dim-paint").click()
    for example, handle in pages.items():
        window.switch_to.window(handle)
        wait(lambda example=example: example in shown(window, ".dim-facts") and seen_files(window, "round-1.png"))
        with Image.open(io.BytesIO(fetched(window, "round-1.png"))) as picture:
            assert (redness(picture) > 50) == (example == "book red")
    window.close()
    window.switch_to.window(pages["book red"])


def test_no_path_from_a_client_is_opened(server, arrive):
    """Neither a file of this machine, nor what another visitor has uploaded or painted, nor an address."""
    owner, other = arrive(), arrive()
    assert owner.open(SAMPLES / "book.png")[-1]["success"]
    mine = paths(owner.paint("Make the book red."))
    assert mine
    assert {owner.get(f"{API}/file={path}").status_code for path in mine} == {200}
    uploaded = owner.given(SAMPLES / "book.png")
    file = other.component(label="Picture: drop one here, or click")
    for path in (uploaded["path"], *mine, "/etc/passwd", "/proc/self/environ", f"{server}/config", str(SAMPLES / "book.png")):
        assert other.get(f"{API}/file={path}").status_code == 403
        for named in (uploaded | {"path": path}, [uploaded | {"path": path}], {"background": {"path": path}}):
            refused = other.join(file, "upload", Picture=named)
            assert refused.status_code == 403, path
            assert "was given no such file" in refused.json()["error"]["message"]
    # What is told of is not the whole folder.
    assert owner.get(f"{API}/file={Path(mine[0]).parent.parent}").status_code == 403
    assert owner.get(f"{API}/file={mine[0]}/../../../../etc/passwd").status_code in (403, 404)
    for path in ("/proxy=http://127.0.0.1:1/", "/run/predict", "/monitoring", "/vibe-code", "/stream/a/b/1/playlist.m3u8"):
        assert other.get(f"{API}{path}").status_code == 404
    large = other.post("/upload", files={"files": ("large.png", b"0" * 2**21)})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


def test_no_designers_key_reaches_a_browser(arrive):
    """Not in the page, and not where the designer's server quotes it."""
    visitor = arrive()
    visitor.open(SAMPLES / "book.png")
    values = {"What": "Make the book red.", "Designer": "openai:gpt-4o"}
    for button in ("dim-plan", "dim-paint"):
        messages = list(visitor.events(visitor.component(elem_id=button), "click", **values))
        assert "wrote no blueprint" in str(messages[-1])
    for path in ("/theme.css", f"{API}/info", f"{API}/startup-events"):
        visitor.get(path)
    assert len(visitor.received) > 10
    assert not any(KEY in text or KEY[3:] in text for text in visitor.received)


def test_cancel_keeps_everything_as_it_was(arrive):
    visitor = arrive()
    visitor.open(SAMPLES / "moon.png")
    events = visitor.events(visitor.component(elem_id="dim-paint"), "click", What="Show a full moon.", Steps=100)
    for message in events:
        if "step 2 of 100" in str(message) or "step 3 of 100" in str(message):
            visitor.join(visitor.component(elem_id="dim-cancel"), "click")
            break
    assert "Cancelled. Everything is as it was." in str([*events][-1])
