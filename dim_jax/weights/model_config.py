"""The parts that a checkpoint holds, with their configs, and the shapes of all their parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dim_jax.errors import InputError
from dim_jax.models.connector import Connector
from dim_jax.models.dc_ae_config import DCAEConfig
from dim_jax.models.dim import makers
from dim_jax.models.module import parameters, shapes
from dim_jax.models.sana_config import SanaConfig
from dim_jax.rng import key_seed
from dim_jax.settings import Settings
from dim_jax.weights.families import encoder_config
from dim_jax.weights.table import Shape

# Parts of a run that no checkpoint has: what a student learns from, and what projects SANA's hidden states (training/repa.py).
TEACHER, REPA = "teacher", "repa"


@dataclass(frozen=True)
class ModelConfig:
    """Configs of the parts that a checkpoint has. It has a connector if it has both encoder and SANA.

    `encoder` is that of a family (`weights.families`), such as `QwenConfig`. `teacher` is a SANA that a run distils, `repa` the widths that
    a projection of SANA's hidden states goes from and to; no checkpoint has these.
    """

    encoder: Any = None
    sana: SanaConfig | None = None
    autoencoder: DCAEConfig | None = None
    teacher: SanaConfig | None = None
    repa: tuple[int, int] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, which begin the paths of their parameters."""
        return tuple(self.modules())

    @property
    def is_whole(self) -> bool:
        """Whether it has all parts of Draw-In-Mind."""
        return len(self.parts) == 4

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Read what `to_json` returns (the config.json of a checkpoint folder).

        Raises:
            InputError: a part is unknown, or its config is invalid.
        """
        known = [part for part in cls.__annotations__ if part not in (TEACHER, REPA)]
        if not isinstance(data, Mapping) or not data or (unknown := sorted(set(data) - {*known})):
            raise InputError(f"config.json: parts are {', '.join(known)}; found {unknown if data else 'none'}.")
        return cls(
            encoder=encoder_config(data["encoder"], "config.json: encoder") if "encoder" in data else None,
            sana=SanaConfig.from_json(data["sana"]) if "sana" in data else None,
            autoencoder=DCAEConfig.from_hf(data["autoencoder"]) if "autoencoder" in data else None,
        )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads: each part's config in its published form."""
        configs = {
            "encoder": self.encoder and self.encoder.to_hf(),
            "sana": self.sana and self.sana.to_json(),
            "autoencoder": self.autoencoder and self.autoencoder.to_hf(),
        }
        return {name: config for name, config in configs.items() if config is not None}

    def modules(self, *, dtype: DTypeLike = jnp.float32) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
        """Part -> a function that makes it with initial parameters; `dtype` is that of its computation."""
        modules = makers(self.encoder, self.sana, self.autoencoder, dtype=dtype)
        if (teacher := self.teacher) is not None:
            modules[TEACHER] = makers(None, teacher, None, dtype=dtype)["sana"]
        if (widths := self.repa) is not None:
            modules[REPA] = lambda rngs: Connector(*widths, dtype=dtype, rngs=rngs)
        return modules

    def of(self, part: str) -> "ModelConfig":
        """What the sizes of a part follow from: its own config, and for the connector those of its neighbours."""
        return ModelConfig(self.encoder, self.sana) if part == "connector" else ModelConfig(**{part: getattr(self, part)})

    def init(self, part: str, seed: int) -> dict[str, jax.Array]:
        """Path -> float32 array of every parameter of a part, initialized."""
        module = self.modules()[part](nnx.Rngs(key_seed(seed, f"params/{part}")))
        return {f"{part}.{path}": tensor for path, tensor in parameters(module).items()}

    def shapes(self) -> dict[str, Shape]:
        """Path -> shape of every parameter of every part; nothing is computed."""
        return _shapes(self)


@cache
def _shapes(config: ModelConfig) -> dict[str, Shape]:
    paths: dict[str, Shape] = {}
    for part, make in config.modules().items():
        module = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        paths |= {f"{part}.{path}": shape for path, shape in shapes(module).items()}
    return paths


def scheduler_to_diffusers(settings: Settings) -> dict[str, Any]:
    """The content of a scheduler_config.json with which diffusers' `DPMSolverMultistepScheduler` takes the steps of these settings; its
    first order is Euler's.
    """
    return {
        "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero",
        "flow_shift": settings.flow_shift, "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "flow_prediction",
        "solver_order": 1 if settings.solver == "euler" else 2, "use_flow_sigmas": True,
    }  # fmt: skip
