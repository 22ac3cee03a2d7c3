"""What a designer is asked in an evaluation: blueprints, and what it thinks of a result (the reflected track).

Answers lie in journals of the track (`designer.journal`), blueprints.jsonl and reflections.jsonl, one for each shard; what any of them
holds is not asked again.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim_jax.datasets.construction.captions import rewriting_task
from dim_jax.datasets.construction.config import read_config
from dim_jax.designer.blueprint import BLUEPRINT, prompt, without_thoughts
from dim_jax.designer.runner import Job
from dim_jax.designer.stage_runner import Answers, DesignerFactory, StageRunner
from dim_jax.designer.task import AnswerError, Task
from dim_jax.errors import InputError

BEST = 10  # the score of a result that leaves nothing to be wished
TEMPLATE = (
    "The first picture was to be edited as this instruction says, and the second picture is what a painter made of it.\n\n"
    "The instruction: {instruction}\n\n"
    "Compare the two. Has everything been done that was asked for, does all else look as it did before, and is the result free of faults? "
    "Answer with one JSON object and nothing else:\n"
    '{"done": true or false, "score": a whole number, "reason": "...", "instruction": "..."}\n\n'
    f'"score" is from 0 (nothing of what was asked for) to {BEST} (nothing is left to be wished). "done" is true if another attempt is not '
    'worth while. "reason" says in one sentence what is right or wrong. If "done" is false, "instruction" is the whole instruction for '
    "another attempt, which begins with the first picture again: worded so that what went wrong goes right, and asking for nothing new."
)
VERSION = hashlib.sha256(TEMPLATE.encode()).hexdigest()[:12]
OBJECT = re.compile(r"\{.*\}", re.DOTALL)


@dataclass(frozen=True)
class Reflection:
    """What a designer thinks of a result.

    Attributes:
        done: no other attempt is worth while.
        score: from 0 to 10.
        reason: why.
        instruction: of the next attempt; empty if done.
    """

    done: bool
    score: float
    reason: str
    instruction: str


def parse(answer: str) -> Reflection:
    """The reflection in a model's answer; thoughts, fences and words around its object are left out.

    Raises:
        AnswerError: there is no such object, or it lacks what the next step needs.
    """
    text = OBJECT.search(without_thoughts(answer))
    try:
        found: Any = json.loads(text[0]) if text else None
    except ValueError as error:
        raise AnswerError(f"the answer is not a JSON object ({error})") from error
    if not isinstance(found, dict):
        raise AnswerError("the answer has no JSON object")
    done, score, reason, instruction = (found.get(key) for key in ("done", "score", "reason", "instruction"))
    if not isinstance(done, bool):
        raise AnswerError(f'"done" is {done!r}, not true or false')
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= BEST:
        raise AnswerError(f'"score" is {score!r}, no number from 0 to {BEST}')
    if not done and (not isinstance(instruction, str) or not instruction.strip()):
        raise AnswerError('"instruction" says nothing, though "done" is false')
    return Reflection(done, float(score), str(reason or ""), "" if done else str(instruction).strip())


def _kept(answer: str) -> str:
    return json.dumps(vars(parse(answer)), ensure_ascii=False)


def _asked(instruction: str) -> str:
    prompt(instruction)  # refuses an empty one
    return TEMPLATE.replace("{instruction}", instruction.strip())


def _prompt(text: str) -> str:
    if not text.strip():
        raise AnswerError("the prompt is empty")
    return text.strip()


REFLECTION = Task(_asked, _kept, VERSION, pictures=2)
# Prompts for text to image that somebody wrote before; they need not have the sections of a blueprint.
READY_PROMPT = Task(lambda prompt: prompt, _prompt, "ready", pictures=0)


def _rewriting() -> Task:
    """As `dim build-data rewrite` asks by default."""
    captions = read_config("dim_t2i.toml", None)["captions"]
    return rewriting_task(captions["words"], captions["min_words"])


@dataclass(frozen=True)
class Designs:
    """A designer and how it is asked.

    Attributes:
        name: as it is spelled.
        writer, stages: see `StageRunner`.
        ready: it has blueprints that were written before, and answers nothing else.
        tag: the end of this shard's journals.
    """

    name: str
    writer: DesignerFactory
    stages: StageRunner
    ready: bool = False
    tag: str = ""

    def blueprints(self, track: Path, jobs: Sequence[Job], others: Sequence[Path] = ()) -> Answers:
        """The blueprints of jobs, by id; for text to image, prompts written out. `others` are tracks whose answers are taken too.

        Raises:
            InputError: as in `StageRunner.stage`.
        """
        task = BLUEPRINT
        if jobs and not jobs[0].pictures:
            task = READY_PROMPT if self.ready else _rewriting()
        return self._ask(track, "blueprints", jobs, task, others)

    def reflections(self, track: Path, jobs: Sequence[Job]) -> Answers:
        """What the designer thinks of results, as JSON for `parse`, by id.

        Raises:
            InputError: as in `StageRunner.stage`, or it cannot look at pictures.
        """
        if self.ready:
            raise InputError(f"{self.name} cannot look at results. For the track reflected, name a designer that answers (--designer).")
        return self._ask(track, "reflections", jobs, REFLECTION, ())

    def _ask(self, track: Path, what: str, jobs: Sequence[Job], task: Task, others: Sequence[Path]) -> Answers:
        own = track / f"{what}{self.tag}.jsonl"
        texts, reasons = dict[str, str](), dict[str, str]()
        for folder in (track, *others):
            for path in sorted(folder.glob(f"{what}*.jsonl")):
                if path != own and not path.name.endswith(".failures.jsonl"):
                    known = Answers.read(path, jobs, task, self.name, (0, 0))
                    texts |= known.texts
                    reasons |= {} if self.stages.retry_failed else known.reasons
        left = [job for job in jobs if job.row["id"] not in texts | reasons]
        if not left:
            return Answers(texts, reasons, (0, 0))
        track.mkdir(parents=True, exist_ok=True)
        found = self.stages.stage(own, left, task, self.writer)
        return Answers(texts | found.texts, reasons | found.reasons, found.tokens)
