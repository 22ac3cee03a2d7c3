"""Runs with and without a cache, of a folder with a tiny checkpoint and data."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dim_jax import caching
from dim_jax.config import read_config
from dim_jax.data import cache
from dim_jax.data.pipeline import Loader, make_plan, open_mixture
from dim_jax.models.module import parameters, with_parameters
from dim_jax.storage.paths import as_path
from dim_jax.training.config_guard import check_config
from dim_jax.training.fingerprint import cached_mixture, fingerprint
from dim_jax.training.model_init import ModelInit
from dim_jax.training.objectives import open_objective
from dim_jax.weights.convert import open_weights
from tests.test_train import CONFIGS

PARTS = ("encoder", "connector", "sana", "autoencoder")
SMALL = {
    "data.mix.edit": "0.6", "data.mix.caption": "0.4", "data.balance": "0.0", "data.shift": "0", "data.batch_size": "4",
    "data.resolution": "32", "data.lengths": "(64,)", "model.condition_length": "24", "optim.cosine": "False", "optim.warmup_steps": "1",
    "train.log_every": "1", "train.save_every": "2", "train.show_every": "0", "sample.num_steps": "1",
}  # fmt: skip


def changes(place: Path, **more: str) -> dict[str, str]:
    init = {f"init.{part}": str(place / "tiny") for part in PARTS}
    return SMALL | init | {"data.source": str(place / "data")} | {key.replace("__", "."): value for key, value in more.items()}


def config(place: Path, **more: str) -> Any:
    return read_config(CONFIGS / "nano_edit.py", changes(place, **more))


def write(place: Path, name: str, storage: cache.HiddenDtype | None = None, **more: str) -> Path:
    caching.main(config(place, **more), place / name, hidden_dtype=storage, shard_bytes=8 * 9000)
    return place / name


def command(place: Path, name: str, *options: str, **more: str) -> list[str]:
    """The arguments of `dim NAME` for this run."""
    sets = [option for key, value in changes(place, **more).items() for option in ("--set", f"{key}={value}")]
    return [name, "--config", str(CONFIGS / "nano_edit.py"), *options, *sets]


class Run:
    """Loaded batches of a run, and their losses with the parameters that it starts with."""

    def __init__(self, place: Path, **more: str):
        now = config(place, **more)
        model_init = ModelInit.open(now, check_config(now))
        self.objective = objective = open_objective(now, model_init, model_init.tokenizer)
        parts = open_mixture(now.data.source, now.data.mix.to_dict(), split="train", side=32)
        if now.data.cache:
            parts = cached_mixture(as_path(now.data.cache), parts, fingerprint(model_init, objective))
        plan = make_plan(parts, objective.reader, objective.processor.tokenizer, batch_size=4, seed=0)
        self.loader = Loader(parts, plan, objective.reader, np.arange(4), replace_bad_samples=now.data.bad_samples > 0)
        params = dict(open_weights(place / "tiny").stream())
        self.model = with_parameters(objective.model, {path: params[path] for path in parameters(objective.model)})
        self.loss = jax.jit(lambda model, batch, key: objective.loss(model, objective.features(model, batch), key))

    def losses(self) -> np.ndarray:
        """Of batches of which some hold rows of two rounds."""
        return np.array([float(self.loss(self.model, self.loader(n).batch, jax.random.key(n))[0]) for n in range(10)])
