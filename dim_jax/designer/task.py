"""A kind of question to a designer: what is asked, and what is taken for an answer."""

from collections.abc import Callable
from dataclasses import dataclass

from dim_jax.errors import InputError


class AnswerError(InputError):
    """An answer that is not what was asked for; the message is the reason."""


@dataclass(frozen=True)
class Task:
    """What all questions of a run have in common.

    Attributes:
        ask: the text that is sent beside the pictures, from the instruction of one question.
        read: what is kept of an answer. Of what was kept it gives the same again. Raises AnswerError.
        version: of the wording; answers to another one are not taken for answers to this one.
        pictures: how many pictures a question has.
        asks: how often a question is asked whose answers are refusals or cannot be read, before it counts as failed.
    """

    ask: Callable[[str], str]
    read: Callable[[str], str]
    version: str
    pictures: int = 1
    asks: int = 1
