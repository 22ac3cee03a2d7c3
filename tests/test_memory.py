"""A state that two processes share is drawn, saved and restored without either ever holding much more than its half.

Too slow for every test run (3 GiB are written and read): `make soak` sets DIM_MEMORY.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from dim_jax import processes
from dim_jax.config import read_config
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.sharding import Sharding
from dim_jax.training.model_init import ModelInit
from dim_jax.training.resume import training_states
from dim_jax.training.state import abstract_state, init_state
from dim_jax.weights.model_config import ModelConfig
from tests.test_several import ROOT, several

GIB = 2**30
STAGES = tuple(replace(stage, depth=depth) for stage, depth in zip(DCAEConfig.f32c32().encoder, (1, 1, 1, 1, 2, 2), strict=True))
STATUS = Path("/proc/self/status")


@pytest.mark.skipif("DIM_MEMORY" not in os.environ or not STATUS.exists(), reason="slow: make soak")
def test_each_process_holds_only_its_shards(tmp_path):
    for what in ("draw", "restore"):
        with several(tmp_path / "output", 2, 1, "-m", "tests.test_memory", what, str(tmp_path)) as launched:
            code, said = launched.ended(1800)
        assert code == 0, said
        found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert len(found) == 2
        for one in found:
            print(f"\n{what}: a state of {one['state'] / GIB:.2f} GiB, at most {one['peak'] / GIB:.2f} GiB of anonymous memory")
            assert one["state"] >= 2 * GIB
            assert one["peak"] < 0.75 * one["state"]
    shutil.rmtree(tmp_path)


def main(what: str, folder: Path) -> None:
    """One of two processes with the training state of an autoencoder that is as wide as the published one, and half as deep."""
    with processes.distributed():
        config = read_config(ROOT / "configs/nano_autoencoder.py", {"sharding.fsdp": "2", "data.batch_size": "2"})
        model_config = ModelConfig(autoencoder=replace(DCAEConfig.f32c32(), encoder=STAGES, decoder=STAGES))
        abstract = abstract_state(config, model_config, Sharding.open(config, model_config))
        with training_states(folder, keep=1, keep_every=0) as saved:
            if what == "draw":
                with anonymous() as seen:
                    params = ModelInit(model_config, {}).init_params(config.seed, abstract.params)
                    state = jax.block_until_ready(init_state(config, params, abstract))
                saved.save(1, state, {})
            else:
                with anonymous() as seen:
                    restored = saved.restore(abstract)
                assert restored is not None
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
        sys.stdout.write(json.dumps({"state": size, "peak": max(seen)}) + "\n")  # whole: the other process writes to the same file


@contextmanager
def anonymous() -> Iterator[list[int]]:
    """This process's memory in bytes that no file stands behind, looked at a hundred times a second."""
    found, closed = [], threading.Event()

    def look() -> None:
        while not closed.wait(0.01):
            (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
            found.append(int(line.split()[1]) * 1024)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        closed.set()
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
