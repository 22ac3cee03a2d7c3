"""From the fields of a request to what the engine paints, and from its results to what the client gets."""

import base64
import io
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from dim_jax.batching import Request, Source, edit_request
from dim_jax.edit_result import EditResult
from dim_jax.serve.limits import Limits
from dim_jax.serve.uploads import ApiError, read_mask, read_upload
from dim_jax.settings import Settings, check_distilled, check_prompt

if TYPE_CHECKING:  # it imports the networks
    from dim_jax.sampling import Sampler

SEEDS = 2**31


class ModelInfo(NamedTuple):
    """What a client may know of the painter.

    Attributes:
        name: its id.
        settings: those of a request that names none.
        factor: sizes are multiples of so many pixels.
        edits: whether it edits pictures.
        guidance_embeds: whether its network takes the guidance scale as an input.
    """

    name: str
    settings: Settings
    factor: int
    edits: bool
    guidance_embeds: bool = False

    @classmethod
    def from_sampler(cls, sampler: "Sampler") -> "ModelInfo":
        config = sampler.dim.config
        return cls(sampler.name, sampler.settings, config.autoencoder.factor, config.sana.is_edit, config.sana.guidance_embeds)


class Fields(BaseModel, extra="forbid"):
    """The fields of both endpoints, as OpenAI names them, then ours. What would change nothing may be given, what we cannot do may not."""

    prompt: str
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(100, ge=0, le=100)
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    steps: int | None = Field(None, ge=1)
    guidance: float | None = None
    negative_prompt: str | None = None


class EditFields(Fields):
    """Those of edits: `feather` is in pixels of the source; `designer="none"` paints the prompt as it stands."""

    image_guidance: float | None = None
    feather: float = Field(0.0, ge=0, le=1024)
    designer: Literal["none"] | None = None


AnyFields = TypeVar("AnyFields", bound=Fields)


class PaintJob(NamedTuple):
    """Pictures to paint with the same settings, and whether a designer is asked first."""

    fields: Fields
    requests: list[Request]
    settings: Settings
    design: bool = False


def read_fields(kind: type[AnyFields], values: dict[str, Any] | bytes) -> AnyFields:
    """The fields in a form or, as bytes, in JSON. Raises ApiError: 400; names the field."""
    try:
        return kind.model_validate_json(values) if isinstance(values, bytes) else kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or None
        raise ApiError(400, f"{name or 'The body'}: {first['msg']}.", param=name, code=first["type"]) from error


def edit_job(model: ModelInfo, limits: Limits, fields: EditFields, picture: bytes, mask: bytes | None, *, designer: bool) -> PaintJob:
    """The job of an edit.

    Raises:
        ApiError, InputError: something cannot be used.
    """
    if not model.edits:
        raise ApiError(400, f"{model.name} paints from text alone. Use /v1/images/generations.", code="unsupported")
    settings = read_settings(model, limits, fields, image_guidance_scale=fields.image_guidance)
    source, white = read_upload(picture, "image", limits), None
    if mask is None:
        settings = replace(settings, size=read_size(model, limits, fields.size) or settings.size)
    else:
        alpha = read_mask(mask, "mask", limits)
        if alpha.shape[::-1] != source.size:
            message = f"The mask is {alpha.shape[1]} x {alpha.shape[0]} pixels, the picture {source.width} x {source.height}."
            raise ApiError(400, f"{message} Give them the same size.", param="mask")
        if fields.size not in (None, "auto", f"{source.width}x{source.height}"):
            message = "With a mask the result has the size of the picture. Leave the size out."
            raise ApiError(400, message, param="size")
        white = Image.fromarray(255 - alpha)
    request = edit_request(fields.prompt, Source(source), 0, settings, model.factor, white, fields.feather)
    return PaintJob(fields, _seeded(fields, request), settings, designer and fields.designer != "none")


def generation_job(model: ModelInfo, limits: Limits, fields: Fields) -> PaintJob:
    """The job of a picture from text; errors as in `edit`."""
    settings = read_settings(model, limits, fields)
    size = read_size(model, limits, fields.size) or settings.size or (settings.resolution, settings.resolution)
    return PaintJob(fields, _seeded(fields, Request(fields.prompt, 0, size)), replace(settings, size=size))


def response_body(job: PaintJob, results: list[EditResult], model: ModelInfo, writer: str | None) -> dict[str, Any]:
    """The answer; PNGs have the metadata that `dim edit` writes."""
    data, size = [], ""
    for result in results:
        result = replace(result, checkpoint=model.name)
        item: dict[str, Any] = {"seed": result.seed}
        if job.design:
            result = replace(result, designer=writer or "none", instruction=job.fields.prompt)
            item["revised_prompt"] = result.prompt
        data.append(item | {"b64_json": base64.b64encode(_encode(result, job.fields)).decode()})
        size = f"{result.image.width}x{result.image.height}"
    kind = job.fields.output_format
    return {"created": int(time.time()), "data": data, "size": size, "output_format": kind, "background": "opaque"}


def _encode(result: EditResult, fields: Fields) -> bytes:
    file = io.BytesIO()
    if fields.output_format == "png":
        result.image.save(file, "PNG", pnginfo=result.png_info(), compress_level=1)
    else:
        result.image.save(file, fields.output_format.upper(), quality=fields.output_compression)
    return file.getvalue()


def read_settings(model: ModelInfo, limits: Limits, fields: Fields, **more: Any) -> Settings:
    """The model's settings with those of a request, and `more` that are not None, but for the size; errors as in `edit_job`."""
    if fields.model not in (None, model.name):
        message = f'There is no model "{fields.model}" here. Leave the model out, or name {model.name}.'
        raise ApiError(404, message, param="model", code="model_not_found")
    for name, value, limit in (("n", fields.n, limits.pictures), ("steps", fields.steps or 0, limits.steps)):
        if value > limit:
            raise ApiError(400, f"{name} is {value}, but may be at most {limit} here.", param=name, code="above_max_value")
    for name, text in (("prompt", fields.prompt), ("negative_prompt", fields.negative_prompt or "-")):
        if len(text) > limits.prompt:
            message = f"{name} has {len(text):,} characters, but may have at most {limits.prompt:,} here."
            raise ApiError(400, message, param=name, code="string_above_max_length")
    check_prompt(fields.prompt)
    changes = {"num_steps": fields.steps, "guidance_scale": fields.guidance, "negative_prompt": fields.negative_prompt, **more}
    settings = replace(model.settings, **{name: value for name, value in changes.items() if value is not None})
    check_distilled(model.name, model.settings, settings, guidance_embeds=model.guidance_embeds)
    return settings


def read_size(model: ModelInfo, limits: Limits, text: str | None) -> tuple[int, int] | None:
    """(height, width) of a text such as "1024x768", which has the width first; None: the server chooses. Errors as in `edit_job`."""
    if text in (None, "auto"):
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(text) < 12):
        raise ApiError(400, 'size: write WIDTHxHEIGHT in pixels, such as "1024x768", or "auto".', param="size")
    size = int(height), int(width)
    if any(side < model.factor or side % model.factor for side in size):
        raise ApiError(400, f"size: {text} must have sides that are multiples of {model.factor} pixels.", param="size")
    if size[0] * size[1] > limits.painted_pixels:
        message = f"size: {text} has more than the {limits.painted_pixels:,} pixels that are painted here."
        raise ApiError(400, message, param="size", code="above_max_value")
    return size


def _seeded(fields: Fields, request: Request) -> list[Request]:
    """One a picture, each with the seed after the last one's."""
    first = secrets.randbelow(SEEDS) if fields.seed is None else fields.seed
    return [replace(request, seed=(first + i) % SEEDS) for i in range(fields.n)]
