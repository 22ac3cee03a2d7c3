"""What a client may send, and who may send it. Every refusal is an error in OpenAI's JSON."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from starlette.responses import JSONResponse
from starlette.types import Message, Receive

from dim_jax.errors import InputError
from dim_jax.processing.pictures import read_alpha, read_header, read_picture

MIB = 2**20
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


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Attributes:
        upload: bytes of its body.
        upload_seconds: how long it may take to arrive.
        pixels: of an uploaded picture.
        painted_pixels: of a painted one.
        pictures: `n`.
        steps: of the sampler.
        prompt: characters of a prompt.
    """

    upload: int = 20 * MIB
    upload_seconds: float = 60.0
    pixels: int = 2**24
    painted_pixels: int = 2**22
    pictures: int = 4
    steps: int = 100
    prompt: int = 32_000

    def receive(self, receive: Receive) -> Receive:
        """The same body, an ApiError where it grows too long."""
        left = self.upload

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self.too_long()
            return message

        return counted

    def too_long(self) -> ApiError:
        return ApiError(413, f"The request has more than {self.upload / MIB:g} MiB. Send a smaller picture.", code="request_too_large")

    def picture(self, data: bytes, name: str) -> Image.Image:
        """The picture in an uploaded file.

        Raises:
            ApiError: it has too many pixels; it is not decoded then.
            InputError: it is no picture, or damaged.
        """
        self._check_pixels(data, name)
        return read_picture(BytesIO(data), name)

    def alpha(self, data: bytes, name: str) -> UInt8[np.ndarray, "h w"]:
        """How opaque the pixels of an uploaded mask are; errors as in `picture`, and for one without transparency."""
        self._check_pixels(data, name)
        return read_alpha(BytesIO(data), name)

    def _check_pixels(self, data: bytes, name: str) -> None:
        if not data:
            raise InputError(f"{name}: the file is empty (0 bytes). Upload the picture again.")
        width, height = read_header(BytesIO(data), name).size
        if width * height > self.pixels:
            message = f"{name}: the picture is {width} x {height} pixels, more than the {self.pixels:,} that are accepted. Scale it down."
            raise ApiError(413, message, param=name, code="picture_too_large")


def check_token(header: str, tokens: Sequence[str]) -> None:
    """Refuse an Authorization header that names none of the tokens; without tokens everybody may come in.

    Raises:
        ApiError: 401.
    """
    kind, _, sent = header.partition(" ")
    # All are compared, each in constant time, so that the time tells nothing.
    known = sum(hmac.compare_digest(sent.strip().encode(), token.encode()) for token in tokens)
    if tokens and not (known and kind.lower() == "bearer"):
        message = "A token is needed: Authorization: Bearer TOKEN."
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
