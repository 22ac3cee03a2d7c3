"""The least time that a step can take on a chip (roofline model: Williams et al., Communications of the ACM 52(4), 2009)."""

from dataclasses import dataclass

from dim_jax.models.chips import Chip


@dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a device is busy in a step, at its published peak.

    `compute`: products of matrices in bfloat16; `memory`: reading and writing it; `links`: sending to other chips, over all links at once.
    """

    compute: float
    memory: float
    links: float

    @classmethod
    def of(cls, chip: Chip, *, flops: float, moved: float, sent: float) -> "Roofline":
        """From what one device computes, moves (bytes) and sends (bytes)."""
        return cls(flops / chip.flops, moved / chip.bandwidth, sent / chip.links)

    @property
    def lower_bound(self) -> float:
        """Seconds of a step if all three overlap perfectly."""
        return max(self.compute, self.memory, self.links)
