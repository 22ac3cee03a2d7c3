"""`dim train` in several processes: what they tell each other, one log and one checkpoint, an end for all when one fails or is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from dim_jax import checkpoint, processes
from dim_jax.data.batches import PictureBatch
from dim_jax.data.pipeline import BadSample, BadSamples, LoadedBatch
from dim_jax.errors import InputError
from dim_jax.storage.paths import as_path, local_path, upload
from dim_jax.training.metrics_buffer import MetricsBuffer
from dim_jax.training.resume import latest_step
from dim_jax.training.supervision import STOPPED
from dim_jax.weights.convert import open_weights
from tests.started import ROOT, Started, started
from tests.test_kills import lines
from tests.test_train import arguments, log, train

LAUNCHER = ROOT / "launch/local_processes.py"
# At the config's learning rate rounding grows to 2e-4 of the loss in ten steps: Adam makes much of the sign of a gradient near zero.
SAME = {"data__batch_size": "8", "optim__learning_rate": "2e-5", "train__save_every": "1000"}


def several(output: Path, count: int, devices: int, *command: str) -> AbstractContextManager[Started]:
    """The launcher with so many processes of a Python command."""
    return started(output, [sys.executable, str(LAUNCHER), "--processes", str(count), "--devices", str(devices), sys.executable, *command])


def test_the_launcher_shows_what_it_runs():
    command = [sys.executable, str(LAUNCHER), "--processes", "2", "--devices", "4", "--dry-run", "dim", "train", "--workdir", "a b"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert [line.endswith("dim train --workdir 'a b'") for line in shown] == [True, True]
    for number, line in enumerate(shown):
        assert f"JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={number} " in line
        assert "--xla_force_host_platform_device_count=4" in line
    assert len({line.split("JAX_COORDINATOR_ADDRESS=")[1].split()[0] for line in shown}) == 1


def test_the_launcher_ends_all_when_one_fails(tmp_path):
    script = "import os, sys, time; print('up', flush=True); time.sleep(600 if os.environ['JAX_PROCESS_ID'] == '0' else sys.exit(3))"
    with several(tmp_path / "output", 2, 1, "-c", script) as launched:
        assert launched.ended()[0] == 3


def test_the_launcher_passes_signals_on(tmp_path):
    with several(tmp_path / "output", 2, 1, "-c", "import time; print('up', flush=True); time.sleep(600)") as launched:
        launched.wait_until(lambda: "up\n" in launched.said())
        launched.process.send_signal(signal.SIGTERM)
        assert launched.ended()[0] == 128 + signal.SIGTERM


def test_what_is_missing_in_the_environment():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | {"JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-c", "from dim_jax import processes; processes.start()"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False).stderr
    assert "InputError: JAX_NUM_PROCESSES=2: a run of several processes needs JAX_COORDINATOR_ADDRESS" in said


def test_they_know_the_same_and_end_together(tmp_path, bucket):
    with several(tmp_path / "output", 2, 2, "-m", "tests.test_several", str(tmp_path), f"{bucket}/several") as launched:
        code, said = launched.ended()
    assert code == 1, said
    assert said.count("error: process 1: rows.jsonl, line 3: is broken") == 1, said  # by the one that waited for it
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert first == second
    assert first["gathered"] == [["", 0], ["ä" * 50, 1]]
    assert first["answers"] == [False, False, False, True, False]
    assert first["whole"] == list(range(8))
    assert "Step 1: the loss is nan" in first["not finite"]
    assert json.loads((tmp_path / "non_finite.json").read_text())["keys"] == ["a", "b", "c"]
    assert "4 rows cannot be used, but data.bad_samples allows 3. The last: row 9 All" in first["bad"]
    rows = [json.loads(line)["row"] for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert rows == [7, 1, 2, 9]
    for place in (tmp_path, as_path(f"{bucket}/several")):
        model = dict(checkpoint.read(place / "model"))
        assert (model["a"].tolist(), model["b"].tolist()) == (list(range(8)), list(range(1, 9)))
        assert (place / "model/tokenizer/words").read_text() == "a b"
        assert [path.name for path in place.iterdir() if "partial" in path.name] == []
    written = {"0.json", "1.json", "bad_samples.jsonl", "model", "non_finite.json"}
    assert {path.name for path in tmp_path.iterdir()} == written | {"output", "words"}


def together(folder: Path, remote: str) -> None:
    """One of two processes, with a folder here and one in a bucket. The second one fails at the end, while the first one waits for it."""
    with processes.distributed():
        number = jax.process_index()
        found: dict[str, Any] = {"gathered": processes.gather(["ä" * 50 * number, number])}
        vote = processes.Vote()
        found["answers"] = [vote(number == 1 and step == 2) for step in range(5)]
        places = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
        array = jax.make_array_from_callback((8,), places, lambda index: np.arange(8)[index])
        assert not array.is_fully_addressable
        found["whole"] = processes.to_host(array).tolist()

        recent = MetricsBuffer(folder / "non_finite.json")
        rows = ({0: "a", 1: "b"}, {1: "b", 2: "c"})[number]
        recent.add(1, rows, {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(1)})
        with pytest.raises(InputError) as error:
            recent.flush()
        found["not finite"] = str(error.value)
        bad_samples = BadSamples(folder / "bad_samples.jsonl", 3)

        def meet(row: int) -> None:
            batch, bad = PictureBatch(np.zeros((0, 1, 1, 3), np.uint8)), BadSample("rows", row, f"row {row}")
            next(bad_samples.watch(iter([LoadedBatch((), batch, (bad,))])))

        for row in (7, 1 + number):  # one in common
            meet(row)
        bad_samples.flush()
        if number == 1:
            meet(9)
        with pytest.raises(InputError) as error:
            bad_samples.flush()
        found["bad"] = str(error.value)
        (folder / "words").write_text("a b")
        for place in (folder, as_path(remote)):
            checkpoint.save(place / "model", {"a": array, "c": array}, {}, tokenizer=[folder / "words"])
            checkpoint.save(place / "model", {"a": array, "b": array + 1}, {}, tokenizer=[folder / "words"], overwrite=True)
        (folder / f"{number}.json").write_text(json.dumps(found))
        if number == 1:
            raise InputError("rows.jsonl, line 3: is broken")
        processes.barrier("what never comes")


def test_one_of_two_is_stopped_and_one_alone_goes_on(tmp_path):
    """Two slices of four devices log what one device does; SIGTERM to the second process saves one step and ends both with 75."""
    changes = SAME | {"sharding__slices": "2", "sharding__fsdp": "4"}
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    command = ["-m", "dim_jax.cli", *arguments("nano_encoder", parts, 100_000, **changes)]
    with several(tmp_path / "output", 2, 4, *command) as launched:
        launched.wait_until(lambda: lines(parts) >= 10)
        os.kill(second_of(launched.process.pid), signal.SIGTERM)
        code, said = launched.ended()
    assert code == STOPPED, said
    saved = latest_step(parts / "checkpoints")
    assert said.count(f"SIGTERM: the same command goes on after step {saved}\n") == 1
    assert [line["step"] for line in log(parts)] == list(range(1, saved + 1))
    assert not list(parts.glob("model"))

    code, said = train("nano_encoder", parts, saved + 2, **SAME)
    assert code == 0, said
    assert f"going on after step {saved}\n" in said
    assert train("nano_encoder", whole, saved + 2, **SAME)[0] == 0
    found, wanted = ([line["loss"] for line in log(run)] for run in (parts, whole))
    assert len(set(wanted)) == saved + 2 >= 12
    assert found != wanted  # it was another program
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.skipif("DIM_PROCESSES" not in os.environ, reason="compiles for minutes: make soak")
@pytest.mark.parametrize("remote", [False, True])
def test_two_paint_and_write_the_whole_model(tmp_path, bucket, remote):
    """As one does, from the same checkpoint, though its parameters are spread over both; here and in a bucket."""
    one, two = tmp_path / "one", as_path(f"{bucket}/two") if remote else tmp_path / "two"
    changes = SAME | {"model__dtype": "float32", "sample__num_steps": "2", "train__show_every": "2"}
    assert train("nano_edit", one, 1, **changes)[0] == 0
    upload(one, two) if remote else shutil.copytree(one, two)
    assert train("nano_edit", one, 2, **changes)[0] == 0
    command = ["-m", "dim_jax.cli", *arguments("nano_edit", two, 2, **changes, sharding__fsdp="2")]
    with several(tmp_path / "output", 2, 1, *command) as launched:
        code, said = launched.ended()
    assert code == 0, said
    assert said.count("going on after step 1\n") == said.count(f"wrote {two / 'model'}\n") == 1
    sheets = [np.asarray(Image.open(local_path(run / "sheets/000002.png")), int) for run in (one, two)]
    assert abs(sheets[0] - sheets[1]).max() <= 1
    models = [dict(open_weights(run / "model").stream()) for run in (one, two)]
    assert models[0].keys() == models[1].keys()
    for path, tensor in models[0].items():
        np.testing.assert_allclose(models[1][path], tensor, atol=1e-5, err_msg=path)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def second_of(launcher: int) -> int:
    """The process id of the second process that a launcher started."""
    children = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    (found,) = (pid for pid in children if b"JAX_PROCESS_ID=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return found


if __name__ == "__main__":
    together(Path(sys.argv[1]), sys.argv[2])
