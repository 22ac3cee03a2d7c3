"""The image API over HTTP, by a painter of plain colours: what clients get, and how each of their mistakes is answered."""

import base64
import io
import json
import re
import socket
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from dim_jax.serve.limits import Limits
from tests.painter_fixtures import dim, one_error, picture
from tests.serve_fixtures import BAD, MODEL, TOKEN, Gate, colour, painting, serving, written

SMALL = Limits(upload=2**18, upload_seconds=0.5, pixels=2**20, painted_pixels=2**16)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(painting(), limits=SMALL) as address:
        yield address


@pytest.fixture(scope="module")
def client(url) -> Iterator[openai.OpenAI]:
    with connected(url) as made:
        yield made


def connected(url: str, token: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def opened(item: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def send(url: str, body: bytes = b"", headers: dict[str, str] | None = None, method: str = "POST") -> tuple[int, dict, Any]:
    """Status, JSON and headers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}, method=method), timeout=60) as found:
            return found.status, json.loads(found.read() or b"null"), found.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers


def test_pictures_from_text(client):
    answer = client.images.generate(prompt="a cat", n=2, size="96x64", extra_body={"seed": 7, "steps": 3})
    assert answer.size == "96x64"
    for number, item in enumerate(answer.data):
        image = opened(item)
        assert image.size == (96, 64)
        assert image.getpixel((0, 0)) == colour("a cat", 7 + number)
        assert item.model_extra == {"seed": 7 + number}
        assert item.revised_prompt is None
    # The metadata are those of dim edit, and name no path of this machine.
    assert image.info["checkpoint"] == "fake"
    assert json.loads(image.info["settings"])["num_steps"] == 3
    chosen = client.images.generate(prompt="a cat").data[0]
    assert opened(chosen).getpixel((0, 0)) == colour("a cat", chosen.model_extra["seed"])


def test_edits_have_the_size_of_their_picture(client):
    answer = client.images.edit(image=png(picture(100, 50)), prompt="red", extra_body={"seed": 1})
    assert answer.size == "100x50"
    assert opened(answer.data[0]).getpixel((0, 0)) == colour("red", 1)
    assert client.images.edit(image=png(picture(100, 50)), prompt="red", size="64x32").size == "64x32"


@pytest.mark.parametrize(("kind", "format_"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats(client, kind, format_):
    answer = client.images.generate(prompt="a", output_format=kind, output_compression=50, response_format="b64_json")
    assert opened(answer.data[0]).format == format_
    assert answer.output_format == kind


@pytest.mark.parametrize("feather", [0, 6])
def test_outside_of_a_mask_nothing_changes(client, feather):
    """At the source's own size, which no multiple of 8 is, and to the bit."""
    source, alpha = picture(101, 67, 3), np.full((67, 101), 255, np.uint8)
    alpha[20:50, 0:40] = 0
    mask = Image.fromarray(np.dstack([np.zeros((67, 101, 3), np.uint8), alpha]))
    answer = client.images.edit(image=png(source), mask=png(mask), prompt="red", extra_body={"seed": 2, "feather": feather})
    result, before = np.asarray(opened(answer.data[0])), np.asarray(source)
    np.testing.assert_array_equal(result[alpha == 255], before[alpha == 255])
    np.testing.assert_array_equal(result[35, 10], colour("red", 2))
    assert (result[20:50, :40] == colour("red", 2)).all() == (feather == 0)
    assert answer.size == "101x67"


def refusals() -> dict[str, tuple[int, str, dict[str, Any]]]:
    """By name: the status, words of the message, and what is sent for an edit of a small picture."""
    whole, alpha = png(picture(32, 32)), Image.new("RGBA", (32, 32))
    return {
        "empty prompt": (400, "prompt is empty", {"prompt": " "}),
        "bad prompt": (400, "cannot be used", {"prompt": BAD}),
        "long prompt": (400, "at most 32,000", {"prompt": "x" * 32_001}),
        "no model": (404, "no model", {"model": "gpt-image-1"}),
        "two pictures": (400, "edits one picture; these are 2", {"image": [whole, whole]}),
        "no picture": (400, "not a picture that can be read", {"image": b"hello"}),
        "an empty file": (400, "empty", {"image": b""}),
        "a torn picture": (400, "damaged or cut off", {"image": png(picture(64, 64))[:900]}),
        "many pixels": (413, "more than the 1,048,576", {"image": bomb(4_000)}),
        "a bomb": (400, "more than the 134,217,728", {"image": bomb(100_000)}),
        "many bytes": (413, "more than 0.25 MiB", {"image": b"x" * 2**19}),
        "a mask without alpha": (400, "no transparency", {"mask": whole}),
        "another mask": (400, "Give them the same size", {"mask": png(Image.new("RGBA", (16, 32)))}),
        "mask and size": (400, "Leave the size out", {"mask": png(alpha), "size": "64x64"}),
        "many": (400, "n is 5", {"n": 5}),
        "none": (400, "n: Input should be greater", {"n": 0}),
        "steps": (400, "steps is 101", {"extra_body": {"steps": 101}}),
        "a seed": (400, "seed:", {"extra_body": {"seed": 2**31}}),
        "guidance": (400, "not negative", {"extra_body": {"guidance": -1}}),
        "no size": (400, "WIDTHxHEIGHT", {"size": "big"}),
        "an odd size": (400, "multiples of 8", {"size": "100x100"}),
        "a large size": (400, "more than the 65,536 pixels", {"size": "4096x4096"}),
        "an address back": (400, "response_format", {"response_format": "url"}),
        "an unknown field": (400, "frames", {"extra_body": {"frames": 3}}),
    }  # fmt: skip


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few hundred kilobytes' worth of nothing."""
    header = png(Image.new("L", (8, 8)))
    body = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return header[:16] + body + zlib.crc32(b"IHDR" + body).to_bytes(4, "big") + header[33:]


@pytest.mark.parametrize("name", refusals())
def test_refusals(client, name):
    status, words, changes = refusals()[name]
    with pytest.raises(openai.APIStatusError) as error:
        client.images.edit(**{"image": png(picture(32, 32)), "prompt": "red", **changes})
    assert error.value.status_code == status
    assert words in error.value.body["message"], error.value.body
    assert set(error.value.body) == {"message", "type", "param", "code"}


def test_requests_of_the_wrong_kind(url):
    for address, method, status in (("/v1/none", "GET", 404), ("/v1/images/edits", "GET", 405), ("/v1/models/other", "GET", 404)):
        found = send(url + address, method=method)
        assert found[0] == status
        assert found[1]["error"]["message"]
    assert send(f"{url}/v1/images/generations", b"prompt=a")[0] == 415
    assert send(f"{url}/v1/images/edits", b"{}", {"Content-Type": "application/json"})[0] == 415
    status, body, _ = send(f"{url}/v1/images/generations", b"{", {"Content-Type": "application/json"})
    assert (status, "Invalid JSON" in body["error"]["message"]) == (400, True)
    status, body, _ = send(f"{url}/v1/images/edits", b"nothing", {"Content-Type": "multipart/form-data"})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")


def test_no_address_is_opened(url):
    form = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    body = form.format("prompt", "red") + form.format("image", "file:///etc/passwd") + "--x--\r\n"
    status, answer, _ = send(f"{url}/v1/images/edits", body.encode(), {"Content-Type": "multipart/form-data; boundary=x"})
    assert (status, "no address is opened" in answer["error"]["message"]) == (400, True)


def test_models_and_health(client, url):
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "dim_jax"
    assert send(f"{url}/health", method="GET")[:2] == (200, {"status": "ready"})
    assert send(f"{url}/health/live", method="GET")[:2] == (200, {"status": "live"})


def test_metrics():
    with serving(painting(), tokens=[TOKEN]) as url, connected(url, TOKEN) as client:
        client.images.generate(prompt="a", n=3)
        with pytest.raises(openai.BadRequestError):
            client.images.generate(prompt="")
        request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request) as found:
            text = found.read().decode()
    assert 'dim_requests_total{endpoint="/v1/images/generations",status="200"} 1.0' in text
    assert 'dim_requests_total{endpoint="/v1/images/generations",status="400"} 1.0' in text
    assert "dim_batch_pictures_sum 3.0" in text
    assert "dim_queue_pictures 0.0" in text


def test_a_model_that_does_not_edit():
    with serving(painting(), model=MODEL._replace(edits=False)) as url, connected(url) as client:
        with pytest.raises(openai.BadRequestError, match="paints from text alone"):
            client.images.edit(image=png(picture(32, 32)), prompt="red")
        assert client.images.generate(prompt="a").data


def test_tokens(caplog):
    with serving(painting(), tokens=["another", TOKEN]) as url:
        caplog.set_level("INFO")
        for header in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", "Bearer ä"):
            found = send(f"{url}/v1/models", headers={} if header is None else {"Authorization": header}, method="GET")
            assert found[0] == 401
            assert found[2]["WWW-Authenticate"] == "Bearer"
        assert send(f"{url}/metrics", method="GET")[0] == 401
        assert send(f"{url}/health", method="GET")[0] == 200, "who only looks whether it lives needs none"
        with connected(url, TOKEN) as client:
            assert client.images.generate(prompt="a", extra_query={"key": TOKEN}).data
        with (
            connected(url, "wrong") as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.images.generate(prompt="a")
    assert "/v1/images/generations 200" in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("dim_jax", "uvicorn"))]
    assert not [line for line in ours if TOKEN in line]


def test_a_full_queue():
    gate = Gate()
    with serving(painting(before=gate), queue=4, batch=1) as url, connected(url) as client:
        threads = [threading.Thread(target=client.images.generate, kwargs={"prompt": "a", "n": n}) for n in (1, 4)]
        threads[0].start()
        assert gate.entered.wait(60)
        threads[1].start()
        refused = None
        while refused is None:  # the second request may not have arrived yet
            status, body, headers = send(f"{url}/v1/images/edits", b"never read", {"Content-Type": "multipart/form-data; boundary=x"})
            refused = (status, body, headers) if status == 429 else None
        assert refused[1]["error"]["code"] == "queue_full"
        assert int(refused[2]["Retry-After"]) >= 1
        gate.opened.set()
        for thread in threads:
            thread.join()


def test_a_client_that_goes_is_not_painted_for():
    gate = Gate()
    with serving(painting(before=gate), batch=1) as url, connected(url) as client:
        first = threading.Thread(target=client.images.generate, kwargs={"prompt": "first"})
        first.start()
        assert gate.entered.wait(60)
        with pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt="gone", timeout=0.3)
        request = urllib.request.Request(f"{url}/metrics")
        queue = None
        while queue != "0.0":
            with urllib.request.urlopen(request) as found:
                queue = re.search(r"^dim_queue_pictures (.*)$", found.read().decode(), re.MULTILINE)[1]
        gate.opened.set()
        first.join()
        client.images.generate(prompt="last")
    assert gate.batches == [["first"], ["last"]]


def test_an_upload_that_takes_too_long(url):
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(30)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_designer_writes_first():
    writer, asked = written(2)
    with serving(painting(), writer=writer) as url, connected(url) as client:
        whole = png(picture(32, 32))
        item = client.images.edit(image=whole, prompt="red", extra_body={"seed": 1}).data[0]
        assert item.revised_prompt == "blueprint of red"
        assert opened(item).getpixel((0, 0)) == colour("blueprint of red", 1)
        assert (opened(item).info["designer"], opened(item).info["instruction"]) == ("writer", "red")
        bare = client.images.edit(image=whole, prompt="red", extra_body={"seed": 1, "designer": "none"}).data[0]
        assert opened(bare).getpixel((0, 0)) == colour("red", 1)
        with pytest.raises(openai.UnprocessableEntityError, match="wrote no blueprint"):
            client.images.edit(image=whole, prompt="refuse")
        assert client.images.generate(prompt="cat").data[0].revised_prompt is None
    assert asked == [["red"], ["refuse"]]


def test_a_failure_of_ours_is_told_without_its_reason(caplog):
    def crash(batch):
        raise ZeroDivisionError("a secret of the inside")

    with serving(painting(before=crash)) as url:
        status, body, _ = send(f"{url}/v1/images/generations", b'{"prompt": "a"}', {"Content-Type": "application/json"})
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert "a secret of the inside" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--designer", "file:x.jsonl"), "found by ids"),
        (("--queue", "3"), "--max-n 4"),
        (("--devices", "many"), "write a number"),
    ],
)
def test_options_that_do_not_go_together(arguments, words):
    code, said = dim("serve", *arguments)
    assert code == 2
    assert words in said


def test_commands_that_cannot_serve(tmp_path, monkeypatch):
    monkeypatch.delenv("DIM_SERVE_TOKEN", raising=False)
    (tmp_path / "empty").write_text("\n")
    assert "has no token" in one_error(dim("serve", "--token", str(tmp_path / "empty")))
    assert "cannot be read" in one_error(dim("serve", "--token", str(tmp_path / "none")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: cannot listen there" in one_error(dim("serve", "--port", str(port)))
    code, said = dim("serve", str(tmp_path / "nowhere"), "--host", "0.0.0.0", "--port", "0")
    assert code == 1
    assert said.startswith("warning: whoever reaches 0.0.0.0 may paint here")
