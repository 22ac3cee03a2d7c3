"""The commands `dim edit` and `dim generate`: options in, one call of the library, one line out."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.designer_options import local_designer
from dim_jax.cli.options import SOLVER_NAMES, mesh_sizes, with_options
from dim_jax.console import open_console

DEFAULT = "Default: as the checkpoint says, else"
RATIO = "aspect_ratio"  # (width, height): stands for a size among changes until the resolution is known
console = open_console()


class Precision(StrEnum):
    """The dtype of stored tensors."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="A Draw-In-Mind, published or by `dim convert`: a folder, a gs:// address, or ORG/NAME[@REVISION] of the Hugging Face hub. "
        "Default: the bundled nano."
    ),
]
Output = Annotated[
    str, typer.Option("-o", "--output", help="PNG to write, also gs://BUCKET/...; prompt, seed and settings go into its metadata.")
]


class ComputeDtype(StrEnum):
    """The dtype of parameters and computation; tf32 is float32 with fast products."""

    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"


Dtype = Annotated[
    ComputeDtype | None, typer.Option(help="tf32: float32 with fast products. Default: bfloat16 on accelerators, float32 on the CPU.")
]


class Quantization(StrEnum):
    """The format of the kernels of large layers; the values of `models.quantized.Quantize`."""

    int8 = "int8"
    int4 = "int4"


Quantize = Annotated[
    Quantization | None,
    typer.Option(help="Weights of the encoder's and SANA's large layers in 8 or 4 bits: less memory, slightly other pictures."),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload", help="Keep weights in the host's memory, and only the part that computes on the device: less memory, slower."
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="N|all|AXIS=N,...",
        help="Devices that paint together: so many, or axes of a mesh: data (each has a picture or a branch of guidance), fsdp (that, and "
        "a part of the weights), tensor (a part of every layer). Default: one.",
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH[:WEIGHT]", help="A LoRA to add, of PEFT or diffusers, times 1 or WEIGHT. May be given several times."),
]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer, instead of the checkpoint's own.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


@dataclass(frozen=True)
class LoadingOptions:
    """How every command that paints loads a checkpoint."""

    lora: Loras = None
    dtype: Dtype = None
    quantize: Quantize = None
    offload: Offload = False
    devices: Devices = None
    tokenizer: Tokenizer = None

    @property
    def loading(self) -> dict[str, Any]:
        """Keywords of `from_pretrained`; refuses --devices that cannot be."""
        return {
            "dtype": self.dtype, "tokenizer": self.tokenizer, "mesh": mesh_sizes(self.devices), "loras": tuple(self.lora or ()),
            "quantize": self.quantize and self.quantize.value, "offload": self.offload,
        }  # fmt: skip


@dataclass(frozen=True)
class SamplingOptions(LoadingOptions):
    """The options of every command that paints. Settings that are None are as the checkpoint says."""

    checkpoint: Checkpoint = None
    seed: Annotated[int, typer.Option(help="Of the noise. The same seed gives the same picture.")] = 0
    steps: Annotated[int | None, typer.Option(min=1, help=f"Steps of the sampler. {DEFAULT} 30.")] = None
    guidance: Annotated[
        float | None, typer.Option(min=0, help=f"How far to move from the unconditional picture; 1 turns guidance off. {DEFAULT} 7.5.")
    ] = None
    guidance_start: Annotated[float | None, typer.Option(help=f"Fraction of the steps before which guidance is off. {DEFAULT} 0.")] = None
    guidance_stop: Annotated[float | None, typer.Option(help=f"Fraction of the steps after which guidance is off. {DEFAULT} 1.")] = None
    cache_interval: Annotated[
        int | None, typer.Option(min=1, help=f"Evaluate the network in one of so many steps, after the first fifth. {DEFAULT} 1.")
    ] = None
    float8: Annotated[
        bool | None,
        typer.Option(help="Compute SANA's large products in float8: faster on GPUs since H100. Default: as the checkpoint says, else no."),
    ] = None
    flow_shift: Annotated[float | None, typer.Option(help=f"More than 1 spends more steps on high noise. {DEFAULT} 3.")] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What to move away from, instead of the learned null condition.")] = None
    resolution: Annotated[int | None, typer.Option(min=1, help=f"The picture has about this x this pixels. {DEFAULT} 1024.")] = None
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH|WIDTH:HEIGHT",
            help="Of the result, in pixels, or an aspect ratio such as 16:9 at this resolution. Default: that of the source, else square.",
        ),
    ] = None
    tile: Annotated[
        int | None, typer.Option(min=1, help="Paint at the source's size in overlapping tiles of so many pixels a side. Default: whole.")
    ] = None
    best_of: Annotated[
        int | None,
        typer.Option(min=1, help="Paint so many, with this seed and the next ones, and keep the one that the prompt explains best."),
    ] = None
    solver: Annotated[str | None, typer.Option(metavar="NAME", help=f"The sampler: {SOLVER_NAMES}. {DEFAULT} dpm++2m.")] = None
    keep_last: Annotated[bool, typer.Option("--keep-last", help="Accept a prompt that is too long and lose its first tokens.")] = False
    overwrite: Overwrite = False

    def changes(self, prompts: list[str], image_guidance: float | None = None) -> dict[str, Any]:
        """The settings that were named, for `settings`; refuses all that can be refused before a checkpoint is read."""
        size = _size(self.size)
        from dim_jax.settings import Settings, check_prompt

        for number, prompt in enumerate(prompts, 1):
            check_prompt(prompt, "The prompt" if len(prompts) == 1 else f"The prompt of round {number}")
        options: dict[str, Any] = {
            "num_steps": self.steps, "guidance_scale": self.guidance, "image_guidance_scale": image_guidance,
            "guidance_start": self.guidance_start, "guidance_stop": self.guidance_stop, "cache_interval": self.cache_interval,
            "float8": self.float8, "flow_shift": self.flow_shift, "solver": self.solver, "resolution": self.resolution, "tile": self.tile,
            "best_of": self.best_of,
            "negative_prompt": self.negative_prompt, "overflow": "keep_last" if self.keep_last else None,
        }  # fmt: skip
        changes: dict[str, Any] = {name: value for name, value in (options | size).items() if value is not None}
        Settings(**{name: value for name, value in changes.items() if name != RATIO})
        return changes

    @staticmethod
    def settings(sampler: Any, changes: dict[str, Any], **more: Any) -> Any:
        """The `Settings` of a sampler with the changes, and `more`: an aspect ratio becomes a size."""
        from dim_jax.processing.buckets import nearest_bucket, sizes_by_ratio

        settings = replace(sampler.settings, **{name: value for name, value in changes.items() if name != RATIO}, **more)
        if RATIO not in changes:
            return settings
        sizes = sizes_by_ratio(settings.resolution, sampler.dim.config.autoencoder.factor)
        width, height = changes[RATIO]
        return replace(settings, size=nearest_bucket(width, height, sizes))


@with_options(sampling=SamplingOptions)
def edit(
    image: Annotated[str, typer.Option(help="The picture to edit, also gs://BUCKET/...")],
    output: Output,
    prompt: Annotated[str | None, typer.Option(help="The instruction; without a designer also a blueprint.")] = None,
    then: Annotated[
        list[str] | None, typer.Option(help="Another round: the instruction for the result so far. May be given many times.")
    ] = None,
    designer: Annotated[
        str,
        typer.Option(
            metavar="KIND:NAME",
            help="Who writes the blueprint: openai:gpt-4o (or azure, anthropic, google, openrouter, vllm, sglang, ollama), local, "
            "local:FOLDER, file:BLUEPRINTS.jsonl, none.",
        ),
    ] = "none",
    blueprint: Annotated[
        Path | None, typer.Option(help="Text file with the blueprint, painted as it stands, instead of a designer.")
    ] = None,
    show_blueprint: Annotated[bool, typer.Option("--show-blueprint", help="Print the blueprint of each round.")] = False,
    base_url: Annotated[
        str | None, typer.Option(help="Of the designer's server, such as http://localhost:8000/v1. Default: as its kind has it.")
    ] = None,
    row_id: Annotated[
        str | None, typer.Option("--id", help="Of the blueprint in a file: designer. Default: the picture's name without suffix.")
    ] = None,
    keep_unchanged: Annotated[
        bool, typer.Option("--keep-unchanged", help="Take what a round leaves alone from the picture before it, to the bit.")
    ] = False,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|X,Y,W,H",
            help="What may change: white in a picture of the source's size, or a rectangle in pixels or percent, such as 10%,20%,50%,50%. "
            "The rest stays as it is, to the bit, in every round.",
        ),
    ] = None,
    feather: Annotated[float, typer.Option(min=0, max=1024, help="Pixels within which the edit fades at the rim of --mask.")] = 0.0,
    rounds: Annotated[bool, typer.Option("--rounds", help="Also write the picture of each round, to OUTPUT with '.1.png' ...")] = False,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Also write source and result of each round side by side, to OUTPUT with '.sheet.png'.")
    ] = False,
    image_guidance: Annotated[
        float | None,
        typer.Option(
            "--image-guidance-scale",
            min=0,
            help=f"How near to stay to the picture, for a model that was trained with source dropout; 1 turns this off. {DEFAULT} 1.",
        ),
    ] = None,
    *,
    sampling: SamplingOptions,
) -> None:
    """Edit a picture as the prompt says, and the result as each --then says."""
    from dim_jax import edit_result
    from dim_jax.designer.choice import DesignerSpec
    from dim_jax.designer.design import read_text, write_blueprint
    from dim_jax.processing.masks import open_mask
    from dim_jax.processing.pictures import open_picture
    from dim_jax.storage.paths import as_path, local_path

    choice = DesignerSpec.parse(designer)
    if (prompt is None and not blueprint) or (blueprint and choice.kind != "none"):
        raise typer.BadParameter("Give --prompt, or --blueprint without a designer.")
    if blueprint and then:
        raise typer.BadParameter("A --blueprint is for one round. Leave out --then, or go on from the picture that you get.")
    if rounds and not then:
        raise typer.BadParameter("There is one round, and OUTPUT is its picture. Add --then, or leave it out.", param_hint="--rounds")
    if show_blueprint and not blueprint and choice.kind == "none":
        raise typer.BadParameter("Name who writes it (--designer), or give one (--blueprint).", param_hint="--show-blueprint")
    if feather and mask is None:
        raise typer.BadParameter("There is no mask whose rim could fade. Add --mask.", param_hint="--feather")
    if mask is not None and sampling.size is not None:
        raise typer.BadParameter("With a mask the result has the size of the picture. Leave --size out.", param_hint="--size")
    prompts = [prompt or "", *(then or [])]
    result = edit_result.check_output(output, overwrite=sampling.overwrite)
    sheet_path, paths = result.with_suffix(".sheet.png"), [result.with_suffix(f".{n}.png") for n in range(1, len(prompts) + 1) if rounds]
    for path in [*([sheet_path] if sheet else []), *paths]:
        edit_result.check_output(path, overwrite=sampling.overwrite)
    file = local_path(as_path(image))
    picture = open_picture(file)
    white = None if mask is None else open_mask(mask, picture.size)
    text = read_text(blueprint) if blueprint else prompts[0]
    changes, loading = sampling.changes([text, *prompts[1:]], image_guidance), sampling.loading
    writer = None
    if choice.kind not in ("none", "local"):
        writer = choice.open(base_url=base_url)
        # A wrong key fails here, before JAX and the weights are loaded; the session finds the answer in the journal.
        write_blueprint(file, text, writer, row_id=row_id)
    from dim_jax.pipeline import EditPipeline  # imports JAX, which takes seconds
    from dim_jax.session import EditSession

    pipeline = EditPipeline.from_pretrained(checkpoint_or_bundled(sampling.checkpoint), **loading)
    settings = sampling.settings(pipeline.sampler, changes)
    if choice.kind == "local":
        writer = local_designer(choice.name, pipeline.sampler, settings.resolution, sampling.dtype)
    session = EditSession(
        pipeline, picture, designer=writer, settings=settings, keep_unchanged=keep_unchanged, file=file, name=row_id
    )  # fmt: skip
    ready: dict[str, Any] = {"blueprint": text, "written_by": f"file:{blueprint}"} if blueprint else {}  # of the only round
    for number, instruction in enumerate(prompts):
        options = {"seed": sampling.seed, "mask": white, "feather": feather, "progress": console.is_terminal}
        edited = session.edit(instruction, **ready, **options)
        if show_blueprint:
            typer.echo(edited.prompt)
        if rounds:
            edited.save(paths[number], overwrite=sampling.overwrite)
    session.rounds[-1].save(result, overwrite=sampling.overwrite)
    if sheet:
        edit_result.save_sheet(session.rounds, sheet_path, overwrite=sampling.overwrite)
    typer.echo(f"wrote {output}" + (f" and {sheet_path}" if sheet else ""), err=True)


@with_options(sampling=SamplingOptions)
def generate(prompt: Annotated[str, typer.Option(help="What to paint.")], output: Output, *, sampling: SamplingOptions) -> None:
    """Paint a picture from a prompt alone."""
    from dim_jax import edit_result

    edit_result.check_output(output, overwrite=sampling.overwrite)
    changes, loading = sampling.changes([prompt]), sampling.loading
    from dim_jax.pipeline import GeneratePipeline

    pipeline = GeneratePipeline.from_pretrained(checkpoint_or_bundled(sampling.checkpoint), **loading)
    settings = sampling.settings(pipeline.sampler, changes)
    paintings = pipeline([prompt], seeds=[sampling.seed], settings=settings, progress=console.is_terminal)
    paintings[0].save(output, overwrite=sampling.overwrite)
    typer.echo(f"wrote {output}", err=True)


def checkpoint_or_bundled(chosen: str | None) -> str | Path:
    """What was named, else the bundled folder, with a word about it."""
    if chosen is not None:
        return chosen
    from dim_jax.weights.bundled import bundled_checkpoint

    folder = bundled_checkpoint()
    typer.echo("using the bundled nano model, 64 px emoji; --checkpoint takes another", err=True)
    return folder


def _size(text: str | None) -> dict[str, tuple[int, int]]:
    """The size (height, width), or the aspect ratio (width, height), that --size names."""
    if text is None:
        return {}
    mark = ":" if ":" in text else "x"
    first, _, second = text.lower().partition(mark)
    if not (first.isdecimal() and second.isdecimal() and len(text) < 16 and (mark == "x" or int(first) * int(second))):
        message = f"{text}: write HEIGHTxWIDTH in pixels, such as 768x1280, or an aspect ratio WIDTH:HEIGHT, such as 16:9."
        raise typer.BadParameter(message, param_hint="--size")
    return {"size" if mark == "x" else RATIO: (int(first), int(second))}
