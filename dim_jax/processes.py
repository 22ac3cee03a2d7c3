"""Several processes as one run: starting together, exchanging values, ending together.

The cluster names the processes (TPU pods, GKE, SLURM, Open MPI), or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do.
All run the same code in step, each with its own rows and shards. The first one alone writes what is not sharded. In a run of one process
every function here does the obvious: nothing waits, nothing is sent.
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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dim_jax.errors import InputError
from dim_jax.storage.locks import lock_folder
from dim_jax.storage.paths import AnyPath, as_path

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
FAILED = "dim_jax/failed"  # the key under which a process says why it ended
POLL_SECONDS, GRACE_SECONDS = 1.0, 5.0  # seconds between two looks at that key, and until a process ends after another one failed


def start() -> None:
    """Connect to the other processes, if there are any. Call it before the first use of a device.

    JAX_NUM_PROCESSES=1 is a run of one process, even on a cluster.

    Raises:
        InputError: some of the variables are missing, or are not valid numbers.
    """
    variables = {name: os.environ[name] for name in (ADDRESS, COUNT, NUMBER) if os.environ.get(name)}
    if variables.get(COUNT) == "1":
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `Termination`, also at the start
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # else two programs at once, each with collectives, wait for each other
    count, number = (int(value) if (value := variables.get(name, "")).isdecimal() else None for name in (COUNT, NUMBER))
    try:
        jax.distributed.initialize(variables.get(ADDRESS), count, number)
    except ValueError as error:  # no cluster was found that knows what is missing
        if variables:
            settings = ", ".join(f"{name}={value}" for name, value in variables.items())
            raise InputError(
                f"{settings}: a run of several processes needs {ADDRESS} (HOST:PORT of the first one), {COUNT} and {NUMBER} (from 0 on). "
                f"Set all three, or none if the cluster knows them. ({error})"
            ) from error
        if "coordinator_address" not in str(error):
            raise


@contextmanager
def distributed() -> Iterator[None]:
    """Run the processes as one: they start together, and if one fails the others do not wait for it for ever.

    A process that leaves with an error first closes what it opened, then tells the others. Those end a few seconds later with exit code 1
    and the same error, since they may hang in a collective that will never be complete.

    Raises:
        InputError: as `start`.
    """
    start()
    if not jax.distributed.is_initialized():
        yield
        return
    client, closed = global_state.client, threading.Event()
    assert client is not None
    watch = threading.Thread(target=_exit_after_failure, args=(client, closed), name="processes", daemon=True)
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


def _exit_after_failure(client: Any, closed: threading.Event) -> None:
    failures: list[tuple[str, str]] = []
    while not closed.wait(POLL_SECONDS):
        with suppress(jax.errors.JaxRuntimeError):  # JAX itself ends who cannot reach the coordinator for long
            failures = client.key_value_dir_get(FAILED)
        if failures:
            if closed.wait(GRACE_SECONDS):  # it ends by itself
                return
            print(f"error: {failures[0][1]}", file=sys.stderr, flush=True)
            try:
                jax.distributed.shutdown()
            finally:
                os._exit(1)  # the main thread may never come back from its collective


def is_first() -> bool:
    """Whether this process is the one that writes what all processes have."""
    return jax.process_index() == 0


def is_multiprocess() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def barrier(name: str) -> None:
    """Wait for all processes; `name` is of the point, the same for all."""
    if is_multiprocess():
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """The value of each process, in order, as JSON has it. All processes must call it."""
    if not is_multiprocess():
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    buffer = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # its size is a power of two, so that few programs are compiled
    buffer[: len(text)] = text
    rows = multihost_utils.process_allgather(buffer)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def to_host(array: Any) -> Any:
    """An array that this process can read: as it is, or in the host's memory if other processes hold parts of it. All must call it."""
    return array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)


def make_global_array(array: Any, sharding: Any, dtype: Any = None) -> jax.Array:
    """An array over many devices from one that every process has: each device gets the part that `sharding` gives it."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array[index], dtype or array.dtype))


@contextmanager
def shared_folder(opened: AbstractContextManager[AnyPath]) -> Iterator[AnyPath]:
    """The folder that the first process opens, for all to write into. The first closes it once all are done; all wait for that."""
    if not is_first():
        yield next(as_path(name) for name in gather("") if name)
        barrier("the others, with a folder")
    else:
        with opened as folder:
            gather(str(folder))
            yield folder
            barrier("the others, with a folder")
    barrier("a folder to be closed")


def lock_run_folder(folder: AnyPath) -> AbstractContextManager[None]:
    """`lock_folder`; the first process holds it for all processes of the run."""
    return lock_folder(folder) if is_first() else nullcontext()


class Vote:
    """Whether any process votes yes, called once a step.

    With several processes the answer is a step late: the devices count the votes of a step while the next step runs, so nobody waits.
    """

    def __init__(self) -> None:
        devices = np.asarray(jax.devices())
        mesh = Mesh(devices, ("all",), axis_types=(AxisType.Auto,))
        self._single, self._shape = not is_multiprocess(), devices.shape
        self._sharded, replicated = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
        self._count, self._previous = jax.jit(jnp.any, out_shardings=replicated), None

    def __call__(self, yes: bool) -> bool:
        """All processes get the same answer."""
        if self._single:
            return yes
        previous, votes = self._previous, jax.make_array_from_callback(self._shape, self._sharded, lambda _: np.full(1, yes))
        self._previous = self._count(votes)
        return previous is not None and bool(previous)
