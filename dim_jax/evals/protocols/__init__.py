"""What a judge is asked about a picture, how an answer becomes scores, and what the makers' own scripts would make of it.

A file here with a `PROTOCOL` is one; `Benchmark.protocol` names it. The texts of the questions are ours, after the makers' scales and
criteria; their own can be given as a JSON of texts by the names in `prompts` (`Protocol.with_prompts`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from dim_jax.designer.scores import Scale, read_scores
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Case, group_by
from dim_jax.plugins import load_plugins, plugin
from dim_jax.storage.paths import read_json

# Ours first, then as ImgEdit, GEdit-Bench and RISEBench write them.
INSTRUCTION = r"\{instruction\}|<edit_prompt>|<instruction>|\{instruct\}"
PLACEHOLDER = re.compile(rf"(?P<instruction>{INSTRUCTION})|(?P<reference>\{{reference\}})")


@dataclass(frozen=True)
class Question:
    """One question about a painted picture.

    Attributes:
        name: which of the case's questions.
        prompt: the name of its text in `Protocol.prompts`.
        pictures: what the judge sees, in order.
        scores: the names of the scores that an answer must have, in order.
        scale: of each of them.
        reference: what should be there, where the makers say it in words.
    """

    name: str
    prompt: str
    pictures: tuple[Path, ...]
    scores: tuple[str, ...]
    scale: Scale
    reference: str = ""

    def read(self, answer: str) -> dict[str, float]:
        """The scores of an answer by name. Raises AnswerError as `read_scores`."""
        return dict(zip(self.scores, read_scores(answer, len(self.scores), self.scale), strict=True))


class RecordedAnswers(NamedTuple):
    """A case and every answer to its questions, by their names, in the order in which they came."""

    case: Case
    answers: Mapping[str, tuple[str, ...]]


class OfficialScores(NamedTuple):
    """Means as the makers' scripts compute them, over all and by category, and what one must know of them."""

    overall: Mapping[str, float]
    categories: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """How pictures of a benchmark are judged.

    Attributes:
        name, source: how it is called, and the paper and scripts that it follows.
        prompts: the texts, with {instruction} and {reference} for what differs.
        questions: of a case and its painted picture.
        combine: the metrics of a case from the scores of all its answers.
        metrics: what `combine` may give, and between what; the first one stands for the case.
        average: what the makers call the overall score: the mean over cases, or that of the categories' means.
        official: the makers' arithmetic on recorded answers, faults included; the number is a seed.
    """

    name: str
    source: str
    prompts: Mapping[str, str]
    questions: Callable[[Case, Path], list[Question]]
    combine: Callable[[Case, Mapping[str, float]], dict[str, float]]
    metrics: Mapping[str, Scale]
    average: Literal["cases", "categories"]
    official: Callable[[Sequence[RecordedAnswers], int], OfficialScores]
    wording: str = "ours"

    @property
    def main(self) -> str:
        """The metric that stands for a case."""
        return next(iter(self.metrics))

    @property
    def version(self) -> str:
        """Of all texts."""
        return hashlib.sha256(json.dumps(dict(self.prompts), sort_keys=True).encode()).hexdigest()[:12]

    def text(self, question: Question, case: Case) -> str:
        """What is asked, in full."""
        values = {"instruction": case.prompt.strip(), "reference": question.reference.strip()}
        return PLACEHOLDER.sub(lambda match: values[str(match.lastgroup)], self.prompts[question.prompt])

    def with_prompts(self, path: Path) -> "Protocol":
        """The same with other texts, such as the makers' own: a JSON of texts by name; those it leaves out stay ours.

        Raises:
            InputError: the file cannot be read, or a name or text is not one.
        """
        texts = read_json(path)
        if not isinstance(texts, dict) or not texts or not all(isinstance(text, str) and text.strip() for text in texts.values()):
            raise InputError(f"{path}: must be a JSON object of texts by name. Names are {', '.join(self.prompts)}.")
        if unknown := sorted(texts.keys() - self.prompts.keys()):
            raise InputError(f"{path}: {self.name} asks nothing under {', '.join(unknown)}. Names are {', '.join(self.prompts)}.")
        return replace(self, prompts={**self.prompts, **texts}, wording=path.name)


def protocol(name: str) -> Protocol:
    """A protocol by its name. Raises InputError if there is none."""
    return plugin(load_plugins(__name__, "PROTOCOL"), name, "judging protocol")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: mean([row[name] for row in rows if name in row]) for name in names}


def by_category(scored: Sequence[tuple[Case, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means of each category, in the order in which they occur."""
    groups = group_by(scored, lambda pair: pair[0].category)
    return {category: means([row for _, row in pairs]) for category, pairs in groups.items()}
