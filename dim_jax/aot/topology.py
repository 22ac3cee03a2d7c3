"""TPU slices by name, such as v5e:4x4: their chips, and the environment for compiling without one."""

import math
import os
import re
from dataclasses import dataclass

from dim_jax.errors import InputError
from dim_jax.models.chips import TPUS, Chip


@dataclass(frozen=True)
class Topology:
    """A slice: `name` as libtpu reads it, `accelerator` as Google names it, and what its devices are."""

    name: str
    accelerator: str
    chip: Chip

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Read KIND:ROWSxCOLUMNS (v5e, v6e) or KIND:XxYxZ (v4, v5p, tpu7x).

        Raises:
            InputError: the name has another form, or the kind is unknown.
        """
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
        if match is None or match[1] not in TPUS:
            raise InputError(f'"{name}" is not a topology. Write KIND:AxB or KIND:AxBxC, such as v5e:4x4; kinds are {", ".join(TPUS)}.')
        chip = TPUS[match[1]]
        return cls(name, f"{chip.slice_name}-{math.prod(map(int, match[2].split('x')))}", chip)

    def set_environment(self) -> None:
        """Set the environment that libtpu needs where there is no TPU. JAX reads JAX_PLATFORMS when it is imported."""
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": self.accelerator, "TPU_WORKER_HOSTNAMES": "localhost"}
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no chip, so no conflict between processes
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # programs for chips that are not here cannot be loaded from it
