"""One thread that paints what waits in a queue, in batches, and writes blueprints for it where they are asked for. It knows no HTTP.

engine = Engine(partial(paint_requests, sampler), batch=4)
ticket = engine.submit([Request("Make the sky red.", 0, (64, 64), Source(picture))], sampler.settings)
ticket.future.result()[0].save("red.png")
engine.stop()
"""

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float

from dim_jax.batching import Request
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.serve.blueprints import BlueprintWriter
from dim_jax.serve.queue import DESIGN, Queue, QueuedPicture
from dim_jax.serve.tickets import BlueprintError, StoppedError, Ticket
from dim_jax.settings import Settings

Paint = Callable[..., Iterable[tuple[int, EditResult]]]  # of requests and settings, and of on_step where a ticket is watched
UNMEASURED = 5.0  # seconds for a picture until the first ones are painted
NO_BLUEPRINT = "The designer wrote no blueprint. Try another wording; the server's log has the reason."
log = logging.getLogger("dim_jax.serve")


class Engine:
    """Paints in a thread of its own, from the beginning until `stop`. All methods may be called from any thread.

    Attributes:
        queue: what waits.
        on_batch: gets the pictures and seconds of each batch.
    """

    def __init__(self, paint: Paint, *, batch: int = 4, wait: float = 0.02, queue: int = 64, writer: BlueprintWriter | None = None):
        """
        Args:
            paint: such as `pipeline.paint_requests` of a sampler.
            batch: the most pictures that are painted together.
            wait: seconds that the first picture of a batch waits for more.
            queue: the most pictures that wait.
            writer: writes the blueprints that are asked for; where it asks a server, in threads beside the painting one.
        """
        self._paint, self._writer = paint, writer
        self.queue = Queue(batch, wait, queue, self.seconds)
        self.on_batch: Callable[[int, float], None] = lambda pictures, seconds: None
        self._open: set[Ticket] = set()
        self._lock = threading.RLock()
        self._speeds: deque[float] = deque(maxlen=32)
        self._calls = threading.Semaphore(writer.calls) if writer and writer.calls else None
        self._thread = threading.Thread(target=self._work, name="painter", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request], settings: Settings, *, design: bool = False, watched: bool = False) -> Ticket:
        """Queue pictures of one size, painted with the same settings. With `design` they are edits of one source by one instruction, for
        whose blueprint the writer is asked first. `watched`: as in `Ticket`.

        Raises:
            QueueFullError: there is no room for all of them.
            StoppedError: the engine is stopping.
            InputError: there would never be room.
        """
        if len(requests) > self.queue.capacity:
            raise InputError(f"{len(requests)} pictures are more than the queue ever holds, {self.queue.capacity}. Ask for fewer.")
        ticket = Ticket(list(requests), settings, watched=watched)
        bucket = _bucket(ticket) if not design else DESIGN if self._calls is None else None
        with self._lock:
            self.queue.add([QueuedPicture(ticket, index, bucket) for index in range(len(requests))])
            self._open.add(ticket)
        ticket.future.add_done_callback(lambda _: self._close(ticket))
        if bucket is None:
            threading.Thread(target=self._call_designer, args=(ticket,), name="designer", daemon=True).start()
        return ticket

    def seconds(self, pictures: int) -> float:
        """How long so many take, by the speed of the last batches."""
        return pictures * statistics.median(list(self._speeds) or [UNMEASURED])

    @property
    def stopped(self) -> bool:
        """Whether the thread has ended, and nothing more is painted."""
        return not self._thread.is_alive()

    def stop(self, grace: float | None = 0.0) -> bool:
        """Take nothing new, finish what is there within `grace` seconds (None: whatever it takes), and fail the rest with StoppedError.

        Returns whether the thread has ended. If not, it is in the middle of a batch that nobody waits for.
        """
        self.queue.stop()
        self._thread.join(grace)
        with self._lock:
            unfinished = list(self._open)
        for ticket in unfinished:
            self._finish(ticket, StoppedError())
        return self.stopped

    def _work(self) -> None:
        while rows := self.queue.take():
            self._attempt(self._write_blueprints if rows[0].bucket == DESIGN else self._paint_rows, rows)

    def _attempt(self, work: Callable[[list[QueuedPicture]], None], rows: list[QueuedPicture]) -> None:
        """Work on rows together; where one of them cannot be used, on each alone, so that the others come through."""
        try:
            work(rows)
        except InputError as error:
            if len(rows) > 1:
                for row in rows:
                    self._attempt(work, [row])
            else:
                self._finish(rows[0].ticket, error)
        except CancelledError:
            log.info("stopped painting %d pictures that nobody waits for", len(rows))
        except Exception as error:  # a bug or a device's: whoever asked for this hears of it, all others are served
            log.exception("%s failed", work.__name__)
            for row in rows:
                self._finish(row.ticket, error)

    def _call_designer(self, ticket: Ticket) -> None:
        """Asks a server for a ticket's blueprint, once few enough others do so."""
        assert self._calls is not None
        with self._calls:
            if not ticket.future.done():
                self._attempt(self._write_blueprints, [QueuedPicture(ticket, 0, None)])

    def _write_blueprints(self, rows: list[QueuedPicture]) -> None:
        """Replaces the instruction of the rows' tickets by a blueprint."""
        assert self._writer is not None
        for row in rows:
            row.ticket.stage = "designing"
        edits = [row.request for row in rows]
        texts = self._writer.write([edit.source.picture for edit in edits if edit.source], [edit.prompt for edit in edits])
        for row, text in zip(rows, texts, strict=True):
            ticket = row.ticket
            if text is None:
                self._finish(ticket, BlueprintError(NO_BLUEPRINT))
            else:
                ticket.requests[:] = [replace(request, prompt=text) for request in ticket.requests]
                ticket.stage = "waiting"
                self.queue.move(ticket, _bucket(ticket))

    def _paint_rows(self, rows: list[QueuedPicture]) -> None:
        for row in rows:
            row.ticket.stage = "painting"
        started = time.monotonic()
        settings = replace(rows[0].ticket.settings, batch_size=len(rows))
        watching = {"on_step": partial(_watch, rows)} if any(row.ticket.watched for row in rows) else {}
        results = dict(self._paint([row.request for row in rows], settings, **watching))
        seconds = time.monotonic() - started
        self._speeds.append(seconds / len(rows))
        self.on_batch(len(rows), seconds)
        for i, row in enumerate(rows):
            ticket = row.ticket
            ticket.results[row.index] = results[i]
            if ticket.painted == len(ticket.requests):
                self._finish(ticket, [ticket.results[index] for index in range(ticket.painted)])

    def _finish(self, ticket: Ticket, outcome: list[EditResult] | Exception) -> None:
        with self._lock:  # `stop` may end it at the same time
            if ticket.future.done() or not ticket.future.set_running_or_notify_cancel():
                return
            ticket.stage = "done"
            if isinstance(outcome, Exception):
                ticket.future.set_exception(outcome)
            else:
                ticket.future.set_result(outcome)

    def _close(self, ticket: Ticket) -> None:
        with self._lock:
            self._open.discard(ticket)
        self.queue.wake()


def _watch(rows: Sequence[QueuedPicture], steps: int, latents: Float[np.ndarray, "b h w c"]) -> None:
    """Tells tickets how far their rows are; ends a batch of which all are done or cancelled."""
    if all(row.ticket.future.done() for row in rows):
        raise CancelledError
    for row, cells in zip(rows, latents, strict=False):  # a batch may be filled up
        row.ticket.steps, row.ticket.latents[row.index] = steps, cells


def _bucket(ticket: Ticket) -> Hashable:
    """What pictures that are painted together have in common."""
    return ticket.requests[0].kind, ticket.settings
