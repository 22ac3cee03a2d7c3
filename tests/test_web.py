"""What a visitor of `dim web` does, without a page: pictures, blueprints, rounds, branches, progress, an end before time, refusals."""

import copy
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dim_jax.batching import Request
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.pipeline import EditPipeline, paint_requests
from dim_jax.sampling import OnStep
from dim_jax.serve.limits import Limits
from dim_jax.serve.tickets import QueueFullError
from dim_jax.serve.uploads import ApiError
from dim_jax.settings import Settings
from dim_jax.web.gate import named
from dim_jax.web.preview import LatentPreview
from dim_jax.web.studio import BY_HAND, VISITS, Studio, Visit, Wish
from tests.painter_fixtures import QUICK, largest_difference, painter, picture
from tests.serve_fixtures import Gate, engine, painting, written

FIELDS = {"steps": 3, "size": "64x64", "seed": 5}
TINY = copy.copy(painter())
TINY.settings = replace(QUICK, overflow="keep_last")
BLUE = LatentPreview(np.array([[0.0, 0, 0]] * 8 + [[0, 0, 255]], np.float32))
ENDLESS = "a painting without end"


def paint(requests: Sequence[Request], settings: Settings, on_step: OnStep) -> Iterator[tuple[int, EditResult]]:
    """The tiny painter, and one that never ends."""
    for step in itertools.count(1) if requests[0].prompt == ENDLESS else ():
        on_step(step, np.zeros((1, 8, 8, 8), np.float32))
        time.sleep(0.001)
    yield from paint_requests(painter(), requests, settings, on_step=on_step)


@pytest.fixture
def studio() -> Iterator[Studio]:
    writer, _ = written(1)
    with engine(paint, wait=0.0) as made:
        yield Studio(made, TINY, Limits(pixels=10_000, painted_pixels=64 * 64, steps=10, prompt=200), {"writer": writer}, BLUE)


def file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    saved = io.BytesIO()
    image.save(saved, kind, **options)
    return saved.getvalue()


def opened(studio: Studio, image: Image.Image | None = None) -> Visit:
    visit = studio.visit("somebody")
    studio.open(visit, file(image or picture(40, 40, 1)))
    return visit


def finished(work) -> tuple[list, Any]:
    """What was seen on the way, and what came out."""
    seen = []
    while True:
        try:
            seen.append(next(work))
        except StopIteration as end:
            return seen, end.value


def test_rounds_are_those_of_the_pipeline(studio, monkeypatch):
    monkeypatch.setattr("dim_jax.web.studio.POLL", 0.001)  # so that a quick painting is seen on its way
    visit = opened(studio)
    seen, first = finished(studio.edit(visit, Wish("red", fields=FIELDS)))
    (alone,) = EditPipeline(painter())(["red"], [picture(40, 40, 1)], seeds=[5], settings=replace(QUICK, size=(64, 64)))
    assert largest_difference(first.image, alone.image) <= 1
    assert (first.prompt, first.seed, first.designer, first.settings["num_steps"]) == ("red", 5, "none", 3)
    steps = [one for one in seen if one.preview]
    assert steps
    assert all(one.preview.size == (8, 8) and one.preview.getpixel((0, 0)) == (0, 0, 255) for one in steps)
    assert all(0 < one.share <= 1 and one.text == f"step {round(3 * one.share)} of 3" for one in steps)
    _, second = finished(studio.edit(visit, Wish("cut", fields=FIELDS)))
    assert second.earlier == (first,)
    visit.branch()
    visit.undo()
    assert [len(branch.rounds) for branch in visit.branches] == [2, 1]
    assert visit.session.rounds == (first,)
    visit.go_to(0)
    assert visit.session.rounds == (first, second)
    assert studio.visit("somebody else").branches == []


def test_a_photograph_is_upright(studio):
    """As a phone held upright writes it: rows from the side, and a tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (60, 30), "blue")
    sideways.paste("red", (0, 0, 30, 30))  # on top once it is upright
    visit = studio.visit("somebody")
    studio.open(visit, file(sideways, "JPEG", exif=exif, quality=95))
    upright = visit.session.source.picture
    assert upright.size == (30, 60)
    assert upright.getpixel((15, 10))[0] > 200
    assert upright.getpixel((15, 50))[2] > 200


def test_a_blueprint_is_shown_changed_and_painted(studio):
    visit = opened(studio)
    _, text = finished(studio.design(visit, Wish("red", designer="writer")))
    assert text == "blueprint of red"
    results = {}
    for name, wish in {
        "as it is": Wish("red", text, "writer"),
        "changed": Wish("red", "a hat", "writer"),
        "asked for": Wish("cut", "", "writer"),
        "without words": Wish("", "a hat"),
    }.items():
        _, result = finished(studio.edit(visit, wish._replace(fields=FIELDS)))
        results[name] = result.prompt, result.designer, result.instruction
    assert results == {
        "as it is": ("blueprint of red", "writer", "red"),
        "changed": ("a hat", BY_HAND, "red"),
        "asked for": ("blueprint of cut", "writer", "cut"),
        "without words": ("a hat", BY_HAND, ""),
    }
    for wish, message in ((Wish("refuse", designer="writer"), "wrote no blueprint"), (Wish("red"), "Choose a designer: writer")):
        with pytest.raises(InputError, match=message):
            finished(studio.design(visit, wish))
    assert len(visit.session.rounds) == 4


def test_a_mask_is_scaled_to_the_picture(studio):
    visit = opened(studio, picture(80, 80, 1))
    mask = Image.new("L", (512, 512))
    mask.paste(255, (0, 0, 256, 512))
    _, result = finished(studio.edit(visit, Wish("red", mask=mask, fields=FIELDS)))
    before = np.asarray(picture(80, 80, 1).resize((64, 64), Image.Resampling.BILINEAR), int)
    difference = np.abs(np.asarray(result.image, int) - before).max(-1)
    assert difference[:, 33:].max() <= 1
    assert (difference[:, :31] > 1).mean() > 0.8


def test_text_becomes_a_picture_that_can_be_edited(studio):
    visit = studio.visit("somebody")
    _, result = finished(studio.generate(visit, Wish("red", fields=FIELDS)))
    assert visit.painted is result
    assert result.source is None
    studio.open(visit, result.image)
    assert visit.session.source.picture.size == (64, 64)


def test_cancelling_ends_the_sampler(studio):
    visit = opened(studio)
    for leave in (visit.cancel, partial(studio.leave, "somebody")):
        work = studio.edit(visit, Wish(ENDLESS, fields=FIELDS))
        while not next(work).preview:
            pass
        for change in (visit.undo, visit.branch, partial(studio.open, visit, file(picture(8, 8)))):
            with pytest.raises(InputError, match="Wait for it, or cancel it"):
                change()
        with pytest.raises(InputError, match="Wait for it, or cancel it"):
            next(studio.edit(visit, Wish("cut", fields=FIELDS)))
        leave()
        with pytest.raises(CancelledError):
            finished(work)
        assert visit.session.rounds == ()
    # The painting thread is free: it takes the next picture.
    _, result = finished(studio.edit(visit, Wish("red", fields=FIELDS)))
    assert visit.session.rounds == (result,)


def test_only_so_many_visitors_are_kept(studio):
    first = opened(studio)
    work = studio.edit(first, Wish(ENDLESS, fields=FIELDS))
    next(work)
    for number in range(VISITS):
        studio.visit(str(number))
    with pytest.raises(CancelledError):
        finished(work)
    assert studio.visit("somebody") is not first


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not a picture"),
        (file(Image.effect_noise((40, 40), 50))[:-300], "The picture"),
        (file(Image.new("1", (101, 100))), "101 x 100 pixels, more than the 10,000"),
    ],
)
def test_bad_pictures_are_refused(studio, data, message):
    visit = opened(studio)
    before = visit.session
    with pytest.raises((InputError, ApiError), match=message) as refused:
        studio.open(visit, data)
    assert "\n" not in str(refused.value)
    assert visit.session is before


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(" "), "The instruction is empty"),
        (Wish("red" * 100), "300 characters"),
        (Wish("red", fields={"steps": 11}), "steps is 11, but may be at most 10"),
        (Wish("red", fields={"size": "128x64"}), "more than the 4,096 pixels"),
        (Wish("red", fields={"size": "64"}), "WIDTHxHEIGHT"),
        (Wish("red", fields={"size": "60x64"}), "multiples of 8"),
        (Wish("red", fields={"seed": -1}), "seed"),
        (Wish("red", fields={"guidance": float("nan")}), "guidance_scale"),
        (Wish("red", designer="file:/etc/passwd"), "Choose a designer: writer"),
    ],
)
def test_bad_wishes_are_refused(studio, wish, message):
    visit = opened(studio)
    with pytest.raises((InputError, ApiError), match=message):
        finished(studio.edit(visit, wish._replace(fields={**FIELDS, **wish.fields})))
    assert visit.session.rounds == ()
    assert not visit.busy


def test_nothing_is_edited_before_there_is_a_picture(studio):
    with pytest.raises(InputError, match="Choose one first"):
        finished(studio.edit(studio.visit("somebody"), Wish("red", fields=FIELDS)))


def test_a_full_queue_is_no_crash():
    """Where nothing is taken from the queue, as before the first picture is compiled."""
    gate = Gate()
    with engine(painting(before=gate), queue=1, wait=0.0) as made:
        gate.first(made)
        studio = Studio(made, TINY, Limits(), {}, BLUE)
        first, second = opened(studio), studio.visit("somebody else")
        studio.open(second, picture(8, 8))
        work = studio.edit(first, Wish("red", fields=FIELDS))
        assert next(work).text == "waiting for its turn"
        with pytest.raises(QueueFullError):
            finished(studio.edit(second, Wish("red", fields=FIELDS)))
        first.cancel()  # while it waits
        with pytest.raises(CancelledError):
            finished(work)
        assert len(made.queue) == 0
        gate.opened.set()


def test_the_preview_of_a_linear_autoencoder_is_its_colours():
    """Sixteen channels that hold the mean colours of cells, mixed, with an offset."""
    rng = np.random.default_rng(0)
    mix, offset = rng.normal(size=(3, 16)), rng.normal(size=16)
    back = np.linalg.pinv(mix)

    def encode(pictures, size):
        means = np.stack([np.asarray(one.resize((8, 8), Image.Resampling.BOX), float) for one in pictures])
        return (means @ mix + offset).astype(np.float32)

    def decode(latents):
        means = np.rint((latents - offset) @ back).astype(np.uint8)
        return [Image.fromarray(one).resize((64, 64), Image.Resampling.NEAREST) for one in means]

    linear = copy.copy(TINY)
    vars(linear).update(encode=encode, decode=decode)
    preview = LatentPreview.fit(linear, [picture(64, 64, seed) for seed in range(3)])
    (latents,) = encode([picture(64, 64, 9)], (64, 64))
    assert largest_difference(preview(latents), picture(64, 64, 9).resize((8, 8), Image.Resampling.BOX)) <= 2


def test_a_browser_names_only_what_it_was_told_of():
    """Paths wherever they stand in what comes and goes."""
    assert [*named({"data": [{"path": "/a", "url": "u"}, [{"background": {"path": "/b"}}], "path"], "n": 1, "path": 2})] == ["/a", "/b"]
    assert [*named(["/tmp/x.png"])] == ["/tmp/x.png"]
