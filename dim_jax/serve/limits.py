"""What one request to the server may ask for. It imports nothing, so that the command line shows its defaults."""

from dataclasses import dataclass

MIB = 2**20


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
