"""Pictures in, pictures out: what the command line, the evaluation and users call.

pipeline = EditPipeline.from_pretrained("checkpoint")
result = pipeline(["Make the sky red."], [open_picture("photo.jpg")])[0]
result.save("red.png")
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from dim_jax.batching import Request, Source
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.processing.buckets import aspect_buckets, nearest_bucket
from dim_jax.processing.pictures import as_rgb
from dim_jax.sampling import OnStep, Sampler
from dim_jax.settings import Settings
from dim_jax.storage.paths import AnyPath
from dim_jax.weights.loading import check_edits


@dataclass(frozen=True)
class EditPipeline:
    """Edits pictures as prompts say; a painter that cannot is an `InputError`."""

    sampler: Sampler

    def __post_init__(self):
        check_edits(self.sampler.dim.config.sana, self.sampler.name)

    @classmethod
    def from_pretrained(cls, path: str | AnyPath, **kwargs) -> "EditPipeline":
        """See `Sampler.from_pretrained`."""
        return cls(Sampler.from_pretrained(path, edits=True, **kwargs))

    def __call__(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Image.Image | Source],
        *,
        seeds: Sequence[int] | None = None,
        settings: Settings | None = None,
        progress: bool = False,
    ) -> list[EditResult]:
        """One result per prompt and picture; by default every seed is 0 and the settings are the painter's own. A picture does not
        depend on the rest of its batch. A `Source` with latents keeps its size; to edit a result further, `EditSession` gives them.

        Raises:
            InputError: the numbers of prompts, pictures and seeds differ, or as in `Sampler.paint`.
        """
        seeds = [0] * len(prompts) if seeds is None else seeds
        return _in_order(self.stream(prompts, pictures, seeds=seeds, settings=settings or self.sampler.settings, progress=progress))

    def stream(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Image.Image | Source],
        *,
        seeds: Sequence[int],
        settings: Settings,
        progress: bool = False,
    ) -> Iterator[tuple[int, EditResult]]:
        """Index and result, each as soon as its batch is painted: for a long run that keeps what it has. Errors as in a call."""
        _check_same_length(prompts=prompts, pictures=pictures, seeds=seeds)
        sources = [picture if isinstance(picture, Source) else Source(as_rgb(picture)) for picture in pictures]
        requests = [self.request(*edit, settings) for edit in zip(prompts, sources, seeds, strict=True)]
        yield from paint_requests(self.sampler, requests, settings, progress)

    def request(self, prompt: str, source: Source, seed: int, settings: Settings) -> Request:
        """An edit whose size is that of the settings, or by the source."""
        return Request(prompt, seed, settings.size or self._size(source, settings), source)

    def _size(self, source: Source, settings: Settings) -> tuple[int, int]:
        """(height, width) in pixels: that of the latents, else the nearest in aspect ratio."""
        factor = self.sampler.dim.config.autoencoder.factor
        if source.latents is not None:
            return source.latents.shape[0] * factor, source.latents.shape[1] * factor
        return nearest_bucket(*source.picture.size, aspect_buckets(settings.resolution, factor))


@dataclass(frozen=True)
class GeneratePipeline:
    """Paints pictures from prompts alone, with a text-to-image or an edit model."""

    sampler: Sampler

    @classmethod
    def from_pretrained(cls, path: str | AnyPath, **kwargs) -> "GeneratePipeline":
        """See `Sampler.from_pretrained`."""
        return cls(Sampler.from_pretrained(path, **kwargs))

    def __call__(
        self, prompts: Sequence[str], *, seeds: Sequence[int] | None = None, settings: Settings | None = None, progress: bool = False
    ) -> list[EditResult]:
        """One result per prompt; by default every seed is 0 and the settings are the painter's own.

        Raises:
            InputError: the numbers of prompts and seeds differ, or as in `Sampler.paint`.
        """
        seeds = [0] * len(prompts) if seeds is None else seeds
        return _in_order(self.stream(prompts, seeds=seeds, settings=settings or self.sampler.settings, progress=progress))

    def stream(
        self, prompts: Sequence[str], *, seeds: Sequence[int], settings: Settings, progress: bool = False
    ) -> Iterator[tuple[int, EditResult]]:
        """Index and result, each as soon as its batch is painted. Errors as in a call."""
        _check_same_length(prompts=prompts, seeds=seeds)
        size = settings.size or (settings.resolution, settings.resolution)
        requests = [Request(prompt, seed, size) for prompt, seed in zip(prompts, seeds, strict=True)]
        yield from paint_requests(self.sampler, requests, settings, progress)


def paint_requests(
    sampler: Sampler, requests: Sequence[Request], settings: Settings, progress: bool = False, on_step: OnStep | None = None
) -> Iterator[tuple[int, EditResult]]:
    """Index and result of each request, whose size counts instead of the settings'. `on_step` and errors as in `Sampler.paint`."""
    used = {key: value for key, value in asdict(settings).items() if key != "batch_size"}
    for i, (picture, latents) in sampler.paint(requests, settings, progress=progress, on_step=on_step):
        request = requests[i]
        source = None if request.source is None else request.source.picture
        chosen = used | {"size": request.size}
        yield i, EditResult(picture, request.prompt, request.seed, chosen, sampler.name, sampler.precision, source, latents=latents)


def _in_order(results: Iterable[tuple[int, EditResult]]) -> list[EditResult]:
    by_index = dict(results)
    return [by_index[i] for i in sorted(by_index)]


def _check_same_length(**lists: Sequence) -> None:
    numbers = {name: len(values) for name, values in lists.items()}
    if len(set(numbers.values())) > 1 or not all(numbers.values()):
        raise InputError(f"Give one of each, at least one; these are {', '.join(f'{n} {name}' for name, n in numbers.items())}.")
