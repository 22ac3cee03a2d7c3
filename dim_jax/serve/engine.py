"""A bounded queue of pictures to paint, batches of those that fit together, and the one thread that paints them. It knows no HTTP.

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
from dataclasses import dataclass, replace

from dim_jax.batching import Request
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.serve.blueprints import BlueprintWriter
from dim_jax.serve.tickets import BlueprintError, QueueFullError, StoppedError, Ticket
from dim_jax.settings import Settings

Paint = Callable[[Sequence[Request], Settings], Iterable[tuple[int, EditResult]]]
UNMEASURED = 5.0  # seconds for a picture until the first ones are painted
DESIGN = "design"
log = logging.getLogger("dim_jax.serve")


@dataclass(eq=False)
class _Row:
    """A picture of a ticket in the queue. Rows of one bucket are done together; None: somebody else works on it."""

    ticket: Ticket
    index: int
    bucket: Hashable

    @property
    def request(self) -> Request:
        return self.ticket.requests[self.index]


class Engine:
    """Paints in a thread of its own, from the beginning until `stop`. All methods may be called from any thread.

    Attributes:
        on_batch: is told of each batch: pictures and seconds.
    """

    def __init__(
        self,
        paint: Paint,
        *,
        batch: int = 4,
        wait: float = 0.02,
        queue: int = 64,
        writer: BlueprintWriter | None = None,
    ):
        """
        Args:
            paint: such as `pipeline.paint_requests` of a sampler.
            batch: the most pictures that are painted together. Fewer are a power of two, for every number compiles anew.
            wait: seconds that the first picture of a batch waits for more.
            queue: the most pictures that wait.
            writer: writes the blueprints that are asked for; where it asks a server, in threads beside the painting one.
        """
        self._paint, self._writer = paint, writer
        self.batch, self.wait, self.queue = batch, wait, queue
        self.on_batch: Callable[[int, float], None] = lambda pictures, seconds: None
        self._rows: list[_Row] = []
        self._open: set[Ticket] = set()
        self._stopping = False
        self._changed = threading.Condition()
        self._speeds: deque[float] = deque(maxlen=32)
        self._calls = threading.Semaphore(writer.calls) if writer and writer.calls else None
        self._thread = threading.Thread(target=self._work, name="painter", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request], settings: Settings, *, design: bool = False) -> Ticket:
        """Queue pictures that are painted with the same settings. With `design` they are edits of one source by one instruction, for whose
        blueprint the writer is asked first.

        Raises:
            QueueFullError: there is no room for all of them.
            StoppedError: the engine is stopping.
            InputError: there would never be room.
        """
        if len(requests) > self.queue:
            raise InputError(f"{len(requests)} pictures are more than the queue ever holds, {self.queue}. Ask for fewer.")
        ticket = Ticket(list(requests), settings)
        with self._changed:
            self.check_room(len(requests))
            beside = design and self._calls is not None
            for index in range(len(requests)):
                bucket = None if beside else DESIGN if design else self._bucket(ticket, index)
                self._rows.append(_Row(ticket, index, bucket))
            self._open.add(ticket)
            ticket.future.add_done_callback(lambda _: self._close(ticket))
            self._changed.notify_all()
        if beside:
            threading.Thread(target=self._call, args=(ticket,), name="designer", daemon=True).start()
        return ticket

    def check_room(self, pictures: int = 1) -> None:
        """Raises QueueFullError or StoppedError as `submit` would now."""
        with self._changed:
            if self._stopping:
                raise StoppedError
            if (more := self.waiting() + pictures - self.queue) > 0:
                raise QueueFullError(self.seconds(more))

    def waiting(self) -> int:
        """The number of pictures in the queue."""
        with self._changed:
            self._rows = [row for row in self._rows if not row.ticket.future.done()]
            return len(self._rows)

    def ahead(self, ticket: Ticket) -> int:
        """The number of pictures in the queue before the ticket's first one; 0 once none of its own waits."""
        with self._changed:
            return next((i for i, row in enumerate(self._rows) if row.ticket is ticket), 0)

    def seconds(self, pictures: int) -> float:
        """How long so many take, by the speed of the last batches."""
        return pictures * statistics.median(self._speeds or [UNMEASURED])

    @property
    def stopping(self) -> bool:
        return self._stopping

    def stop(self, grace: float | None = 0.0) -> bool:
        """Take nothing new, finish what is there within `grace` seconds (None: whatever it takes), and fail the rest with StoppedError.

        Returns whether the thread has ended. If not, it is in the middle of a batch that nobody waits for.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(grace)
        for ticket in list(self._open):
            self._finish(ticket, StoppedError())
        return not self._thread.is_alive()

    def _work(self) -> None:
        while rows := self._next():
            design = rows[0].bucket == DESIGN
            self._attempt(self._design if design else self._paint_rows, rows)

    def _next(self) -> list[_Row]:
        """The rows to work on next, which the oldest one decides; none once the engine has stopped and has nothing left."""
        with self._changed:
            while True:
                if not self.waiting() and self._stopping:
                    return []
                ready = [row for row in self._rows if row.bucket is not None]
                mates = [row for row in ready if row.bucket == ready[0].bucket]
                if ready and ready[0].bucket == DESIGN:  # a ticket has one blueprint
                    mates = list({row.ticket: row for row in reversed(mates)}.values())[::-1]
                left = ready[0].ticket.since + self.wait - time.monotonic() if ready else None
                if left is not None and (len(mates) >= self.batch or left <= 0 or self._stopping):
                    return mates[: self.batch if len(mates) >= self.batch else 1 << len(mates).bit_length() - 1]
                self._changed.wait(left)

    def _attempt(self, work: Callable[[list[_Row]], None], rows: list[_Row]) -> None:
        """Work on rows together; where one of them cannot be used, on each alone, so that the others come through."""
        try:
            work(rows)
        except InputError as error:
            if len(rows) > 1:
                for row in rows:
                    self._attempt(work, [row])
            else:
                self._finish(rows[0].ticket, error)
        except Exception as error:  # a bug or a device's: whoever asked for this hears of it, all others are served
            log.exception("%s failed", work.__name__)
            for row in rows:
                self._finish(row.ticket, error)

    def _call(self, ticket: Ticket) -> None:
        """Asks a server for a ticket's blueprint, once few enough others do so."""
        assert self._calls is not None
        with self._calls:
            if not ticket.future.done():
                self._attempt(self._design, [_Row(ticket, 0, None)])

    def _design(self, rows: list[_Row]) -> None:
        """Replaces the instruction of the rows' tickets by a blueprint."""
        assert self._writer is not None
        for row in rows:
            row.ticket.stage = "designing"
        edits = [row.request for row in rows]
        texts = self._writer.write([edit.source.picture for edit in edits if edit.source], [edit.prompt for edit in edits])
        for row, text in zip(rows, texts, strict=True):
            ticket = row.ticket
            if text is None:
                self._finish(
                    ticket, BlueprintError("The designer wrote no blueprint. Try another wording; the server's log has the reason.")
                )
                continue
            with self._changed:
                ticket.requests[:] = [replace(request, prompt=text) for request in ticket.requests]
                ticket.stage = "waiting"
                for other in self._rows:
                    if other.ticket is ticket:
                        other.bucket = self._bucket(ticket, other.index)
                self._changed.notify_all()

    def _paint_rows(self, rows: list[_Row]) -> None:
        with self._changed:
            self._rows = [row for row in self._rows if row not in rows]
        for row in rows:
            row.ticket.stage = "painting"
        started = time.monotonic()
        settings = replace(rows[0].ticket.settings, batch_size=len(rows))
        found = dict(self._paint([row.request for row in rows], settings))
        seconds = time.monotonic() - started
        self._speeds.append(seconds / len(rows))
        self.on_batch(len(rows), seconds)
        for i, row in enumerate(rows):
            ticket = row.ticket
            ticket.results[row.index] = found[i]
            if ticket.painted == len(ticket.requests):
                self._finish(ticket, [ticket.results[index] for index in range(ticket.painted)])

    def _bucket(self, ticket: Ticket, index: int) -> Hashable:
        return ticket.requests[index].kind, ticket.settings

    def _finish(self, ticket: Ticket, outcome: list[EditResult] | Exception) -> None:
        with self._changed:  # `stop` may end it at the same time
            if ticket.future.done() or not ticket.future.set_running_or_notify_cancel():
                return
            ticket.stage = "done"
            if isinstance(outcome, Exception):
                ticket.future.set_exception(outcome)
            else:
                ticket.future.set_result(outcome)

    def _close(self, ticket: Ticket) -> None:
        with self._changed:
            self._open.discard(ticket)
            self._changed.notify_all()
