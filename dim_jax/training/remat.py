"""`model.remat = "auto"`: what a step saves for its backward pass, by the memory that there is.

Which sets of results there are, models/sana.py says (SAVED_NAMES). Those that save more are faster, but for "none" where blocks run in a
loop, which copies all that is saved: that takes longer than to compute it again (docs/performance.md).
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import jax

from dim_jax.models.sana import Remat
from dim_jax.storage.disk import GIB

AUTO = "auto"
FASTEST_FIRST: tuple[Remat, ...] = ("none", "products", "narrow", "all")
USABLE = 0.92  # of a device's memory: the rest is for sheets of held-out examples, and for gaps between arrays


def remat_choices(name: str, *, unrolled: bool = False) -> tuple[Remat, ...]:
    """What `config.model.remat` may mean, the fastest first. `unrolled`: SANA's blocks run without a loop (`layers.unrolls`)."""
    if name != AUTO:
        return (cast(Remat, name),)
    return FASTEST_FIRST if unrolled else FASTEST_FIRST[1:]


class FittingStep:
    """A training step that takes, for each shape of batch, the first of some choices whose program fits the memory of a device.

    Where the memory is not known, as on CPUs, that is the first. All processes of a run choose alike, since they compile one program.
    """

    def __init__(self, make_step: Callable[[Remat], Any], choices: Sequence[Remat], print_line: Callable[[str], Any]):
        """`make_step(remat)` is a compiled function (state, frozen, batch) -> (state, metrics); `print_line` gets what is chosen."""
        self._make_step, self._choices, self._print_line = make_step, choices, print_line
        self._steps: dict[Hashable, Any] = {}

    def __call__(self, state: Any, frozen: Any, batch: Any) -> Any:
        shapes = tuple(array.shape for array in jax.tree.leaves(batch))
        if shapes not in self._steps:
            self._steps[shapes] = self._compile_first_fitting(self._choices, state, frozen, batch)
        return self._steps[shapes](state, frozen, batch)

    def _compile_first_fitting(self, choices: Sequence[Remat], *arguments: Any) -> Any:
        """The step of the first of `choices` that fits, or of the last."""
        remat, *rest = choices
        try:
            step = self._make_step(remat).lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or not rest:
                raise
            return self._compile_first_fitting(rest, *arguments)
        memory = step.memory_analysis()
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        if rest and needed > USABLE * (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", float("inf")):
            return self._compile_first_fitting(rest, *arguments)
        self._print_line(f'model.remat "{remat}": a step takes {needed / GIB:.1f} GiB of a device')
        return step
