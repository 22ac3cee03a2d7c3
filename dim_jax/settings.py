"""Sampling settings: the published values, and those that a checkpoint sets in its settings.json."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dim_jax.diffusion.solvers import SOLVER_NAMES
from dim_jax.errors import InputError, check, check_unicode, prefix_errors
from dim_jax.models.hf_config import HFConfig
from dim_jax.processing.pictures import MAX_PIXELS

MAX_STEPS = 1000  # the timesteps that the model knows
MAX_SHIFT = 1000.0  # near 16,000 the first sigma is 1 in float32, and the sampler divides by 1 - sigma
MAX_SCALE = 1000.0
# What a checkpoint may set. The other fields of `Settings` depend on the picture or on the machine.
CHECKPOINT_SETTINGS = {
    "num_steps": int, "guidance_scale": float, "image_guidance_scale": float, "flow_shift": float, "solver": str, "resolution": int,
    "guidance_start": float, "guidance_stop": float, "cache_interval": int, "float8": bool, "distilled": str,
}  # fmt: skip
# What the encoder of a checkpoint was trained to write blueprints from: any prompt, as Qwen2.5-VL was, or the instruction alone.
PromptMode = Literal["prompt", "instruction"]
Distilled = Literal["none", "guidance", "steps"]  # what a model was distilled for (docs/few_steps.md)
BLUEPRINT_FROM = "blueprint_from"


@dataclass(frozen=True)
class Settings:
    """Sampling settings; the defaults are the published ones.

    `size` is (height, width) of the result in pixels. By default an edit has its source's size, and is painted at the size of about
    `resolution` x `resolution` pixels whose aspect ratio is nearest; a picture from text is square. `tile`: SANA sees square tiles of so
    many pixels a side that overlap (`models/sana_tiling.py`), and an edit is painted at its source's size. `negative_prompt` replaces the
    learned null condition.
    `image_guidance_scale` guides an edit by its source as well (`sampler.sample`), with three evaluations a step instead of two: more
    than 1 stays nearer to the source, 1 is off. It only helps models that were trained with source dropout.
    Guidance is on from the fraction `guidance_start` of the steps to `guidance_stop`. After the first fifth of the steps, one step in
    `cache_interval` is evaluated; the others reuse its velocity (`sampler.evaluations`). `float8`: the large products of SANA's blocks are
    computed in float8, which is faster on GPUs since H100 and changes pictures a little.
    `distilled`: to paint in one branch ("guidance"), or also in these steps and no others ("steps"); `check_distilled`.
    `best_of`: paint so many results of each request, with its seed and the next ones, and keep the one that its prompt explains best
    (`Sampler.prompt_alignment`).
    `overflow="keep_last"` accepts prompts that are longer than the condition and drops their first tokens.
    """

    num_steps: int = 30
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.0
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    cache_interval: int = 1
    float8: bool = False
    distilled: Distilled = "none"
    flow_shift: float = 3.0
    solver: str = "dpm++2m"
    resolution: int = 1024
    size: tuple[int, int] | None = None
    tile: int | None = None
    negative_prompt: str | None = None
    overflow: Literal["error", "keep_last"] = "error"
    batch_size: int = 4
    best_of: int = 1

    def __post_init__(self):
        scales = (self.guidance_scale, self.image_guidance_scale)
        counts = (self.num_steps, self.resolution, self.batch_size, self.best_of)
        numbers = 1 / MAX_SHIFT <= self.flow_shift <= MAX_SHIFT and all(0 <= scale <= MAX_SCALE for scale in scales)  # NaN is not
        check(
            numbers and min(counts) >= 1 and self.num_steps <= MAX_STEPS,
            f"num_steps {self.num_steps} must be 1 to {MAX_STEPS}; resolution {self.resolution}, batch_size {self.batch_size} and best_of "
            f"{self.best_of} at least 1; flow_shift {self.flow_shift} between {1 / MAX_SHIFT:g} and {MAX_SHIFT:g}; guidance_scale "
            f"{self.guidance_scale} and image_guidance_scale {self.image_guidance_scale} not negative and at most {MAX_SCALE:g}.",
        )
        height, width = self.size or (self.resolution, self.resolution)
        check(min(height, width) >= 1, f"Size {height} x {width}: a side needs at least 1 pixel.")
        if height * width > MAX_PIXELS:
            raise InputError(f"{height} x {width} pixels are more than the {MAX_PIXELS:,} that are accepted. Paint a smaller picture.")
        check(
            0 <= self.guidance_start <= self.guidance_stop <= 1 and self.cache_interval >= 1,
            f"guidance_start {self.guidance_start} and guidance_stop {self.guidance_stop} are fractions of the steps, from 0 to 1, the "
            f"first not after the second; cache_interval {self.cache_interval} must be at least 1.",
        )
        check(self.solver in SOLVER_NAMES, f'There is no solver "{self.solver}". Solvers are {", ".join(SOLVER_NAMES)}.')
        kinds = get_args(Distilled)
        check(self.distilled in kinds, f'distilled is "{self.distilled}", but a model is distilled for one of {", ".join(kinds)}.')
        if self.negative_prompt is not None:
            check_prompt(self.negative_prompt, "The negative prompt")

    def of_picture(self) -> dict[str, Any]:
        """What makes a picture, by name: without `batch_size`, and `best_of` where there is one (so older pictures say the same)."""
        left_out = {"batch_size"} | ({"best_of"} if self.best_of == 1 else set())
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def num_branches(self, *, guidance_embeds: bool, image_guidance: bool = True) -> int:
        """How many branches a guided step evaluates (`sampler.advance`). There is one where the network takes the scale as an input, and
        where scales are 1. `image_guidance`: whether that counts, as it does where there is a source."""
        image_scale = self.image_guidance_scale if image_guidance else 1.0
        if guidance_embeds or (self.guidance_scale, image_scale) == (1, 1):
            return 1
        return 2 + (image_scale != 1)


def read_settings(path: Path | None, factor: int = 1, published: Settings | None = None) -> Settings:
    """The settings in a checkpoint's settings.json. Keys of `CHECKPOINT_SETTINGS` that it lacks, or all without a file (None), are as
    `published` (None: as Draw-In-Mind's). The file may also have `blueprint_from` (`read_prompt_mode`). `factor`: pixels of a side that its
    autoencoder makes one latent pixel of, 1 without an autoencoder.

    Raises:
        InputError: the file is damaged, or a key is unknown or has a value with which nothing can be painted.
    """
    file = HFConfig({} if path is None else path)
    if unknown := [key for key in file.values if key not in (*CHECKPOINT_SETTINGS, BLUEPRINT_FROM)]:
        raise InputError(
            f"{path}: unknown settings: {', '.join(unknown)}. Settings are {', '.join((*CHECKPOINT_SETTINGS, BLUEPRINT_FROM))}."
        )
    values = {key: file.get(key, kind) for key, kind in CHECKPOINT_SETTINGS.items() if key in file}
    if (resolution := values.get("resolution", 0)) % factor:
        raise InputError(f"{path}: resolution {resolution} is not a multiple of {factor} pixels, as this autoencoder needs. Correct it.")
    read_prompt_mode(path)
    with prefix_errors(path):
        return replace(published or Settings(), **values)


def read_prompt_mode(path: Path | None) -> PromptMode:
    """What the encoder writes blueprints from, by a checkpoint's settings.json: a prompt, unless the file names the instruction.

    Raises:
        InputError: the file is damaged, or has another value.
    """
    file = HFConfig({} if path is None else path)
    file.only(BLUEPRINT_FROM, *get_args(PromptMode))
    return "instruction" if file.get(BLUEPRINT_FROM, str, "prompt") == "instruction" else "prompt"


def check_distilled(name: str, own: Settings, settings: Settings, *, guidance_embeds: bool) -> None:
    """Refuse settings with which the model `name` cannot paint, if it was distilled.

    `own`: those of its checkpoint; `guidance_embeds`: its network takes the guidance scale (`SanaConfig`).

    Raises:
        InputError: a model that was distilled to few steps gets others, or one without an unconditional branch is to use it.
    """
    one_branch = guidance_embeds or own.distilled != "none"
    steps = ("num_steps", "flow_shift", "solver", "cache_interval") if own.distilled == "steps" else ()
    scale = ("guidance_scale",) if one_branch and not guidance_embeds else ()
    branches = ("image_guidance_scale", "guidance_start", "guidance_stop", "negative_prompt", "best_of") if one_branch else ()
    if differ := [key for key in (*steps, *scale, *branches) if getattr(settings, key) != getattr(own, key)]:
        reason = "it was distilled to paint so alone" if {*differ} & {*steps} else "it has one branch, whose weights hold the guidance"
        asked, fixed = (", ".join(f"{key} {getattr(of, key)!r}" for key in differ) for of in (settings, own))
        raise InputError(f"{name} paints with {fixed}, not {asked}: {reason}. Leave that out, or take its teacher.")


def check_prompt(prompt: str, name: str = "The prompt") -> None:
    """Refuse an empty or invalid prompt; `name` is what the error calls it.

    Raises:
        InputError: it has only white space, or half a character.
    """
    check_unicode(prompt, name)
    check(prompt.strip(), f"{name} is empty ({prompt!r}). Write what to paint, or leave a negative prompt out.")
