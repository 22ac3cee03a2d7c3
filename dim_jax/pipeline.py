"""Pictures in, pictures out: what the command line, the evaluation and users call.

pipeline = EditPipeline.from_pretrained("checkpoint")
result = pipeline(["Make the sky red."], [open_picture("photo.jpg")])[0]
result.save("red.png")
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from dim_jax.batching import Request, Source, edit_request
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.processing.pictures import as_rgb
from dim_jax.sampling import DecodedImage, OnStep, Sampler
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
        masks: Sequence[Image.Image | None] | None = None,
        feather: float = 0.0,
        progress: bool = False,
    ) -> list[EditResult]:
        """One result per prompt and picture; by default every seed is 0 and the settings are the painter's own. A picture does not
        depend on the rest of its batch. A result has its picture's size, unless the settings have one. A `Source` with latents is painted
        at their size; to edit a result further, `EditSession` gives them.

        A mask is a grey picture of the size of the one that is edited: outside of what is not black, the result is that picture to the
        bit, and the sampler follows its latents there. The edit fades at the mask's rim within `feather` pixels.

        Raises:
            InputError: the numbers of prompts, pictures, seeds and masks differ, or as in `edit_request` and `Sampler.paint`.
        """
        seeds = [0] * len(prompts) if seeds is None else seeds
        settings = settings or self.sampler.settings
        return _in_order(self.stream(prompts, pictures, seeds=seeds, settings=settings, masks=masks, feather=feather, progress=progress))

    def stream(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Image.Image | Source],
        *,
        seeds: Sequence[int],
        settings: Settings,
        masks: Sequence[Image.Image | None] | None = None,
        feather: float = 0.0,
        progress: bool = False,
    ) -> Iterator[tuple[int, EditResult]]:
        """Index and result, each as soon as its batch is painted: for a long run that keeps what it has. Errors as in a call."""
        masks = [None] * len(prompts) if masks is None else masks
        _check_same_length(prompts=prompts, pictures=pictures, seeds=seeds, masks=masks)
        sources = [picture if isinstance(picture, Source) else Source(as_rgb(picture)) for picture in pictures]
        edits = zip(prompts, sources, seeds, masks, strict=True)
        requests = [self.request(prompt, source, seed, settings, mask, feather) for prompt, source, seed, mask in edits]
        yield from paint_requests(self.sampler, requests, settings, progress)

    def request(
        self, prompt: str, source: Source, seed: int, settings: Settings, mask: Image.Image | None = None, feather: float = 0.0
    ) -> Request:
        """As `edit_request`, for this painter."""
        return edit_request(prompt, source, seed, settings, self.sampler.dim.config.autoencoder.factor, mask, feather)


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
    """Index and result of each request, whose size counts instead of the settings'. `on_step` and errors as in `Sampler.paint`. A result
    keeps the size that was painted in its settings, unless that follows from its source."""
    used = settings.of_picture()
    for i, (picture, latents) in _paint_best(sampler, requests, settings, progress, on_step):
        request = requests[i]
        source = None if request.source is None else request.source.picture
        chosen = used if request.frame else used | {"size": request.size}
        changed = None if request.opacity is None else float((request.opacity > 0).mean())
        made_by = request.prompt, request.seed, chosen, sampler.name, sampler.precision
        yield i, EditResult(request.result(picture), *made_by, source, latents=latents, changed=changed)


def _paint_best(
    sampler: Sampler, requests: Sequence[Request], settings: Settings, progress: bool, on_step: OnStep | None
) -> Iterator[tuple[int, DecodedImage]]:
    """What `Sampler.paint` paints, of `settings.best_of` candidates the one that the request's prompt explains best."""
    candidates = [replace(request, seed=request.seed + n) for request in requests for n in range(settings.best_of)]
    painted = [list[DecodedImage]() for _ in requests]
    for n, result in sampler.paint(candidates, settings, progress=progress, on_step=on_step):
        i = n // settings.best_of
        painted[i].append(result)
        if len(painted[i]) == settings.best_of:
            group, painted[i] = painted[i], []  # a long run need not hold its pictures
            yield i, group[0] if len(group) == 1 else group[_best(sampler, requests[i], group, settings)]


def _best(sampler: Sampler, request: Request, results: Sequence[DecodedImage], settings: Settings) -> int:
    latents = np.stack([result.latents for result in results])
    return int(sampler.prompt_alignment([request] * len(results), latents, settings).argmax())


def _in_order(results: Iterable[tuple[int, EditResult]]) -> list[EditResult]:
    by_index = dict(results)
    return [by_index[i] for i in sorted(by_index)]


def _check_same_length(**lists: Sequence) -> None:
    numbers = {name: len(values) for name, values in lists.items()}
    if len(set(numbers.values())) > 1 or not all(numbers.values()):
        raise InputError(f"Give one of each, at least one; these are {', '.join(f'{n} {name}' for name, n in numbers.items())}.")
