"""What visitors of the page do: open a picture, have it planned, paint rounds of it, take them back. It knows no page.

studio = Studio(engine, sampler, limits, {"local": writer}, LatentPreview.fit(sampler, pictures))
visit = studio.visit("a visitor")
studio.open(visit, file.read_bytes())
for progress in studio.edit(visit, Wish("Make the sky red.", designer="local")):
    print(progress.text)
visit.session.rounds[-1].save("red.png")
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from PIL import Image

from dim_jax.batching import Request
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.pipeline import EditPipeline
from dim_jax.sampling import Sampler
from dim_jax.serve import jobs
from dim_jax.serve.blueprints import CALLS, BlueprintWriter
from dim_jax.serve.engine import NO_BLUEPRINT, Engine
from dim_jax.serve.limits import Limits
from dim_jax.serve.tickets import Ticket
from dim_jax.serve.uploads import read_upload
from dim_jax.session import EditSession
from dim_jax.settings import Settings, check_prompt
from dim_jax.web.preview import LatentPreview

POLL = 0.1  # seconds between two looks at a painting
NOBODY = "none"  # the designer that leaves the instruction as it is
BY_HAND = "by hand"
VISITS, BRANCHES, ROUNDS = 64, 8, 32  # the most that are kept: of visitors, and of each
log = logging.getLogger("dim_jax.web")


class Progress(NamedTuple):
    """How far a painting is.

    Attributes:
        text: what happens now.
        share: of the steps that are done, in [0, 1].
        preview: a pixel for each latent; None before the first step.
    """

    text: str
    share: float = 0.0
    preview: Image.Image | None = None


class Wish(NamedTuple):
    """What a visitor asks for, as the page has it.

    Attributes:
        prompt: the instruction of an edit, or what to paint.
        blueprint: what is painted instead, if it is not empty.
        designer: who writes one where there is none.
        mask: grey, where it is black the picture stays; None: all may change.
        keep_unchanged: as in `EditSession`.
        fields: those of `serve.jobs.EditFields`.
    """

    prompt: str
    blueprint: str = ""
    designer: str = NOBODY
    mask: Image.Image | None = None
    keep_unchanged: bool = False
    fields: Mapping[str, Any] = {}


@dataclass(eq=False)
class Visit:
    """What one visitor has here.

    Attributes:
        branches: ways to edit the picture that was opened.
        current: the branch that is seen.
        painted: the last picture from text.
        planned: the last blueprint of a designer, and its name.
        busy: whether something is planned or painted now.
        cancelled: whether it is to be given up.
    """

    branches: list[EditSession] = field(default_factory=list)
    current: int = 0
    painted: EditResult | None = None
    planned: tuple[str, str] = ("", NOBODY)
    busy: bool = False
    cancelled: bool = False

    @property
    def session(self) -> EditSession:
        """The current branch.

        Raises:
            InputError: no picture was opened.
        """
        if not self.branches:
            raise InputError("There is no picture yet. Choose one first.")
        return self.branches[self.current]

    def cancel(self) -> None:
        """Give up what is being planned or painted: the sampler ends after its present step."""
        self.cancelled = True

    def idle(self) -> "Visit":
        """Itself, where nothing is painted that a change would pull the picture away from.

        Raises:
            InputError: something is.
        """
        if self.busy:
            raise InputError("A picture is being painted. Wait for it, or cancel it.")
        return self

    def undo(self) -> None:
        """Take back the last round of the branch; errors as in `EditSession.undo` and `idle`."""
        self.idle().session.undo()

    def branch(self) -> None:
        """Begin another branch at this round, and go there.

        Raises:
            InputError: there are too many; or as in `idle`.
        """
        if len(self.idle().branches) == BRANCHES:
            raise InputError(f"There are {BRANCHES} branches, and no more are kept. Go on in one of them.")
        self.branches.append(self.session.branch())
        self.current = len(self.branches) - 1

    def go_to(self, number: int) -> None:
        """See another branch; errors as in `idle`."""
        self.idle().current = min(max(number, 0), len(self.branches) - 1)


class Studio:
    """Paints for all visitors, through one engine.

    Attributes:
        model: what visitors may know of the painter.
    """

    def __init__(self, engine: Engine, sampler: Sampler, limits: Limits, writers: Mapping[str, BlueprintWriter], preview: LatentPreview):
        """`writers`: the designers that can be chosen, by name."""
        self.engine, self.limits, self.writers = engine, limits, writers
        self.model = jobs.ModelInfo.from_sampler(sampler)
        self._pipeline = EditPipeline(sampler) if self.model.edits else None
        self._preview = preview
        self._visits = OrderedDict[str, Visit]()
        self._lock = threading.Lock()
        self._designers = ThreadPoolExecutor(CALLS, "designer")

    def visit(self, name: str) -> Visit:
        """That of a visitor. Where there are too many, the one that was not here for the longest time is forgotten."""
        with self._lock:
            visit = self._visits.setdefault(name, Visit())
            self._visits.move_to_end(name)
            if len(self._visits) > VISITS:
                self._visits.popitem(last=False)[1].cancel()
        return visit

    def leave(self, name: str) -> None:
        """The visitor is gone: nothing more is painted, all is forgotten."""
        with self._lock:
            left = self._visits.pop(name, None)
        if left is not None:
            left.cancel()

    def open(self, visit: Visit, picture: bytes | Image.Image) -> None:
        """Begin with another picture, a file as it was uploaded or one of ours.

        Raises:
            InputError, ApiError: it cannot be used, or something is being painted; or the model does not edit.
        """
        if self._pipeline is None:
            raise InputError(f"{self.model.name} paints from text alone, and edits nothing.")
        if isinstance(picture, bytes):
            picture = read_upload(picture, "The picture", self.limits)
        visit.idle().branches[:] = [EditSession(self._pipeline, picture)]
        visit.current, visit.planned = 0, ("", NOBODY)

    def design(self, visit: Visit, wish: Wish) -> Generator[Progress, None, str]:
        """Ask the designer for a blueprint, and return it.

        Raises:
            InputError, ApiError: something cannot be used, or there is no blueprint. CancelledError: the visitor cancelled.
        """
        with self._alone(visit):
            wish = wish._replace(blueprint="")
            self._read(wish)
            return (yield from self._design(visit, wish))

    def edit(self, visit: Visit, wish: Wish) -> Generator[Progress, None, EditResult]:
        """Paint the next round, and return it. The designer is asked first where one is named and there is no blueprint.

        Raises:
            InputError, ApiError: something cannot be used, or there is no blueprint. QueueFullError, StoppedError: as `Engine.submit`.
            CancelledError: the visitor cancelled. The rounds stay as they were.
        """
        with self._alone(visit):
            session, source = visit.session, visit.session.source
            fields, settings = self._read(wish)
            if len(session.rounds) == ROUNDS:
                raise InputError(f"There are {ROUNDS} rounds, and no more are kept. Take some back, or open the picture that you have got.")
            mask = None if wish.mask is None else wish.mask.resize(source.picture.size, Image.Resampling.BILINEAR)
            blueprint = wish.blueprint.strip()
            if not blueprint and wish.designer != NOBODY:
                blueprint = yield from self._design(visit, wish)
            assert self._pipeline is not None
            request = self._pipeline.request(blueprint or wish.prompt, source, fields.seed or 0, settings, mask, fields.feather)
            result = yield from self._paint(visit, request, settings)
            written_by = NOBODY if not blueprint else visit.planned[1] if blueprint == visit.planned[0] else BY_HAND
            session.keep_unchanged = wish.keep_unchanged
            return session.add(result, wish.prompt, written_by)

    def generate(self, visit: Visit, wish: Wish) -> Generator[Progress, None, EditResult]:
        """Paint a picture from the prompt alone, and return it; errors as in `edit`."""
        with self._alone(visit):
            fields, settings = self._read(wish)
            size = settings.size or (settings.resolution, settings.resolution)
            visit.painted = yield from self._paint(visit, Request(wish.prompt, fields.seed or 0, size), settings)
            return visit.painted

    @contextmanager
    def _alone(self, visit: Visit) -> Iterator[None]:
        """One thing at a time for a visitor."""
        with self._lock:
            visit.idle().busy, visit.cancelled = True, False
        try:
            yield
        finally:
            visit.busy = False

    def _read(self, wish: Wish) -> tuple[jobs.EditFields, Settings]:
        """What is asked for, within the limits."""
        if not wish.blueprint.strip():
            check_prompt(wish.prompt, "The instruction")
        fields = jobs.read_fields(jobs.EditFields, {"prompt": wish.blueprint.strip() or wish.prompt, **wish.fields})
        settings = jobs.read_settings(self.model, self.limits, fields, image_guidance_scale=fields.image_guidance)
        return fields, replace(settings, size=jobs.read_size(self.model, self.limits, fields.size) or settings.size)

    def _design(self, visit: Visit, wish: Wish) -> Generator[Progress, None, str]:
        if wish.designer not in self.writers:
            raise InputError(
                f"Nobody is chosen to write a blueprint. Choose a designer: {', '.join(self.writers) or 'there is none here'}."
            )
        picture, writer = visit.session.source.picture, self.writers[wish.designer]
        writing = self._designers.submit(writer.write, [picture], [wish.prompt])
        yield from self._wait(visit, writing, lambda: Progress(f"{writer.name} writes a blueprint"))
        (text,) = writing.result()
        if text is None:
            raise InputError(NO_BLUEPRINT)
        visit.planned = (text, writer.name)
        return text

    def _paint(self, visit: Visit, request: Request, settings: Settings) -> Generator[Progress, None, EditResult]:
        ticket = self.engine.submit([request], settings, watched=True)
        yield from self._wait(visit, ticket.future, lambda: self._progress(ticket))
        return ticket.future.result()[0]

    def _wait(self, visit: Visit, future: Future, look: Callable[[], Progress]) -> Iterator[Progress]:
        """What is seen until a future is done, each time that it changes. One that nobody waits for any more is cancelled.

        Raises:
            CancelledError: the visitor cancelled.
        """
        last = None
        try:
            while not future.done():
                if visit.cancelled:
                    raise CancelledError
                if (now := look())[:2] != last:
                    last = now[:2]
                    yield now
                wait([future], POLL)
        finally:
            future.cancel()

    def _progress(self, ticket: Ticket) -> Progress:
        total = ticket.settings.num_steps
        if ticket.stage != "painting":
            ahead = self.engine.queue.ahead(ticket)
            return Progress(f"waiting for {ahead} pictures, about {self.engine.seconds(ahead):.0f} s" if ahead else "waiting for its turn")
        if not ticket.steps:
            return Progress("reading picture and text")
        return Progress(f"step {ticket.steps} of {total}", ticket.steps / total, self._preview(ticket.latents[0]))
