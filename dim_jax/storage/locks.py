"""Locks of output folders: one run at a time writes to a folder.

On this machine, and on file systems that several machines share, the lock is the kernel's (flock), which ends with its process, also after
a kill. In a bucket it is a lease: an object that its holder rewrites every `REFRESH` seconds, each time on condition that nobody else wrote
it. Another run that finds a lease watches it. If nobody has rewritten it for `STALE` seconds, its holder was killed, and the run says so
and takes it over; at once, if the holder was a process of this machine that has ended.

A killed process leaves the file of its lock and what it was writing, both without a lock. The same command takes the lock over; whoever
locks or writes anything else in that folder removes both. In a bucket, whoever locks something there removes leases that are stale.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4

from dim_jax.errors import InputError
from dim_jax.storage.jsonl import json_loads
from dim_jax.storage.paths import GS, AnyPath, absolute, creation_errors, file_system, is_remote, storage_errors

REFRESH, STALE = 10.0, 60.0  # seconds
RETRY_SECONDS = 0.5  # seconds in which a lock is tried again: another run may hold a stale one for a moment, to remove it
SCRATCH, LOCK = re.compile(r"\..*\.[0-9a-f]{16}\.partial"), re.compile(r"\.(.*\.)?lock")
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems that cannot lock
_HELD: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())


@contextmanager
def lock_folder(folder: AnyPath) -> Iterator[None]:
    """Make a folder and keep other runs from writing to it.

    Raises:
        InputError: another run holds it, it cannot be made, or the bucket cannot be reached.
    """
    with _exclusive(folder / ".lock", folder):
        yield


@contextmanager
def lock_output(target: AnyPath) -> Iterator[None]:
    """Keep other runs from writing the same file or folder, which need not exist yet. A thread may lock again what it holds.

    Raises:
        InputError: as `lock_folder`, for the parent folder.
    """
    target = absolute(target)
    with _exclusive(target.with_name(f".{target.name}.lock"), target):
        yield


@contextmanager
def _exclusive(lock: AnyPath, output: AnyPath) -> Iterator[None]:
    name = os.fspath(absolute(lock))
    if name in _HELD.get():
        yield
        return
    token = _HELD.set(_HELD.get() | {name})
    try:
        with _lease(lock, output) if is_remote(lock) else _file_lock(Path(lock), output):
            yield
    finally:
        _HELD.reset(token)


@contextmanager
def _file_lock(lock: Path, output: AnyPath) -> Iterator[None]:
    with creation_errors(output):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(lock, output)
    try:
        remove_stale(lock.parent.absolute())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def _open_locked(lock: Path, output: AnyPath) -> int:
    """The lock's file, opened and locked, with the name of this process in it."""
    until = time.monotonic() + RETRY_SECONDS
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        with ExitStack() as failed:
            failed.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() < until:
                    time.sleep(0.01)
                    continue
                raise _locked_error(output, _Holder.read(os.read(file, 1000))) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                print(f"{output}: its file system has no locks ({error.strerror}); let no other run write to it", file=sys.stderr)
            if os.fstat(file).st_nlink:  # the previous holder may have removed it at its end
                with suppress(OSError):  # a full disk; the name is only for the errors of other runs
                    os.ftruncate(file, 0)
                    os.write(file, _Holder.current().text())
                failed.pop_all()
                return file


@lru_cache(4096)
def remove_stale(folder: Path) -> None:
    """Remove what killed processes left in a folder: scratch outputs and our locks that nobody holds.

    Files of other programs stay, and so do the locks of a file system without locks. Cached, since a folder may have many entries.
    """
    with suppress(OSError):  # a folder that may not be listed
        for path in folder.iterdir():
            if SCRATCH.fullmatch(path.name) or LOCK.fullmatch(path.name):
                with suppress(OSError):  # it is locked, gone, somebody else's, or of a file system without locks
                    _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever locks a removed file makes a new one, so the name is still that of the file that is locked here.
        if os.fstat(file).st_nlink and (path.name.endswith(".partial") or _Holder.read(os.read(file, 1000)).pid):
            remove(path)
    finally:
        os.close(file)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def _lease(lock: AnyPath, output: AnyPath) -> Iterator[None]:
    lease, closed = _Lease(lock, output), threading.Event()
    lease.acquire()
    lease.remove_stale()
    keeper = threading.Thread(target=lease.renew, args=(closed,), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        closed.set()
        keeper.join()
        lease.release()


class _Lease:
    """The object in a bucket. Its generation changes with every write; it is watched and replaced by generation."""

    def __init__(self, lock: AnyPath, output: AnyPath):
        self._path, self._output, self._holder, self._generation = os.fspath(lock), output, _Holder.current(), 0

    def acquire(self) -> None:
        """Raises InputError if another run rewrites it while this one watches."""
        watched = None
        while True:
            generation, holder, age = self._read()
            if generation != watched and watched is not None and generation:
                raise _locked_error(self._output, holder)
            if not generation or holder.has_exited() or age >= STALE:
                if self._write(generation):
                    if generation:
                        print(f"{self._output}: {holder.name} was killed while it wrote here; going on in its place", file=sys.stderr)
                    return
            elif watched is None:
                print(f"{self._output}: held by {holder.name}; waiting {STALE - age:.0f} s to see whether it still writes", file=sys.stderr)
            watched = generation
            time.sleep(1)

    def remove_stale(self) -> None:
        """Remove the leases of killed runs beside this one."""
        bucket, name = self._names
        with suppress(InputError), storage_errors(self._path):  # they are in nobody's way
            folder = name[: name.rfind("/") + 1]
            headers, content = self._call("GET", "b/{}/o", bucket, prefix=f"{folder}.", delimiter="/")
            for other in json.loads(content).get("items", ()):
                if LOCK.fullmatch(other["name"].removeprefix(folder)) and other["name"] != name and _age(other, headers) >= STALE:
                    self._call("DELETE", "b/{}/o/{}", bucket, other["name"], ifGenerationMatch=str(other["generation"]))

    def renew(self, closed: threading.Event) -> None:
        while not closed.wait(REFRESH):
            with suppress(InputError):  # the bucket cannot be reached at the moment
                if not self._write(self._generation):
                    print(f"error: {_locked_error(self._output, self._read()[1])} This run ends.", file=sys.stderr, flush=True)
                    os._exit(1)  # before it writes anything more

    def release(self) -> None:
        with suppress(InputError), storage_errors(self._path):
            self._call("DELETE", "b/{}/o/{}", *self._names, ifGenerationMatch=str(self._generation))

    def _read(self) -> tuple[int, "_Holder", float]:
        """Generation, content, and age in seconds; generation 0: there is no lease."""
        with storage_errors(self._path):
            try:
                headers, content = self._call("GET", "b/{}/o/{}", *self._names)
                metadata = json.loads(content)
                return int(metadata["generation"]), _Holder.read(file_system(self._path).cat_file(self._path)), _age(metadata, headers)
            except FileNotFoundError:
                return 0, _Holder.read(b""), 0.0

    def _write(self, generation: int) -> bool:
        """Replace the lease of this generation (0: none). False: somebody else wrote it."""
        bucket, name = self._names
        files = file_system(self._path)
        address = f"{files._location}/upload/storage/v1/b/{quote(bucket)}/o"  # gcsfs itself cannot write on condition
        query = {"uploadType": "multipart", "ifGenerationMatch": str(generation), "json_out": True}
        kind, parts = "Content-Type: application/json\r\n\r\n", (json.dumps({"name": name}), self._holder.text().decode())
        body = "".join(f"--part\r\n{kind}{part}\r\n" for part in parts) + "--part--"
        headers = {"Content-Type": 'multipart/related; boundary="part"'}
        with storage_errors(self._path):
            try:
                self._generation = int(files.call("POST", address, data=body.encode(), headers=headers, **query)["generation"])
            except FileExistsError:  # another generation, perhaps our own: a request may be sent twice
                self._generation, holder, _ = self._read()
                return holder == self._holder
        return True

    def _call(self, *request: Any, **options: Any) -> Any:
        return file_system(self._path).call(*request, **options)

    @property
    def _names(self) -> tuple[str, str]:
        bucket, _, name = self._path.removeprefix(GS).partition("/")
        return bucket, name


def _age(metadata: Mapping[str, Any], headers: Mapping[str, str]) -> float:
    """Seconds since an object was written, both by the clock of the bucket; up to a second less, as `Date` has whole seconds."""
    return (parsedate_to_datetime(headers["Date"]).astimezone(UTC) - datetime.fromisoformat(metadata["updated"])).total_seconds()


class _Holder(NamedTuple):
    """The process that holds a lock. `machine` is empty if it cannot be identified."""

    name: str
    pid: int
    machine: str
    token: str

    @classmethod
    def current(cls) -> "_Holder":
        machine = ""
        with suppress(OSError):  # only Linux has these: the boot of a machine, and the namespace of process ids
            machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
        return cls(f"process {os.getpid()} on {socket.gethostname()}", os.getpid(), machine, uuid4().hex)

    @classmethod
    def read(cls, text: bytes) -> "_Holder":
        try:
            return cls(**json_loads(text))
        except (ValueError, TypeError):  # torn, or not yet written
            return cls("another run", 0, "", "")

    def text(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    def has_exited(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        if not self.machine or self.machine != _Holder.current().machine:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # of another user
            return False
        return False


def _locked_error(output: AnyPath, holder: _Holder) -> InputError:
    return InputError(f"{output}: {holder.name} is writing to it. Wait until it ends, or choose another output.")
