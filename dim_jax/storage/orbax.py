"""What checkpoints and training states share of Orbax: paths that it takes, its errors of a disk, and silence after a failure."""

import asyncio
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dim_jax.errors import InputError
from dim_jax.storage.folders import check_name
from dim_jax.storage.paths import AnyPath, absolute

THREADS_END = 10  # seconds that a thread of Orbax may go on after an error, which it logs at its end


def orbax_path(path: AnyPath) -> str:
    """The path as Orbax takes it, from its root.

    Raises:
        InputError: TensorStore or gcsfs would take it for another one.
    """
    check_name(path)
    text = os.fspath(absolute(path))
    inside = text.removeprefix("gs://")
    if "\\" in inside or re.search(r"(gs|s3|az|hf):/", inside) or text.encode(errors="ignore").decode() != text:
        raise InputError(
            f"{text!a}: checkpoints cannot lie in a folder with a backslash, bytes that are no UTF-8, or 'gs:' in its name. Rename it."
        )
    return text


def disk_error(error: Exception) -> OSError | None:
    """The error of a file system that Orbax reports in words; None: it is another one."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Only the error that Orbax raises is heard, nothing that its threads and tasks log or leave to event loops that it has closed."""
    log, policy = logging.getLogger("absl"), asyncio.get_event_loop_policy()
    level = log.level
    log.setLevel(logging.CRITICAL)
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    except BaseException:
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax."):
                threading.Thread.join(thread, THREADS_END)  # its own `join` raises the error once more
        raise
    finally:
        asyncio.set_event_loop_policy(policy)
        log.setLevel(level)


class _Loop(asyncio.SelectorEventLoop):
    """Ignores callbacks that come after it is closed, and tasks of Orbax whose error was raised already."""

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return None if self.is_closed() else super().call_soon_threadsafe(callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "/orbax/" not in repr(context):
            super().call_exception_handler(context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()
