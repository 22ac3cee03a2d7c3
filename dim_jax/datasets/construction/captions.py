"""Long texts for pictures: captions along a list of dimensions, and short prompts expanded.

Source: the long-context captions of DIM-T2I and the rewritten prompts of its evaluation (arXiv 2509.01986); the wording is ours.
"""

import hashlib
import re
from collections.abc import Sequence

from dim_jax.designer.blueprint import FENCED, REFUSAL, SENTENCE_END, TAGGED, strip_thoughts
from dim_jax.designer.task import AnswerError, Task

CAPTION = """Describe the picture above for a painter who will paint it from your words alone and never see it.

Write one flowing text in English, about {words} words, in plain sentences: no titles, no lists, no remarks about yourself, nothing that
cannot be seen. Cover each of these as far as the picture shows it, and pass over what it does not show:

{dimensions}"""
REWRITE = """This is a short prompt for a picture:

{instruction}

Write it out for a painter, as one flowing text in English of about {words} words, in plain sentences: no titles, no lists, no remarks.
Begin with what the prompt says, and keep all of it: every thing, number, colour and position, as said.
Then add what a picture needs and the prompt leaves open: how things look, what they are made of, where they are, the background, the light,
the viewpoint. Add no further main subject, and contradict nothing."""
ANNOUNCED = r"(?:here is|here's|sure)\b[^\n]*:\s*\n|(?:detailed )?(?:caption|description|prompt|rewritten prompt)[*_]*:[*_]*"
LABEL = re.compile(rf"\A[\W_]*(?:{ANNOUNCED})", re.IGNORECASE)
LISTED = re.compile(r"^[ \t]*(?:[-*•–#]|\d+[.)])[ \t]", re.MULTILINE)


def caption_task(dimensions: Sequence[Sequence[str]], words: int, min_words: int) -> Task:
    """Captions of pictures; each dimension has a name and a description. The instruction of a job is ignored."""
    lines = "\n".join(f"- {name}: {description}" for name, description in dimensions)
    text = CAPTION.replace("{words}", str(words)).replace("{dimensions}", lines)
    return Task(lambda instruction: text, lambda answer: prose(answer, min_words), _version(text), pictures=1)


def rewriting_task(words: int, min_words: int) -> Task:
    """Short prompts written out; no picture is sent."""
    text = REWRITE.replace("{words}", str(words))
    return Task(
        lambda instruction: text.replace("{instruction}", instruction.strip()),
        lambda answer: prose(answer, min_words), _version(text), pictures=0,
    )  # fmt: skip


def prose(answer: str, min_words: int) -> str:
    """The text in a model's answer, in one paragraph; thoughts, fences, tags and a line that announces it are removed.

    Raises:
        AnswerError: the model refused, wrote a list, stopped in the middle of a sentence, or wrote less than `min_words`.
    """
    body = strip_thoughts(answer)
    for wrapper in (TAGGED, FENCED):
        if enclosed := wrapper.search(body):
            body = enclosed["inside"]
    body = LABEL.sub("", body.strip()).strip().strip('"“”')
    if REFUSAL.match(body):
        raise AnswerError(f"the model refused: {body[:100]}")
    if LISTED.search(body):
        raise AnswerError(f"the answer is a list, not a text: {body[:100]}")
    text = " ".join(body.split())
    if (count := len(text.split())) < min_words:
        raise AnswerError(f"the answer is too short: {count} words of at least {min_words}")
    if not SENTENCE_END.search(text):
        raise AnswerError(f"the answer ends in the middle of a sentence: …{text[-60:]}")
    return text


def _version(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
