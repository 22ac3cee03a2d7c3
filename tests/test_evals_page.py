"""The report's page in a real browser: what it shows, its filters, the keyboard, widths, and how soon it can be used."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageFilter
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from dim_jax.evals import page, report
from dim_jax.evals.judge import judge
from dim_jax.evals.protocols import protocol
from tests.browser import browser, resize
from tests.chat_server import ChatServer
from tests.evals_fixtures import LINES, answering, benchmark, judge_of, make_cases, paint, runner

IMGEDIT = protocol("imgedit")
SECONDS = 3.0  # until a page of thousands of cases can be used
SHOWN = "return [...document.querySelectorAll('#cases h2')].map(one => one.textContent)"
INPUT = "field.dispatchEvent(new Event('input', {bubbles: true}))"
FIRST = "[...document.querySelectorAll('#cases li:first-child img')]"
VIEWS = "return document.documentElement.dataset.views"
READY = "return document.documentElement.dataset.ready"


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A report of two tracks, whose cases have scores 1 to 5; one of six has failed."""
    folder = tmp_path_factory.mktemp("report")
    out, cases = folder / "out", make_cases(folder / "data", ["add", "add", "style", "style", "<b>remove</b>", "add"])
    paint(out, cases, ("direct", "designed"))

    def answer(request) -> str:
        number = next(i for i in range(6) if f"number {i} red" in request.text)
        return LINES.format(*[number + 1] * 3) if number < 5 else "It is <img src=x onerror=document.title='broken'> fine."

    with pytest.MonkeyPatch.context() as patch, ChatServer(answering(answer)) as server:
        patch.setenv("OPENAI_API_KEY", "sk-mine")
        judge(out, cases, IMGEDIT, judge_of(server), runner()[0])
    report.write(out, benchmark(cases), cases, {"run": out}, IMGEDIT)
    return out / "report.html"


def opened(window: Chrome, file: Path, end: str = "", width: int = 1400) -> None:
    resize(window, width, 900)
    window.get("about:blank")
    window.get(file.as_uri() + end)
    wait(lambda: window.execute_script(READY))


def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def choose(window: Chrome, name: str, value: str) -> list[str]:
    """The cases that are shown once a field has a value."""
    before = window.execute_script(VIEWS)
    window.execute_script("const field = document.forms[0].elements[arguments[0]]; field.value = arguments[1];" + INPUT, name, value)
    wait(lambda: window.execute_script(VIEWS) != before)
    return window.execute_script(SHOWN)


def test_what_it_shows(window, written):
    opened(window, written)
    assert window.execute_script("return document.title") == "Any edits", "texts of a judge are texts"
    assert window.execute_script(SHOWN) == [f"case {i}" for i in range(6)]
    text = window.execute_script("return document.querySelector('#cases').innerText")
    for words in ("Paint number 3 red.", "direct 4", "designed 4", "<b>remove</b>", "direct failed", "source", "no score"):
        assert words in text
    assert "Blueprint: Paint number 3 red." in window.execute_script("return document.querySelector('#cases').textContent")
    pictures = window.execute_script(f"return Promise.all({FIRST}.map(one => one.decode().then(() => one.naturalWidth)))")
    assert pictures == [24, 24, 24], "source and two results"
    assert "1 of 6 failed" in window.execute_script("return document.querySelector('#headline').innerText")
    assert "95 % interval" in window.execute_script("return document.querySelector('#tables').textContent")
    assert window.get_log("browser") == []


def test_filters(window, written):
    opened(window, written)
    assert choose(window, "type", "style") == ["case 2", "case 3"]
    assert choose(window, "type", "") == [f"case {i}" for i in range(6)]
    assert choose(window, "state", "failed") == ["case 5"]
    assert choose(window, "state", "judged") == [f"case {i}" for i in range(5)]
    choose(window, "state", "")
    choose(window, "low", "2")
    assert choose(window, "high", "3.5") == ["case 1", "case 2"]
    choose(window, "low", "")
    choose(window, "high", "")
    assert choose(window, "order", "best") == [*(f"case {i}" for i in reversed(range(5))), "case 5"]
    assert choose(window, "words", "NUMBER 4") == ["case 4"]
    assert window.execute_script("return document.querySelector('#count').textContent") == "1 of 6 cases"
    assert choose(window, "words", "nothing like this") == []
    assert window.execute_script("return !document.querySelector('#none').hidden")
    window.execute_script("document.forms[0].reset()")
    wait(lambda: len(window.execute_script(SHOWN)) == 6)
    assert choose(window, "right", "") == [f"case {i}" for i in range(6)]
    assert window.execute_script(f"return {FIRST}.length") == 2, "no other track beside it"


def test_a_view_has_an_address(window, written):
    opened(window, written, "#type=style&order=best&left=1")
    assert window.execute_script(SHOWN) == ["case 3", "case 2"]
    choose(window, "state", "judged")
    assert "state=judged" in window.execute_script("return location.hash")


def test_the_keyboard(window, written):
    opened(window, written)
    window.find_element(By.CSS_SELECTOR, "[name=words]").send_keys("number 2")
    wait(lambda: window.execute_script(SHOWN) == ["case 2"])
    window.execute_script("document.querySelector('figure button').focus()")
    ActionChains(window).send_keys(Keys.ENTER).perform()
    assert window.execute_script("return document.querySelector('dialog').open")
    assert "number 2" in window.execute_script("return document.querySelector('dialog').innerText")
    ActionChains(window).send_keys(Keys.ESCAPE).perform()
    assert not window.execute_script("return document.querySelector('dialog').open")
    window.execute_script("document.querySelector('article summary').focus()")
    ActionChains(window).send_keys(Keys.ENTER).perform()
    assert window.execute_script("return document.querySelector('article details').open")


@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_the_width(window, written, width):
    opened(window, written, width=width)
    window.execute_script("document.querySelector('#tables').open = true")
    assert window.execute_script("return document.documentElement.scrollWidth") <= width
    texts = "[...document.querySelectorAll('label, td, p, summary, figcaption')]"
    small = f"return {texts}.filter(one => parseFloat(getComputedStyle(one).fontSize) < 12).length"
    assert window.execute_script(small) == 0
    columns = window.execute_script("return getComputedStyle(document.querySelector('#cases')).gridTemplateColumns.split(' ').length")
    assert columns == (1 if width == 400 else 2)


@pytest.mark.parametrize("count", [100, 3000])
def test_how_soon_it_can_be_used(window, written, tmp_path, count):
    """A page of so many cases, with thumbnails as large as those of photographs."""
    text = written.read_text()
    start, end = text.index('id="data">') + len('id="data">'), text.index("</script>")
    data = json.loads(text[start:end])
    side = page.thumbnail_side(4 * count)
    rows = [data["cases"][i % 6] | {"id": f"case {i}"} for i in range(count)]
    noise = tmp_path / "noise.png"
    bands = [Image.effect_noise((side, side), 60).filter(ImageFilter.GaussianBlur(0.7)) for _ in range(3)]
    Image.merge("RGB", bands).save(noise)
    large = page.thumbnail(noise, side)
    for i, row in enumerate(rows):
        results = {key: one | {"i": large, "p": f"Blueprint {i}. " * 100} for key, one in row["r"].items()}
        rows[i] = row | {"s": large, "t": large, "r": results}
    file = tmp_path / "large.html"
    file.write_text(text[:start] + json.dumps(data | {"cases": rows}).replace("<", "\\u003c") + text[end:])
    begin = time.monotonic()
    opened(window, file)
    waited, own = time.monotonic() - begin, float(window.execute_script(READY)) / 1000
    assert file.stat().st_size > 5_000 * count
    assert own < SECONDS, f"{own:.1f} s, {file.stat().st_size / 1e6:.0f} MB"
    begin = time.monotonic()
    assert choose(window, "type", "style")[0] == "case 2"
    assert time.monotonic() - begin < SECONDS
    first = len(window.execute_script(SHOWN))
    assert first <= 40, "the others are made when they are near"
    window.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    wait(lambda: len(window.execute_script(SHOWN)) > first or first < 40)
    print(f"{count} cases, {file.stat().st_size / 1e6:.1f} MB: usable after {own:.2f} s, {waited:.2f} s as seen from outside")
