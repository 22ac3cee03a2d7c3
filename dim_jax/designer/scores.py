"""Scores in a judge's answer: lenient in how they are written, strict in how many there are, and never a guess.

Read are `4`, `4.5`, `4/5`, `**4**`, `Score: 4`, labelled lines, lists, and JSON with other text around it. Whatever has no score, too few
or too many, one outside of the scale or two that contradict each other is an AnswerError with the reason.
"""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dim_jax.designer.blueprint import FENCED, REFUSAL, strip_thoughts
from dim_jax.designer.task import AnswerError


class Scale(NamedTuple):
    """The numbers that a score may be; `whole` leaves out those in between."""

    low: float
    high: float
    is_integer: bool = False


MARKS = r"(?:[\s*_`#>•]|-(?=\s))*"
NUMBER = r"[*_`]*(?P<{0}>-?\d+(?:\.\d+)?)[*_`]*(?:\s*(?:/|out of)\s*[*_`]*(?P<{0}of>\d+)[*_`]*)?(?:\s+(?:points?|stars?))?"
VALUE = re.compile(NUMBER.format("n"), re.IGNORECASE)
SCORE = r"[*_`]*-?\d+(?:\.\d+)?[*_`]*(?:\s*/\s*\d+)?"
LIST = rf"[*_`]*(?:[\[(]?\s*{SCORE}(?:\s*,\s*{SCORE})+\s*[\])]?|\[\s*{SCORE}\s*\])[*_`]*"
# A label, then its score, then nothing, or a remark that begins with a mark: "Compliance: 3 apples" is not a score.
LINE = re.compile(
    rf"^{MARKS}(?P<label>[^\W\d][^\n:：=]{{0,60}}?)[*_`\s]*[:：=]+[*_`\s]*(?:(?P<list>{LIST})|{NUMBER.format('n')})(?=\s*(?:$|[-–—(;,](?:\D|$)|\.(?:\s|$)))",
    re.IGNORECASE | re.MULTILINE,
)
SENTENCE = re.compile(rf"\b(?:score|rating) (?:is|of|would be) {NUMBER.format('n')}(?!\w|\.\d)", re.IGNORECASE)
FINAL = re.compile(r"\b(?:final|overall|total) (?:scores?|rating)\b", re.IGNORECASE)
WORDS = re.compile(r"reason|expla|comment|thought|analysis|note|justif|summary|instruction", re.IGNORECASE)


def read_scores(text: str, count: int, scale: Scale) -> tuple[float, ...]:
    """The `count` scores of an answer, in the order in which they stand.

    Raises:
        AnswerError: the answer is a refusal, or has not exactly that many scores on the scale.
    """
    body = strip_thoughts(text).strip()
    if not body:
        raise AnswerError("the answer is empty")
    fenced = [match["inside"].strip() for match in FENCED.finditer(body) if re.search(r"\d", match["inside"])]
    body = fenced[-1] if fenced else body
    scores = _parse_json(body)
    if scores is None:
        scores = _parse_lines(body) or _parse_bare(body, count)
    if not scores:
        raise AnswerError(f"{'the model refused' if REFUSAL.match(body) else 'the answer has no score'}: {_shorten(body)}")
    if len(scores) != count:
        raise AnswerError(f"{len(scores)} scores where {count} are needed: {_shorten(body)}")
    return tuple(_check_score(value, of, scale) for value, of in scores)


def _check_score(value: float, of: float | None, scale: Scale) -> float:
    if of is not None and of != scale.high:
        raise AnswerError(f"a score out of {of:g}, where the scale ends at {scale.high:g}")
    if not scale.low <= value <= scale.high:
        raise AnswerError(f"the score {value:g} is not on the scale from {scale.low:g} to {scale.high:g}")
    if scale.is_integer and value != int(value):
        raise AnswerError(f"the score {value:g} is between those of the scale")
    return value


Scores = list[tuple[float, float | None]]


def _parse_json(body: str) -> Scores | None:
    """The scores of the JSON in an answer; None if there is none.

    Raises:
        AnswerError: it is damaged, has no scores, or there are several that differ.
    """
    candidates: list[Scores] = []
    for value in _json_values(body):
        scores = (
            _scores_of_value(value) if isinstance(value, dict) or body.startswith("[") else []
        )  # "the region [3, 4]" is not a pair of scores
        if scores and scores not in candidates:
            candidates.append(scores)
    if len(candidates) > 1:
        raise AnswerError(f"the answer has different scores: {_shorten(body)}")
    if candidates:
        return candidates[0]
    if re.match(r'[\[{]\s*["\[{]|\[\s*-?\d[^\]]*$', body):
        raise AnswerError(f"the answer's JSON is damaged or has no scores: {_shorten(body)}")
    return None


def _json_values(body: str) -> Iterator[Any]:
    """Every JSON object and list that stands in a text and is part of no other."""
    decoder, position = json.JSONDecoder(), 0
    while start := re.compile(r"[\[{]").search(body, position):
        try:
            value, position = decoder.raw_decode(body, start.start())
            yield value
        except ValueError:
            if start[0] == "{" and (value := _python_literal(body[start.start() : body.rfind("}") + 1])) is not None:
                yield value
                return
            position = start.end()
        except RecursionError:
            return


def _python_literal(text: str) -> Any:
    """A dict as Python writes it, with single quotes; None if it is something else."""
    try:
        return ast.literal_eval(text) if len(text) < 10_000 and "'" in text else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _scores_of_value(value: Any) -> Scores:
    """The scores that a JSON value holds: under `score` or `scores`, in a list, or under names of their own."""
    if isinstance(value, dict):
        named = next((value[name] for name in value if name.lower().strip() in ("score", "scores")), None)
        if named is not None and not isinstance(named, dict):
            value = named if isinstance(named, list) else [named]
        else:
            value = [item for name, item in (named or value).items() if not WORDS.search(name)]
    if not isinstance(value, list):
        return []
    scores = [_score_of_value(item) for item in value]
    return [score for score in scores if score is not None] if None not in scores else []


def _score_of_value(value: Any) -> tuple[float, float | None] | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value), None
    if isinstance(value, dict):
        inner = _scores_of_value(value)
        return inner[0] if len(inner) == 1 else None
    match = VALUE.fullmatch(value.strip()) if isinstance(value, str) else None
    return _number(match) if match else None


def _number(match: re.Match[str]) -> tuple[float, float | None]:
    return float(match["n"]), float(match["nof"]) if match["nof"] else None


def _parse_lines(body: str) -> Scores:
    """The scores behind labels, one label a line; of an answer that names a final score, that one.

    Raises:
        AnswerError: a label has two different scores.
    """
    labels: dict[str, Scores] = {}
    matches = [match for match in LINE.finditer(body) if not WORDS.search(match["label"])]
    final = [match for match in matches if FINAL.search(match["label"])]
    for match in final or matches:
        scores = _parse_list(match["list"]) if match["list"] else [_number(match)]
        label = " ".join(match["label"].lower().split())
        if scores and labels.setdefault(label, scores) != scores:
            raise AnswerError(f'the answer has two scores for "{label}"')
    return [score for scores in labels.values() for score in scores]


def _parse_list(text: str) -> Scores:
    """A list of scores, in brackets or not; empty if its brackets do not match or something else is in it."""
    body = text.strip(" *_`")
    if (body[0] in "[(") != (body[-1] in "])"):
        return []
    matches = [VALUE.fullmatch(part.strip()) for part in body.strip("[]()").split(",")]
    return [_number(match) for match in matches if match] if None not in matches else []


def _parse_bare(body: str, count: int) -> Scores:
    """An answer that is nothing but scores, or a sentence that gives the only one."""
    lines = [re.sub(rf"^{MARKS}(?:\d[.)]\s+)?|[\s*_`]+$", "", line).rstrip(".") for line in body.splitlines() if line.strip()]
    if len(lines) == 1 and re.fullmatch(LIST, lines[0]):
        return _parse_list(lines[0])
    matches = [VALUE.fullmatch(line) for line in lines]
    if None not in matches:
        return [_number(match) for match in matches if match]
    sentences = {_number(match) for match in SENTENCE.finditer(body)}
    return list(sentences) if count == 1 and len(sentences) == 1 else []


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
