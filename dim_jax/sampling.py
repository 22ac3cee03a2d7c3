"""A model that paints: its compiled steps, its batches, its null condition. The pipelines and the training sheets call it."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dim_jax import programs
from dim_jax.batching import Batch, Request, batches, differ_in_seeds, one_ahead
from dim_jax.errors import InputError, check
from dim_jax.memory import check_memory, memory_errors
from dim_jax.models.dc_ae import DEFAULT_TILING
from dim_jax.models.dc_ae_tiling import Tiling
from dim_jax.models.dim import Dim, DimConfig
from dim_jax.models.module import parameters, with_parameters
from dim_jax.models.precision import compute_dtype
from dim_jax.models.quantized import Quantize, abstract_like, num_bytes, with_quantized
from dim_jax.models.sana import Condition
from dim_jax.models.sana_tiling import MIN_TILE
from dim_jax.processes import to_host
from dim_jax.processing.inputs import EncoderInputs
from dim_jax.processing.pictures import autoencoder_pixels, in_threads, to_picture
from dim_jax.settings import PromptMode, Settings, check_distilled, check_prompt, read_prompt_mode, read_settings
from dim_jax.sharding import Sharding
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.families import family_of
from dim_jax.weights.hub_files import locate_checkpoint
from dim_jax.weights.loading import add_factors, check_edits, load_module, open_dim
from dim_jax.weights.lora import sum_loras
from dim_jax.weights.lora_files import open_loras

# Buckets of condition tokens. A 1024 px picture alone has 1,371, a blueprint some 330 more: fine steps where most edits fall.
LENGTHS = (64, 128, 256, 384, 512, 768, 1024, 1536, 1792, 2048, 2560, 3072, 4096, 6144, 8192)
REMEDY = "Take --offload, --quantize int8 or int4, a smaller --resolution or batch_size, or --dtype bfloat16."
SMALL_TILING = Tiling(min_pixels=1024 * 1024)  # of the autoencoder where memory is short: larger pictures take 1.1 GiB beside its weights
# Settings that compiled programs depend on.
STATIC_SETTINGS = ("num_steps", "flow_shift", "solver", "guidance_start", "guidance_stop", "cache_interval", "float8", "tile")
TEMPLATE_TOKENS = 64  # what the chat template adds to a user turn, and more
OnStep = Callable[[int, Float[np.ndarray, "b h w c"]], None]


class DecodedImage(NamedTuple):
    """A picture and the latents that it was decoded from."""

    picture: Image.Image
    latents: Float[np.ndarray, "h w c"]


class Sampler:
    """A model, its processor, the settings that it is meant to paint with, and its compiled steps. One painter serves both pipelines."""

    def __init__(
        self,
        dim: Dim,
        processor: Any,
        name: str = "model",
        settings: Settings | None = None,
        prompt_mode: PromptMode = "prompt",
        sharding: Sharding | None = None,
        quantize: Quantize | None = None,
        offload: bool = False,
    ):
        """`processor`: as its family has it (`weights.families`). `prompt_mode`: what the encoder writes blueprints from, for a designer
        that shares it. `sharding`: the mesh that the parameters of `dim` are on, whose devices share the rows of a batch. `quantize`: as
        what `dim` has the kernels of its large layers. `offload`: the parameters of `dim` are in the host's memory."""
        self.dim, self.processor, self.name, self.settings = dim, processor, name, settings or Settings()
        self.prompt_mode: PromptMode = prompt_mode
        self.sharding, self.offload = sharding, offload
        self.quantize: Quantize | None = quantize
        self._tiling = SMALL_TILING if offload else DEFAULT_TILING
        self.sources = (name,)  # what it was read from: the checkpoint, and LoRAs as they were named
        self._null: dict[int, Condition] = {}
        self._leaves, self._structure = jax.tree.flatten(dim)
        self._condition = self._compiled(programs.condition, static_argnums=2)
        self._null_row = self._compiled(Dim.null_condition, static_argnums=1)
        self._encode = self._compiled(programs.encode, static_argnums=2)
        self._decode = self._compiled(programs.decode, static_argnums=2)
        self._paint = self._compiled(programs.paint, static_argnames=("size", *STATIC_SETTINGS))
        self._start = self._compiled(Dim.start, static_argnums=2)
        self._advance = self._compiled(programs.advance, static_argnames=STATIC_SETTINGS)
        self._prompt_alignment = self._compiled(programs.prompt_alignment)

    @classmethod
    def from_pretrained(
        cls,
        path: str | AnyPath,
        *,
        revision: str | None = None,
        edits: bool = False,
        dtype: DTypeLike | None = None,
        tokenizer: str | AnyPath | None = None,
        mesh: Mesh | Mapping[str, int] | None = None,
        loras: Sequence[str] = (),
        quantize: Quantize | None = None,
        offload: bool = False,
    ) -> "Sampler":
        """The model of a checkpoint in any format that holds all of Draw-In-Mind, with the settings of its settings.json, if any.

        Args:
            path: a folder, a file, an address of a bucket, or ORG/NAME of the Hugging Face hub.
            revision: a branch, tag or commit of a model of the hub; ORG/NAME@REVISION says the same.
            edits: ask for one that edits: another is refused before its weights are read.
            dtype: of parameters and computation: bfloat16 on accelerators, float32 on the CPU by default.
            tokenizer: a folder or hub id, used instead of the checkpoint's own.
            mesh: the devices that paint together, as sizes of mesh axes such as {"data": 4} (-1: all that there are) or a mesh of
                JAX's. The rows of a batch are spread over `data` and `fsdp`; parameters are copied over `data` and cut by `fsdp` and
                `tensor`. None: one device.
            loras: LoRAs to add, as in `with_loras`.
            quantize: "int8" or "int4": the kernels of the large layers in 8 or 4 bits (`models.quantized`), each as it is read.
            offload: keep the parameters in the host's memory, and copy to the device what a program reads for as long as it runs: the
                autoencoder, the encoder, SANA, the autoencoder. It takes pictures of more than 1024 x 1024 pixels in tiles.

        Raises:
            InputError: the checkpoint or its settings.json is damaged or incomplete, or has parts that do not belong together; there
                is no tokenizer; the mesh does not fit the devices or the model, or comes with `offload`; the parameters are larger than the
                device's memory; the hub's model cannot be fetched; or as in `with_loras`.
        """
        located = locate_checkpoint(path, revision)
        weights, config, processor = open_dim(located.path, tokenizer)
        settings = read_settings(weights.settings, config.autoencoder.factor, family_of(config).settings)
        prompt_mode = read_prompt_mode(weights.settings)
        if edits:
            check_edits(config.sana, located.name)
        factors = sum_loras(open_loras(loras), weights.config.shapes())  # before much is read
        check(mesh is None or not offload, "Offloading is for one device. Leave --offload out, or --devices.")
        chosen = compute_dtype(dtype)
        sharding = None if mesh is None else Sharding.for_painting(mesh, weights.config)
        param_sharding = None if sharding is None else sharding.param_sharding
        if sharding is None:
            check_memory(located.name, partial(part_bytes, config, chosen, quantize), offload=offload)
        dim = load_module(
            lambda rngs: Dim(config, dtype=chosen, rngs=rngs), weights, chosen,
            param_sharding=param_sharding, quantize=quantize, on_host=offload,
        )  # fmt: skip
        sampler = cls(dim, processor, located.name, settings, prompt_mode, sharding, quantize, offload)
        return sampler._with_factors(factors, loras) if loras else sampler

    def with_loras(self, loras: Sequence[str]) -> "Sampler":
        """The same model with these LoRAs, each "PATH" or "PATH:WEIGHT", added up, in place of those that it has. This one stays as it is;
        both share the memory of the model's own parameters.

        Raises:
            InputError: a LoRA cannot be read, or is of a model with other layers.
        """
        return self._with_factors(sum_loras(open_loras(loras), {path: x.shape for path, x in parameters(self.dim).items()}), loras)

    def _with_factors(self, factors: Mapping[str, np.ndarray], loras: Sequence[str]) -> "Sampler":
        config, dtype = self.dim.config, self.dtype
        param_sharding = None if self.sharding is None else self.sharding.param_sharding
        dim = add_factors(
            lambda rngs: Dim(config, dtype=dtype, rngs=rngs), self.dim, factors, param_sharding,
            quantize=self.quantize, on_host=self.offload,
        )  # fmt: skip
        name = " + ".join([self.sources[0], *loras])
        sampler = Sampler(dim, self.processor, name, self.settings, self.prompt_mode, self.sharding, self.quantize, self.offload)
        sampler.sources = (self.sources[0], *loras)
        return sampler

    def _compiled(self, function: Callable[..., Any], **options: Any) -> Any:
        """`function` of a model compiled, to be called with the model's leaves. Offloaded, a call copies the parameters that its program
        reads (`jax.jit` drops the others), and ends when they have left the device again."""
        compiler_options = (self.sharding and self.sharding.compiler_options) or {}
        compiled = programs.compiled(
            function, self._structure, self.sharding and self.sharding.mesh, tuple(compiler_options.items()), **options
        )
        return (lambda *args, **kwargs: jax.block_until_ready(compiled(*args, **kwargs))) if self.offload else compiled

    def _device_put(self, batch: Any) -> Any:
        """A batch of arrays for the compiled steps."""
        return batch if self.sharding is None else self.sharding.device_put(batch)

    def _batches(self, kinds: Sequence[Hashable], settings: Settings) -> list[Batch]:
        return batches(kinds, settings.batch_size, 1 if self.sharding is None else self.sharding.num_batch_shards)

    @property
    def dtype(self) -> str:
        """Of parameters and computation."""
        return str(self.dim.sana.x_embedder.proj.kernel[...].dtype)

    @property
    def precision(self) -> str:
        """`dtype`, and what the kernels of the large layers are kept as: "bfloat16, int8 weights"."""
        return self.dtype + (f", {self.quantize} weights" if self.quantize else "")

    def paint(
        self, requests: Sequence[Request], settings: Settings, *, progress: bool = False, on_step: OnStep | None = None
    ) -> Iterator[tuple[int, DecodedImage]]:
        """Every request's index and picture, once it is painted. Requests of one size are painted together, `batch_size` at a time.

        `on_step(steps, latents)` is called after each step of a batch, with the number of steps done and the latents that its pictures
        head for; what it raises ends the painting. The host then starts every step; without it, all steps are one program.

        Raises:
            InputError: a size or tile does not fit the autoencoder, or latents do not fit the size; a prompt, picture or seed cannot be
                used; settings do not fit a distilled model; or there is not enough memory.
        """
        self.check_settings(settings)
        for i, request in enumerate(requests):
            self._check(i + 1, request)
        least, factor = MIN_TILE * self.dim.config.autoencoder.factor, self.dim.config.autoencoder.factor
        if settings.tile is not None and (settings.tile < least or settings.tile % factor):
            raise InputError(f"Tiles of {settings.tile} pixels: a side must be a multiple of {factor}, and at least {least}.")
        columns = SpinnerColumn(), TextColumn("painting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, disable=not progress, transient=True) as bar:
            task = bar.add_task("painting", total=len(requests))
            started = self._dispatch(requests, settings, on_step)
            for batch, context, arrays in started if on_step else one_ahead(started):
                with memory_errors(context, REMEDY):
                    pixels, latents = (np.asarray(to_host(array)) for array in arrays)
                bar.advance(task, len(batch.indices))
                pictures = in_threads(to_picture, [*pixels[: len(batch.indices)]])
                for i, picture, cells in zip(batch.indices, pictures, latents, strict=False):
                    yield i, DecodedImage(picture, cells)

    def _dispatch(
        self, requests: Sequence[Request], settings: Settings, on_step: OnStep | None
    ) -> Iterator[tuple[Batch, str, tuple[Float[Array, "b rows columns 3"], Float[Array, "b h w c"]]]]:
        """Every batch, what to say of it in an error, and its pixels and latents, which devices may still be painting."""
        alike = self.sharding is None and differ_in_seeds(requests)
        for batch in self._batches([request.kind for request in requests], settings):
            filled = batch.fill(requests)
            context = f"{self.name}: painting {filled[0].size[0]} x {filled[0].size[1]} pixels in batches of {batch.rows}"
            with memory_errors(context, REMEDY):
                latents = self._batch(filled, settings, on_step, alike)
                arrays = self._decode(self._leaves, latents, self._tiling), latents
            yield batch, context, arrays

    def check_settings(self, settings: Settings) -> None:
        """Refuse settings that do not fit a distilled model, as `settings.check_distilled` does; what paints calls it."""
        check_distilled(self.name, self.settings, settings, guidance_embeds=self.dim.config.sana.guidance_embeds)

    def _check(self, number: int, request: Request) -> None:
        """Refuses a request that this model cannot paint; `number` counts from 1."""
        factor, channels = self.dim.config.autoencoder.factor, self.dim.config.sana.latent_channels
        check_prompt(request.prompt, f"Prompt {number}")
        if any(side < factor or side % factor for side in request.size):
            raise InputError(f"Size {request.size[0]} x {request.size[1]}: height and width must be multiples of {factor} pixels.")
        check(-(2**31) <= request.seed < 2**31, f"Seed {request.seed}: seeds are 32-bit integers. Choose one from 0 to {2**31 - 1}.")
        latents, fitting = request.source and request.source.latents, (*(side // factor for side in request.size), channels)
        if latents is not None and latents.shape != fitting:
            raise InputError(
                f"Source {number}: its latents have the shape {latents.shape}, but {request.size[0]} x {request.size[1]} pixels need "
                f"{fitting}. Leave the size out, or give the picture without latents."
            )

    def encode(self, pictures: Sequence[Image.Image], size: tuple[int, int]) -> Float[Array, "b h w c"]:
        """Latents of pictures, each scaled and cropped to `size` (height, width) in pixels.

        Raises:
            InputError: there is not enough memory.
        """
        with memory_errors(f"{self.name}: the autoencoder on {len(pictures)} pictures of {size[0]} x {size[1]}", REMEDY):
            pixels = in_threads(lambda picture: autoencoder_pixels(picture, size), pictures)
            return self._encode(self._leaves, self._device_put(np.stack(pixels)), self._tiling)

    def decode(self, latents: Float[Array | np.ndarray, "b h w c"]) -> list[Image.Image]:
        """Pictures of latents.

        Raises:
            InputError: there is not enough memory.
        """
        with memory_errors(f"{self.name}: the autoencoder on {len(latents)} latents of {latents.shape[1]} x {latents.shape[2]}", REMEDY):
            return in_threads(to_picture, [*np.asarray(to_host(self._decode(self._leaves, self._device_put(latents), self._tiling)))])

    def reconstruct(self, pictures: Sequence[Image.Image], settings: Settings) -> list[Image.Image]:
        """What the autoencoder makes of pictures, each scaled and cropped to `settings.resolution` squared, `batch_size` at a time.

        Raises:
            InputError: there is not enough memory.
        """
        size, images = (settings.resolution, settings.resolution), []
        for batch in self._batches([size] * len(pictures), settings):
            images += self.decode(self.encode(batch.fill(pictures), size))[: len(batch.indices)]
        return images

    def _batch(self, requests: Sequence[Request], settings: Settings, on_step: OnStep | None, alike: bool) -> Float[Array, "b h w c"]:
        """Latents of requests whose size and kind of source are the same."""
        size, factor = requests[0].size, self.dim.config.autoencoder.factor
        embeds, has_source = self.dim.config.sana.guidance_embeds, requests[0].source is not None
        image_scale = settings.image_guidance_scale if has_source else 1.0
        guided = settings.num_branches(guidance_embeds=embeds, image_guidance=has_source) > 1
        condition, branches = self._conditions(requests, settings, guided=guided, alike=alike)
        seeds, grid = self._device_put(np.array([request.seed for request in requests], np.int32)), (size[0] // factor, size[1] // factor)
        options: dict[str, Any] = branches | {
            "inside": self._inside(requests), "guidance_scale": np.float32(settings.guidance_scale),
            "image_guidance_scale": None if image_scale == 1 else np.float32(image_scale),
            **{name: getattr(settings, name) for name in STATIC_SETTINGS},
        }  # fmt: skip
        if on_step is None:
            return self._paint(self._leaves, condition, seeds, size=grid, **options)
        state, leaves = self._start(self._leaves, seeds, grid), self._with_sana_on_device()
        for step in range(settings.num_steps):
            state = self._advance(leaves, condition, state, np.int32(step), **options)
            on_step(step + 1, np.asarray(to_host(state.data)))
        return state.latents

    def prompt_alignment(
        self, requests: Sequence[Request], latents: Float[Array | np.ndarray, "n h w c"], settings: Settings
    ) -> Float[np.ndarray, " n"]:
        """How much better each request's prompt explains the result with these latents than no prompt, or the negative one, does
        (`Dim.prompt_alignment`); `batch_size` at a time, of one size and kind of source. Of results of one request the highest is best.

        Raises:
            InputError: the model was distilled and has one branch; or there is not enough memory.
        """
        self.check_settings(replace(self.settings, best_of=2))
        scores, alike = [], self.sharding is None and differ_in_seeds(requests)
        for batch in self._batches([request.kind for request in requests], settings):
            filled = batch.fill(requests)
            with memory_errors(f"{self.name}: comparing {batch.rows} results with their prompts", REMEDY):
                condition, branches = self._conditions(filled, settings, guided=True, alike=alike)
                rows = self._device_put(np.stack(batch.fill([*np.asarray(latents)])))
                scores += [*np.asarray(to_host(self._prompt_alignment(self._leaves, condition, rows, **branches)))][: len(batch.indices)]
        return np.array(scores)

    def _conditions(
        self, requests: Sequence[Request], settings: Settings, *, guided: bool, alike: bool = False
    ) -> tuple[Condition, dict[str, Any]]:
        """The condition of requests, and what else SANA reads beside the noise: their sources' latents and, if `guided`, the unconditional
        branch's condition or its one row (`programs`). Of requests that are `alike` the first one is encoded, and repeated."""
        rows, requests = len(requests), requests[:1] if alike else requests
        pictures = [[request.source.picture] if request.source is not None else [] for request in requests]
        inputs, length = self._inputs([request.prompt for request in requests], pictures, settings)
        prompt, negative = self.processor.null_prompt if settings.negative_prompt is None else settings.negative_prompt, None
        if guided and prompt is not None:
            negative, other = self._inputs([prompt] * len(requests), pictures, settings, negative=True)
            length = max(length, other)
        source = self._source(requests)

        def encode(inputs: EncoderInputs) -> Condition:
            condition = self._condition(self._leaves, self._device_put(inputs), length)
            return condition.broadcast(jnp.repeat(condition.mask, rows, 0)) if alike else condition

        return encode(inputs), {
            "null": self.null_condition(length) if guided and negative is None else None,
            "source": jnp.repeat(source, rows, 0) if alike and source is not None else source,
            "unconditional": None if negative is None else encode(negative),
        }  # fmt: skip

    def _with_sana_on_device(self) -> list[Any]:
        """The model's leaves, those of SANA on the device: offloaded, each step of a loop would copy them anew."""
        if not self.offload:
            return self._leaves
        on_device = {path: jax.device_put(x) if path.startswith("sana.") else x for path, x in parameters(self.dim).items()}
        return jax.tree.leaves(with_parameters(self.dim, on_device))

    def _source(self, requests: Sequence[Request]) -> Float[Array, "b h w c"] | None:
        """What SANA sees beside the noise: latents as they are, or those of the pictures."""
        given = [request.source.latents for request in requests if request.source is not None and request.source.latents is not None]
        if given:
            return jnp.asarray(self._device_put(np.stack(given)))
        if requests[0].source is None:
            return None
        return self.encode(in_threads(lambda request: request.canvas, requests), requests[0].size)

    def _inside(self, requests: Sequence[Request]) -> Bool[Array, "b h w"] | None:
        """The latents that may change where requests have masks."""
        if requests[0].opacity is None:
            return None
        cells = np.stack([request.inside(self.dim.config.autoencoder.factor) for request in requests])
        return jnp.asarray(self._device_put(cells))

    def _inputs(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], settings: Settings, *, negative: bool = False
    ) -> tuple[EncoderInputs, int]:
        """What the encoder reads, and the condition length that holds it."""
        processor = self.processor.at(settings.resolution)
        processor = processor.for_negative() if negative else processor
        longest = self.dim.config.sana.condition_length
        lengths = [*(n + TEMPLATE_TOKENS for n in LENGTHS), 2**15, 2**17]
        inputs = processor(prompts, pictures, lengths=lengths, overflow=settings.overflow)
        tokens = int(np.asarray(inputs.user_turn).sum(1).max())
        return inputs, min(longest, next((n for n in LENGTHS if n >= tokens), longest))

    def null_condition(self, length: int) -> Condition:
        """Keys and values of the condition of no prompt, of `length` tokens, computed once."""
        if length not in self._null:
            self._null[length] = self._null_row(self._leaves, length)
        return self._null[length]


def part_bytes(config: DimConfig, dtype: DTypeLike, quantize: Quantize | None = None) -> dict[str, int]:
    """Bytes of the parameters of each part ("encoder") on a device."""
    dim = with_quantized(nnx.eval_shape(lambda: Dim(config, dtype=dtype, rngs=nnx.Rngs(0))), quantize)
    sizes = Counter[str]()
    for path, leaf in abstract_like(parameters(dim), dtype).items():
        sizes[path.split(".")[0]] += num_bytes(leaf)
    return dict(sizes)
