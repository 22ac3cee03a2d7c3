"""A kind of request to a designer: its prompt, and the parser of answers."""

from collections.abc import Callable
from dataclasses import dataclass

from dim_jax.errors import InputError


class AnswerError(InputError):
    """An answer that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Task:
    """What all requests of a run have in common.

    Attributes:
        prompt: the text that is sent beside the pictures, from the instruction of one request.
        parse: the saved form of an answer; applied again it changes nothing. Raises AnswerError.
        version: of the wording; answers to other versions are not used.
        pictures: the number of pictures of a request.
        max_attempts: the number of refused or unreadable answers after which a request counts as failed.
    """

    prompt: Callable[[str], str]
    parse: Callable[[str], str]
    version: str
    pictures: int = 1
    max_attempts: int = 1
