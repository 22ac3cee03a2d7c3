"""What the engine promises for the pictures of one request, and why it may not keep it."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from dim_jax.batching import Request
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.settings import Settings

Stage = Literal["waiting", "designing", "painting", "done"]


class QueueFullError(Exception):
    """There is no room for these pictures now; there should be in `retry_after` seconds."""

    def __init__(self, retry_after: float):
        super().__init__(f"The queue is full. Try again in {retry_after:.0f} s.")
        self.retry_after = retry_after


class StoppedError(Exception):
    """The engine takes nothing new, or ended before these pictures were painted."""

    def __init__(self):
        super().__init__("The server is stopping. Try again later.")


class BlueprintError(InputError):
    """The designer wrote no blueprint for an instruction."""


@dataclass(eq=False)
class Ticket:
    """Pictures that were asked for together.

    Attributes:
        future: the results, in order; `future.cancel()` drops what is not painted yet. It raises InputError for what a client can mend,
            StoppedError, or whatever went wrong.
        stage: where the last of the pictures is.
        painted: how many are done.
        watched: whether `steps` and `latents` are kept up to date while it is painted, and cancelling ends a batch that nobody waits for.
        steps: of the sampler that are done.
        latents: what each picture heads for after those steps.
    """

    requests: list[Request]
    settings: Settings
    future: Future[list[EditResult]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    stage: Stage = "waiting"
    results: dict[int, EditResult] = field(default_factory=dict)
    watched: bool = False
    steps: int = 0
    latents: dict[int, Float[np.ndarray, "h w c"]] = field(default_factory=dict)

    @property
    def painted(self) -> int:
        return len(self.results)
