"""Helpers for Orbax, for checkpoints and training states: valid paths, its disk errors, and no log noise after a failure."""

import asyncio
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dim_jax.errors import check
from dim_jax.storage.folders import check_name
from dim_jax.storage.paths import AnyPath, absolute

JOIN_SECONDS = 10  # seconds that a thread of Orbax may go on after an error, which it logs at its end


def orbax_path(path: AnyPath) -> str:
    """The absolute path, as Orbax takes it.

    Raises:
        InputError: TensorStore or gcsfs would read it as another path.
    """
    check_name(path)
    text = os.fspath(absolute(path))
    inside = text.removeprefix("gs://")
    check(
        "\\" not in inside and not re.search(r"(gs|s3|az|hf):/", inside) and text.encode(errors="ignore").decode() == text,
        f"{text!a}: the path of a checkpoint may not contain a backslash, bytes that are not UTF-8, or 'gs:/'. Rename the folder.",
    )
    return text


def disk_error(error: Exception) -> OSError | None:
    """The OSError in the text of an error of Orbax; None: it is another kind of error."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silence what Orbax's threads and tasks log, or send to closed event loops; the error that Orbax raises is enough."""
    log, policy = logging.getLogger("absl"), asyncio.get_event_loop_policy()
    level = log.level
    log.setLevel(logging.CRITICAL)
    asyncio.set_event_loop_policy(_Policy())
    uvloop: Any = sys.modules.get("uvloop")  # which Orbax takes in place of asyncio's loops where one is running
    new_event_loop = getattr(uvloop, "new_event_loop", None)
    if uvloop is not None:
        uvloop.new_event_loop = _Loop
    try:
        yield
    except BaseException:
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax."):
                threading.Thread.join(thread, JOIN_SECONDS)  # its own `join` raises the error once more
        raise
    finally:
        asyncio.set_event_loop_policy(policy)
        log.setLevel(level)
        if uvloop is not None:
            uvloop.new_event_loop = new_event_loop


class _Loop(asyncio.SelectorEventLoop):
    """Ignores callbacks after it is closed, and tasks of Orbax and TensorStore whose error is already raised."""

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return None if self.is_closed() else super().call_soon_threadsafe(callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not re.search("/orbax/|tensorstore", repr(context)):
            super().call_exception_handler(context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()
