"""The queue and its batches: who is painted together, who waits, who is refused, and that nobody is forgotten."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial

import numpy as np
import pytest

from dim_jax.batching import Request, Source
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.pipeline import paint_requests
from dim_jax.sampling import OnStep
from dim_jax.serve.blueprints import local_writer, server_writer
from dim_jax.serve.tickets import BlueprintError, QueueFullError, StoppedError
from dim_jax.settings import Settings
from tests.chat_server import ChatServer, completion, good, raw, response
from tests.designer_answers import GOOD
from tests.painter_fixtures import QUICK, largest_difference, painter, picture
from tests.serve_fixtures import BAD, SETTINGS, Gate, colour, engine, painting, written

SIZE = (64, 64)


def requests(prompt: str, count: int = 1, size: tuple[int, int] = SIZE, *, edit: bool = False) -> list[Request]:
    return [Request(prompt, seed, size, Source(picture(32, 32)) if edit else None) for seed in range(count)]


def test_what_fits_together_is_painted_together():
    gate = Gate()
    with engine(painting(before=gate), batch=4, wait=0.0) as made:
        gate.first(made)
        tickets = [made.submit(requests(prompt, count), SETTINGS) for prompt, count in (("a", 2), ("b", 1), ("c", 2))]
        tickets.insert(2, made.submit(requests("wide", size=(32, 128)), SETTINGS))
        assert len(made.queue) == 6
        assert [made.queue.ahead(ticket) for ticket in tickets] == [0, 2, 5, 3]
        gate.opened.set()
        results = [ticket.future.result(60) for ticket in tickets]
    # Six pictures of one bucket in batches of four, and the other bucket by itself; the oldest first.
    assert gate.batches == [["first"], ["a", "a", "b", "c"], ["c"], ["wide"]]
    assert [[one.seed for one in result] for result in results] == [[0, 1], [0], [0], [0, 1]]
    assert all(one.image.getpixel((0, 0)) == colour(one.prompt, one.seed) for result in results for one in result)
    assert [ticket.stage for ticket in tickets] == ["done"] * 4


def test_batches_are_powers_of_two():
    """Or whole: so few programs are compiled, and nothing is painted twice to fill one up."""
    gate = Gate()
    with engine(painting(before=gate), batch=6, wait=0.0) as made:
        gate.first(made)
        ticket = made.submit(requests("a", 9), SETTINGS)
        gate.opened.set()
        assert [one.seed for one in ticket.future.result(60)] == list(range(9))
    assert [len(batch) for batch in gate.batches] == [1, 6, 2, 1]


def test_the_first_picture_waits_for_others():
    sizes = []
    with engine(painting(before=lambda batch: sizes.append(len(batch))), batch=2, wait=60.0) as made:
        first = made.submit(requests("a"), SETTINGS)
        second = made.submit(requests("b"), SETTINGS)  # fills the batch, which begins at once
        assert first.future.result(30)
        assert second.future.result(30)
    assert sizes == [2]


def test_a_full_queue_says_when_to_come_again():
    gate = Gate()
    with engine(painting(0.02, gate), queue=3, batch=1) as made:
        gate.first(made)
        tickets = [made.submit(requests("a", 2), SETTINGS)]
        with pytest.raises(QueueFullError) as refused:
            made.submit(requests("b", 2), SETTINGS)
        assert refused.value.retry_after > 1, "nothing has been measured yet"
        tickets.append(made.submit(requests("b"), SETTINGS))
        gate.opened.set()
        for ticket in tickets:
            ticket.future.result(60)
        assert 0.02 <= made.seconds(1) < 60
        with pytest.raises(InputError, match="4 pictures are more than the queue ever holds, 3"):
            made.submit(requests("c", 4), SETTINGS)


def test_what_nobody_waits_for_is_not_painted():
    gate = Gate()
    with engine(painting(before=gate), wait=0.0) as made:
        gate.first(made)
        gone, stays = made.submit(requests("gone", 2), SETTINGS), made.submit(requests("stays"), SETTINGS)
        assert gone.future.cancel()
        assert len(made.queue) == 1
        gate.opened.set()
        assert stays.future.result(60)
        with pytest.raises(CancelledError):
            gone.future.result(0)
    assert gate.batches == [["first"], ["stays"]]


def test_a_picture_that_cannot_be_painted_spoils_no_other():
    gate = Gate()
    with engine(painting(before=gate), batch=4, wait=0.0) as made:
        gate.first(made)
        good_ones, bad = [made.submit(requests(prompt), SETTINGS) for prompt in "ab"], made.submit(requests(BAD), SETTINGS)
        gate.opened.set()
        assert all(ticket.future.result(60) for ticket in good_ones)
        with pytest.raises(InputError, match="Prompt 1 cannot be used"):
            bad.future.result(60)


def test_a_crash_ends_its_own_requests_alone():
    def crash(batch: Sequence[Request]) -> None:
        if batch[0].prompt == "crash":
            raise ZeroDivisionError

    with engine(painting(before=crash), wait=0.0) as made:
        with pytest.raises(ZeroDivisionError):
            made.submit(requests("crash"), SETTINGS).future.result(60)
        assert made.submit(requests("a"), SETTINGS).future.result(60)


def test_the_end_finishes_what_is_there():
    with engine(painting(0.01), batch=1) as made:
        tickets = [made.submit(requests(str(i)), SETTINGS) for i in range(5)]
        assert made.stop(60.0)
        assert all(ticket.future.result(0) for ticket in tickets)
        with pytest.raises(StoppedError):
            made.submit(requests("late"), SETTINGS)


def test_what_takes_too_long_at_the_end_is_refused():
    gate = Gate()
    with engine(painting(before=gate)) as made:
        first = gate.first(made)
        waits = made.submit(requests("a"), SETTINGS)
        assert not made.stop(0.05), "it is in the middle of a batch"
        for ticket in (first, waits):
            with pytest.raises(StoppedError):
                ticket.future.result(0)
        gate.opened.set()


@pytest.mark.parametrize("calls", [0, 2])
def test_a_blueprint_is_written_before_an_edit_is_painted(calls):
    writer, asked = written(calls)
    with engine(painting(), writer=writer, batch=4, wait=0.2) as made:
        tickets = [made.submit(requests(text, 2, edit=True), SETTINGS, design=True) for text in ("a", "refuse", "b")]
        bare = made.submit(requests("as it stands", edit=True), SETTINGS)
        first, last = (tickets[i].future.result(60) for i in (0, 2))
        with pytest.raises(BlueprintError):
            tickets[1].future.result(60)
        assert [(one.prompt, one.seed) for one in first] == [("blueprint of a", 0), ("blueprint of a", 1)]
        assert {one.prompt for one in last} == {"blueprint of b"}
        assert bare.future.result(60)[0].prompt == "as it stands"
    flat = [one for batch in asked for one in batch]
    assert sorted(set(flat)) == ["a", "b", "refuse"]
    if calls:
        assert sorted(flat) == ["a", "b", "refuse"], "each is paid for once"
    else:
        assert asked == [["a", "refuse"], ["b"]], "in batches of their own"


def test_a_server_is_asked_for_blueprints(monkeypatch):
    from dim_jax.designer.choice import DesignerSpec

    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with ChatServer(good(), raw(response(200, completion("I cannot help with that.")))) as server:
        writer = server_writer(DesignerSpec.parse("openai:gpt-4o"), server.url)
        with engine(painting(), writer=writer) as made:
            assert made.submit(requests("red", edit=True), SETTINGS, design=True).future.result(60)[0].prompt == GOOD.strip()
            with pytest.raises(BlueprintError):
                made.submit(requests("blue", edit=True), SETTINGS, design=True).future.result(60)
    assert writer.name == "openai:gpt-4o"
    assert len(server.requests[0].pictures) == 1


def test_an_encoder_here_is_asked_for_blueprints():
    from dim_jax.designer.clients import Response

    class Designer:
        name = "local"

        def write(self, pictures, instructions):
            answers = {"good": Response(GOOD), "no": Response("no blueprint"), "cut": Response(GOOD, "cut off")}
            return [answers[one] for one in instructions]

    assert local_writer(Designer()).write([picture(8, 8)] * 3, ["good", "no", "cut"]) == [GOOD.strip(), None, None]


def test_a_picture_does_not_depend_on_its_batch():
    """But for float32's rounding: by at most one of 255 grey levels."""
    alone = Request("red", 5, SIZE, Source(picture(40, 40, 1)))
    mate = Request("a house with a red roof", 1, SIZE, Source(picture(70, 30, 1)))
    with engine(partial(paint_requests, painter()), batch=2, wait=0.5) as made:
        (first,) = made.submit([alone], QUICK).future.result(600)
        tickets = [made.submit([one], QUICK) for one in (mate, alone)]
        (other,), (again,) = (ticket.future.result(600) for ticket in tickets)
    assert largest_difference(first.image, again.image) <= 1
    assert largest_difference(first.image, other.image) > 1


def test_a_watched_picture_shows_where_it_heads_and_is_the_same():
    request = Request("red", 5, SIZE, Source(picture(40, 40, 1)))
    with engine(partial(paint_requests, painter()), wait=0.0) as made:
        ticket = made.submit([request], QUICK, watched=True)
        (result,) = ticket.future.result(600)
        (other,) = made.submit([request], QUICK).future.result(600)
    assert ticket.steps == QUICK.num_steps
    assert result.latents is not None
    np.testing.assert_array_equal(ticket.latents[0], result.latents)
    assert largest_difference(result.image, other.image) <= 1


def test_cancelling_ends_the_samplers_loop():
    """But not while another picture of the batch is waited for."""

    def paint(batch: Sequence[Request], settings: Settings, on_step: OnStep) -> Iterator[tuple[int, EditResult]]:
        for steps in itertools.count(1):
            on_step(steps, np.zeros((len(batch), 2, 2, 8), np.float32))
            time.sleep(0.001)
        yield from ()

    def wait_until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    with engine(paint, batch=2, wait=60.0) as made:
        first, second = (made.submit(requests(prompt), SETTINGS, watched=True) for prompt in "ab")
        wait_until(lambda: first.steps)
        assert first.future.cancel()
        later = second.steps + 5
        wait_until(lambda: second.steps >= later)
        assert second.future.cancel()
        third = made.submit(requests("c", 2), SETTINGS, watched=True)
        wait_until(lambda: third.steps)  # the thread is free again
        assert third.future.cancel()
