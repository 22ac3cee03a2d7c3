"""TPU slices by name, such as v5e:4x4: their chips, and the environment in which a machine without one compiles for them."""

import math
import os
import re
from dataclasses import dataclass

from dim_jax.errors import InputError

GIB = 2**30
# Device memory as published (cloud.google.com/tpu/docs), and Google's name of the kind. A TPU7x chip is two devices with half of it each.
CHIPS = {
    "v5e": ("v5litepod", 16 * GIB),
    "v5p": ("v5p", 95 * GIB),
    "v6e": ("v6e", 32 * GIB),
    "tpu7x": ("tpu7x", 96 * GIB),
}


@dataclass(frozen=True)
class Topology:
    """A slice: `name` as libtpu reads it, and the memory in bytes of each of its devices."""

    name: str
    kind: str
    memory: int

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Read KIND:ROWSxCOLUMNS (v5e, v6e) or KIND:XxYxZ (v5p, tpu7x).

        Raises:
            InputError: the name has another form, or the kind is unknown.
        """
        found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
        if found is None or found[1] not in CHIPS:
            raise InputError(f'"{name}" is no topology. Write KIND:AxB or KIND:AxBxC, such as v5e:4x4; kinds are {", ".join(CHIPS)}.')
        kind, memory = CHIPS[found[1]]
        return cls(name, f"{kind}-{math.prod(map(int, found[2].split('x')))}", memory)

    def pretend(self) -> None:
        """Set the environment that libtpu needs where there is no TPU. JAX reads the first of it when it is imported."""
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": self.kind, "TPU_WORKER_HOSTNAMES": "localhost"}
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # there is no chip that two processes could quarrel over
