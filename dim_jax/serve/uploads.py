"""Reads what clients send, within the limits. Every refusal is an error in OpenAI's JSON."""

import hmac
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from starlette.responses import JSONResponse
from starlette.types import Message, Receive

from dim_jax.errors import check
from dim_jax.processing.pictures import read_alpha, read_header, read_picture
from dim_jax.serve.limits import MIB, Limits

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal: the status, and what to do in plain English; `param` is the field to blame."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: dict | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self) -> JSONResponse:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def limit_receive(receive: Receive, limits: Limits) -> Receive:
    """The same body, with an ApiError if it grows too long."""
    remaining = limits.upload

    async def counted() -> Message:
        nonlocal remaining
        message = await receive()
        remaining -= len(message.get("body", b""))
        if remaining < 0:
            raise too_large(limits)
        return message

    return counted


def too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"The request has more than {limits.upload / MIB:g} MiB. Send a smaller picture.", code="request_too_large")


def read_upload(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The picture in an uploaded file.

    Raises:
        ApiError: it has too many pixels; it is not decoded then.
        InputError: it is not a picture, or damaged.
    """
    _check_pixels(data, name, limits)
    return read_picture(BytesIO(data), name)


def read_mask(data: bytes, name: str, limits: Limits) -> UInt8[np.ndarray, "h w"]:
    """The opacity of the pixels of an uploaded mask; errors as in `read_upload`, and for one without transparency."""
    _check_pixels(data, name, limits)
    return read_alpha(BytesIO(data), name)


def _check_pixels(data: bytes, name: str, limits: Limits) -> None:
    check(data, f"{name}: the file is empty (0 bytes). Upload the picture again.")
    width, height = read_header(BytesIO(data), name).size
    if width * height > limits.pixels:
        message = f"{name}: the picture is {width} x {height} pixels, more than the {limits.pixels:,} that are accepted. Scale it down."
        raise ApiError(413, message, param=name, code="picture_too_large")


def check_token(header: str, tokens: Sequence[str]) -> None:
    """Refuse an Authorization header that names none of the tokens; without tokens everybody may come in. Raises ApiError: 401."""
    kind, _, sent = header.partition(" ")
    # All are compared, each in constant time, so that the time tells nothing.
    num_matches = sum(hmac.compare_digest(sent.strip().encode(), token.encode()) for token in tokens)
    if tokens and not (num_matches and kind.lower() == "bearer"):
        message = "A token is needed: Authorization: Bearer TOKEN."
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
