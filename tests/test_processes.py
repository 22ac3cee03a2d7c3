"""Several processes, which share a mesh, train on the same plan as one, and log the same; each loads its own rows alone.

One mesh of four devices, of one process, of two (in the reverse order of the mesh) or of four, which go on where another number stopped.
"""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.local_server import free_port
from tests.started import started, with_devices

HALF, WHOLE = 3, 5  # steps
MESH = (2, 2, 1)
MOST = int(os.environ.get("DIM_PROCESSES", "2"))  # `make soak` takes four


def run(count: int, folder: Path, goes_on: str) -> list[dict[str, Any]]:
    """What each of `count` processes found. They save in a folder of their number, and go on from the states in `goes_on`."""
    arguments = [sys.executable, "-m", "tests.test_processes", str(count), str(free_port()), str(folder), goes_on]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(folder / f"{count}-{number}.output", [*arguments, str(number)], with_devices(4 // count)))
            for number in range(count)
        ]
        ended = [process.ended() for process in processes]
    assert all(code == 0 for code, _ in ended), "\n".join(said for _, said in ended)
    return [json.loads(next(line for line in said.splitlines() if line.startswith("{"))) for _, said in ended]  # Gloo prints too


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder of all states, and what one process found."""
    folder = tmp_path_factory.mktemp("processes")
    (found,) = run(1, folder, "")
    return folder, found


def test_the_plan_and_the_log_are_those_of_one_process(one):
    folder, alone = one
    found = {2: run(2, folder, "1")} | ({4: run(4, folder, "2")} if MOST == 4 else {})
    assert alone["places"] == list(range(8))
    assert len(set(alone["losses"])) == WHOLE
    assert {len(planned[2]) for planned in alone["plan"]} == {8}
    for processes in found.values():
        assert sorted(place for process in processes for place in process["places"]) == list(range(8))
        for process in processes:
            assert process["plan"] == alone["plan"]
            assert process["keys"] == [[keys[place] for place in process["places"]] for keys in alone["keys"]]
            losses = [[float.fromhex(loss) for loss in one["losses"]] for one in (process, alone)]
            np.testing.assert_allclose(*losses, rtol=1e-5)
    assert [process["places"] for process in found[2]] == [[4, 5, 6, 7], [0, 1, 2, 3]]  # as the mesh has them, not the processes


def main(count: int, port: int, folder: Path, goes_on: str, number: int) -> dict[str, Any]:
    """One process: half of the steps, which are saved; and the rest, from there or from the states of another number of processes."""
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    from dim_jax.training.resume import training_states
    from tests.test_sharding import Run

    devices, parameters = jax.devices(), folder / "parameters.npz"
    known = dict(np.load(parameters)) if count > 1 else {}  # drawing them takes longest
    mine = Run(MESH, known, devices[::-1] if count == 2 else devices)
    if count == 1:
        np.savez(parameters, **known, **mine.first.params)
    state, losses = mine.steps(mine.first, 0, HALF)
    with training_states(folder / str(count), keep=1, keep_every=0) as saved:
        saved.save(HALF, state, {})
    if goes_on:
        with training_states(folder / goes_on, keep=1, keep_every=0) as saved:
            restored = saved.restore(mine.abstract_state)
        assert restored is not None
        state = restored.state
    losses += mine.steps(state, HALF, WHOLE)[1]
    plan = [mine.loader.plan.batch_at(step) for step in range(WHOLE)]
    return {
        "places": mine.loader.batch_indices.tolist(),
        "losses": losses,
        "keys": [mine.loader(step).keys for step in range(WHOLE)],
        "plan": [(planned.component, planned.bucket, planned.rows.tolist()) for planned in plan],
    }


if __name__ == "__main__":
    count, port, folder, goes_on, number = sys.argv[1:]
    print(json.dumps(main(int(count), int(port), Path(folder), goes_on, int(number))))
