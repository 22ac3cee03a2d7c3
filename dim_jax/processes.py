"""Several processes as one run: how they meet, and what they must do together.

The cluster says who takes part (TPU pods, GKE, SLURM, Open MPI), or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do.
All run the same text at the same pace, each with its own rows and shards. What is not sharded is written by the first one alone. A run of
one process needs nothing of this, and everything here is then what one expects of it.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state  # the only way to the coordinator's store of keys and values
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dim_jax.errors import InputError
from dim_jax.storage.locks import lock_folder
from dim_jax.storage.paths import AnyPath, as_path

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
FAILED = "dim_jax/failed"  # the key under which a process says why it ended
LOOK, GRACE = 1.0, 5.0  # seconds between two looks at that key, and until one that others have left ends


def start() -> None:
    """Meet the other processes, if there are any. Must come before the first use of a device.

    JAX_NUM_PROCESSES=1 stays alone, whatever the cluster says.

    Raises:
        InputError: the variables are not all there, or no numbers that fit.
    """
    named = {name: os.environ[name] for name in (ADDRESS, COUNT, NUMBER) if os.environ.get(name)}
    if named.get(COUNT) == "1":
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `Termination`, and from who waits to start
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # else two programs at once, each with collectives, wait for each other
    count, number = (int(text) if (text := named.get(name, "")).isdecimal() else None for name in (COUNT, NUMBER))
    try:
        jax.distributed.initialize(named.get(ADDRESS), count, number)
    except ValueError as error:  # no cluster was found that knows what is missing
        if named:
            said = ", ".join(f"{name}={value}" for name, value in named.items())
            raise InputError(
                f"{said}: several processes need {ADDRESS} (HOST:PORT of the first one), {COUNT} and {NUMBER} (from 0 on). Set all "
                f"three, or none where the cluster knows them. ({error})"
            ) from error
        if "coordinator_address" not in str(error):
            raise


@contextmanager
def distributed() -> Iterator[None]:
    """Within it the processes of a run are one: they have met, and where one fails the others do not wait for it for ever.

    One that leaves with an error says so to the others once all that it had begun is closed; those end with exit code 1 and the same error
    a few seconds later, for they may hang in a collective that will never be complete.

    Raises:
        InputError: as `start`.
    """
    start()
    if not jax.distributed.is_initialized():
        yield
        return
    client, closed = global_state.client, threading.Event()
    assert client is not None
    watch = threading.Thread(target=_end_with_the_others, args=(client, closed), name="processes", daemon=True)
    watch.start()
    failure = "it was ended"
    try:
        yield
        failure = ""
    except SystemExit:  # agreed upon
        failure = ""
        raise
    except (InputError, OSError) as error:
        failure = str(error)
        raise
    finally:
        if failure:
            with suppress(jax.errors.JaxRuntimeError):  # the coordinator is gone, and with it all who could read it
                client.key_value_set(f"{FAILED}/{global_state.process_id}", f"process {global_state.process_id}: {failure}")
        closed.set()
        watch.join()


def _end_with_the_others(client: Any, closed: threading.Event) -> None:
    said: list[tuple[str, str]] = []
    while not closed.wait(LOOK):
        with suppress(jax.errors.JaxRuntimeError):  # JAX itself ends who cannot reach the coordinator for long
            said = client.key_value_dir_get(FAILED)
        if said:
            if closed.wait(GRACE):  # it ends by itself
                return
            print(f"error: {said[0][1]}", file=sys.stderr, flush=True)
            try:
                jax.distributed.shutdown()
            finally:
                os._exit(1)  # the main thread may never come back from its collective


def is_first() -> bool:
    """Whether this process is the one that writes what all have alike."""
    return jax.process_index() == 0


def is_multiprocess() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def barrier(what: str) -> None:
    """Until all processes have come here; `what` is the same for all, and says for what."""
    if is_multiprocess():
        multihost_utils.sync_global_devices(what)


def gather(said: Any) -> list[Any]:
    """What each process says, in order, as JSON has it. All must ask."""
    if not is_multiprocess():
        return [said]
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    room = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # of a power of two, for few programs
    room[: len(text)] = text
    rows = multihost_utils.process_allgather(room)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def to_host(array: Any) -> Any:
    """An array that this process can read: as it is, or in the host's memory if others hold parts of it. All must ask."""
    return array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)


def make_global_array(array: Any, where: Any, dtype: Any = None) -> jax.Array:
    """An array over many devices from one that this process has whole: each of its devices gets the part that the sharding names."""
    return jax.make_array_from_callback(array.shape, where, lambda index: np.asarray(array[index], dtype or array.dtype))


@contextmanager
def shared(opened: AbstractContextManager[AnyPath]) -> Iterator[AnyPath]:
    """The folder that the first process opens, for all of them to write into; it closes it when all are done, and all wait for that."""
    if not is_first():
        yield next(as_path(name) for name in gather("") if name)
        barrier("the others, with a folder")
    else:
        with opened as folder:
            gather(str(folder))
            yield folder
            barrier("the others, with a folder")
    barrier("a folder to be closed")


def locked(folder: AnyPath) -> AbstractContextManager[None]:
    """`lock_folder`, which the first process holds for all of a run."""
    return lock_folder(folder) if is_first() else nullcontext()


class Vote:
    """Whether any process says yes, asked once a step.

    Among several it is answered a step late: the votes of a step are counted on the devices after that step, while the next one goes on,
    so nobody waits for them.
    """

    def __init__(self) -> None:
        devices = np.asarray(jax.devices())
        mesh = Mesh(devices, ("all",))
        self._alone, self._shape = not is_multiprocess(), devices.shape
        self._each, once = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
        self._count, self._before = jax.jit(jnp.any, out_shardings=once), None

    def __call__(self, yes: bool) -> bool:
        """All processes get the same answer."""
        if self._alone:
            return yes
        before, said = self._before, jax.make_array_from_callback(self._shape, self._each, lambda _: np.full(1, yes))
        self._before = self._count(said)
        return before is not None and bool(before)
