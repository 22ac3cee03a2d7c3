"""Assesses the instructions of pairs: misaligned ones are dropped, partially aligned ones completed, aligned ones disambiguated.

Source: the three-way prompt quality assessment of Draw-In-Mind (arXiv 2509.01986); the wording of the prompt is ours.
"""

import hashlib
import re
from typing import NamedTuple

from dim_jax.designer.blueprint import REFUSAL, strip_thoughts
from dim_jax.designer.task import AnswerError, Task

MISALIGNED, PARTLY, ALIGNED = VERDICTS = ("misaligned", "partially aligned", "aligned")
TEMPLATE = """The first picture was edited, and the second picture is the result. This instruction is said to describe the edit:

{instruction}

Compare the pictures and decide how well the instruction describes what really changed.

- misaligned: the change it asks for did not happen, or something else did.
- partially aligned: what it asks for happened, but the pictures differ in more than it says.
- aligned: it describes every difference that matters.

Then write the instruction anew, as one that can be carried out from the first picture alone and mentions neither picture.
If it is partially aligned, add the changes that it leaves out.
If it is aligned, keep its meaning and make it unambiguous: name the object by what it is, where it is and what it looks like, so that
nothing else in the first picture could be meant.
If it is misaligned, write "none".

Answer with exactly three lines and nothing else:
Verdict: misaligned, partially aligned, or aligned
Reason: one sentence
Instruction: the instruction written anew, or none"""
LABEL = r"^[\W_]*(?P<name>verdict|reason|instruction)[\W_]*?[:：]"
LINE = re.compile(rf"{LABEL}(?P<text>.*?)(?={LABEL.replace('?P<name>', '?:')}|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL)
NOTHING = re.compile(r"\W*(?:none|n/?a)?\W*", re.IGNORECASE)
OTHER_PICTURE = re.compile(r"\b(?:first|second|target|resulting) (?:image|picture|photo)\b", re.IGNORECASE)


class Assessment(NamedTuple):
    """`verdict` is one of VERDICTS; `instruction` is empty if it is misaligned."""

    verdict: str
    reason: str
    instruction: str


def prompt(instruction: str) -> str:
    """The text of the request; source and target picture go with it."""
    return TEMPLATE.replace("{instruction}", instruction.strip())


def parse(text: str) -> Assessment:
    """The assessment in a model's answer; thoughts, fences and emphasis are removed.

    Raises:
        AnswerError: the model refused, the verdict is missing or unknown, or the new instruction is missing or mentions a picture
            that the model does not see.
    """
    body = strip_thoughts(text).strip()
    fields = {line["name"].lower(): " ".join(line["text"].strip(" \t\r\n*_`").split()) for line in LINE.finditer(body)}
    if "verdict" not in fields:
        raise AnswerError(f"the model refused: {body[:100]}" if REFUSAL.match(body) else f"the answer has no verdict: {body[:100]}")
    words = re.sub(r"[\W_]+", " ", fields["verdict"]).strip().lower().replace("partly", "partially")
    verdict = next((name for name in VERDICTS if words == name or words.startswith(f"{name} ")), None)
    if verdict is None:
        raise AnswerError(f'the verdict "{fields["verdict"][:60]}" is not one of {", ".join(VERDICTS)}')
    reason, instruction = fields.get("reason", ""), fields.get("instruction", "")
    if verdict == MISALIGNED:
        return Assessment(verdict, reason, "")
    if NOTHING.fullmatch(instruction):
        raise AnswerError(f"the answer is {verdict}, but has no instruction")
    if leak := OTHER_PICTURE.search(instruction):
        raise AnswerError(f'the new instruction speaks of the "{leak[0]}": {instruction[:100]}')
    return Assessment(verdict, reason, instruction)


def _normalized(text: str) -> str:
    assessment = parse(text)
    return f"Verdict: {assessment.verdict}\nReason: {assessment.reason}\nInstruction: {assessment.instruction or 'none'}"


ASSESSMENT = Task(prompt, _normalized, hashlib.sha256(TEMPLATE.encode()).hexdigest()[:12], pictures=2)
