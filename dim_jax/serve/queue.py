"""Pictures that wait to be painted, oldest first, and which of them are painted together next."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from dim_jax.batching import Request
from dim_jax.serve.tickets import QueueFullError, StoppedError, Ticket

DESIGN = "design"  # the bucket of what needs a blueprint first


@dataclass(eq=False)
class QueuedPicture:
    """A picture of a ticket. Rows of one bucket are worked on together; None: its blueprint is being written elsewhere."""

    ticket: Ticket
    index: int
    bucket: Hashable

    @property
    def request(self) -> Request:
        return self.ticket.requests[self.index]


class Queue:
    """A bounded queue that any thread may use. Rows of a ticket that is done or cancelled are dropped."""

    def __init__(self, batch: int, wait: float, capacity: int, seconds: Callable[[int], float]):
        """Batches of up to `batch` rows, whose first one waits `wait` seconds for others; `capacity` rows; `seconds` says how long a number
        of rows takes."""
        self.batch, self.wait, self.capacity, self._seconds = batch, wait, capacity, seconds
        self.stopping = False
        self._rows: list[QueuedPicture] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            self._rows = [row for row in self._rows if not row.ticket.future.done()]
            return len(self._rows)

    def check_room(self, pictures: int = 1) -> None:
        """Raises QueueFullError or StoppedError where so many cannot be added now."""
        with self._changed:
            if self.stopping:
                raise StoppedError
            if (more := len(self) + pictures - self.capacity) > 0:
                raise QueueFullError(self._seconds(more))

    def add(self, rows: Sequence[QueuedPicture]) -> None:
        """All of them or none; errors as in `check_room`."""
        with self._changed:
            self.check_room(len(rows))
            self._rows += rows
            self._changed.notify_all()

    def ahead(self, ticket: Ticket) -> int:
        """The number of rows before the ticket's first one; 0 once none of its own waits."""
        with self._changed:
            return next((i for i, row in enumerate(self._rows) if row.ticket is ticket), 0)

    def move(self, ticket: Ticket, bucket: Hashable) -> None:
        """The rows of a ticket to another bucket, at their places."""
        with self._changed:
            for row in self._rows:
                if row.ticket is ticket:
                    row.bucket = bucket
            self._changed.notify_all()

    def stop(self) -> None:
        """Nothing may be added from now on."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Some ticket is done."""
        with self._changed:
            self._changed.notify_all()

    def take(self) -> list[QueuedPicture]:
        """Waits for the rows to work on next, whose bucket the oldest one decides, and takes them out, but those that need a blueprint.
        They are as many as a batch has, or else a power of two, for every number compiles anew. None once it has stopped and is empty."""
        with self._changed:
            while len(self) or not self.stopping:
                ready = [row for row in self._rows if row.bucket is not None]
                rows = [row for row in ready if row.bucket == ready[0].bucket]
                design = bool(ready) and ready[0].bucket == DESIGN
                if design:  # a ticket has one blueprint
                    rows = [row for row in rows if row.index == 0]
                time_left = ready[0].ticket.since + self.wait - time.monotonic() if ready else None
                if time_left is not None and (len(rows) >= self.batch or time_left <= 0 or self.stopping):
                    rows = rows[: self.batch if len(rows) >= self.batch else 1 << len(rows).bit_length() - 1]
                    if not design:
                        self._rows = [row for row in self._rows if row not in rows]
                    return rows
                self._changed.wait(time_left)
            return []
