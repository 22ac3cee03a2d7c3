"""The requests to a designer in an evaluation: blueprints, and reflections on results (the reflected track); an encoder's own in batches.

Answers are in journals of the track (`designer.journal`), blueprints.jsonl and reflections.jsonl, one for each shard; an answer in any of
them is not requested again.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.progress import track

from dim_jax.batching import batches
from dim_jax.console import open_console
from dim_jax.datasets.construction.captions import rewriting_task
from dim_jax.datasets.construction.config import read_config
from dim_jax.designer.blueprint import BLUEPRINT, PROMPT_VERSION, prompt, strip_thoughts
from dim_jax.designer.clients import Response
from dim_jax.designer.journal import Journal, request_key
from dim_jax.designer.runner import Job
from dim_jax.designer.stage_runner import Answers, DesignerFactory, StageRunner
from dim_jax.designer.task import AnswerError, Task
from dim_jax.errors import InputError
from dim_jax.processing.processor import Processor
from dim_jax.storage.folders import make_folder
from dim_jax.storage.jsonl import json_loads

if TYPE_CHECKING:  # it imports JAX
    from dim_jax.designer.local import LocalDesigner

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
    """A designer's assessment of a result.

    Attributes:
        done: another attempt is not worth while.
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
    text = OBJECT.search(strip_thoughts(answer))
    try:
        value: Any = json_loads(text[0]) if text else None
    except ValueError as error:
        raise AnswerError(f"the answer is not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise AnswerError("the answer has no JSON object")
    done, score, reason, instruction = (value.get(key) for key in ("done", "score", "reason", "instruction"))
    if not isinstance(done, bool):
        raise AnswerError(f'"done" is {done!r}, not true or false')
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= BEST:
        raise AnswerError(f'"score" is {score!r}, not a number from 0 to {BEST}')
    if not done and (not isinstance(instruction, str) or not instruction.strip()):
        raise AnswerError('"instruction" says nothing, though "done" is false')
    return Reflection(done, float(score), str(reason or ""), "" if done else str(instruction).strip())


def _fill(instruction: str) -> str:
    prompt(instruction)  # refuses an empty one
    return TEMPLATE.replace("{instruction}", instruction.strip())


def _check_prompt(text: str) -> str:
    if not text.strip():
        raise AnswerError("the prompt is empty")
    return text.strip()


REFLECTION = Task(_fill, lambda answer: json.dumps(vars(parse(answer)), ensure_ascii=False), VERSION, pictures=2)
# Prompts for text to image that somebody wrote before; they need not have the sections of a blueprint.
READY_PROMPT = Task(lambda prompt: prompt, _check_prompt, "ready", pictures=0)


def _rewriting_task() -> Task:
    """As `dim build-data rewrite` asks by default."""
    captions = read_config("dim_t2i.toml", None)["captions"]
    return rewriting_task(captions["words"], captions["min_words"])


@dataclass(frozen=True)
class EvalDesigner:
    """A designer in an evaluation, and the runner of its requests.

    Attributes:
        name: its spec, as on the command line.
        writer, runner: see `StageRunner`.
        from_file: its blueprints come from a file, so it can answer nothing else.
        tag: the end of this shard's journals.
    """

    name: str
    writer: DesignerFactory
    runner: StageRunner
    from_file: bool = False
    tag: str = ""

    def blueprints(self, track: Path, jobs: Sequence[Job], other_tracks: Sequence[Path] = ()) -> Answers:
        """The blueprints of jobs, by id; for text to image, prompts written out. Answers of `other_tracks` are reused.

        Raises:
            InputError: as in `StageRunner.stage`.
        """
        task = BLUEPRINT
        if jobs and not jobs[0].pictures:
            task = READY_PROMPT if self.from_file else _rewriting_task()
        return self._answers(track, "blueprints", jobs, task, other_tracks)

    def reflections(self, track: Path, jobs: Sequence[Job]) -> Answers:
        """Assessments of results, as JSON for `parse`, by id.

        Raises:
            InputError: as in `StageRunner.stage`, or it cannot look at pictures.
        """
        if self.from_file:
            raise InputError(f"{self.name} cannot look at results. For the track reflected, name a designer that answers (--designer).")
        return self._answers(track, "reflections", jobs, REFLECTION, ())

    def _answers(self, track: Path, name: str, jobs: Sequence[Job], task: Task, other_tracks: Sequence[Path]) -> Answers:
        own = track / f"{name}{self.tag}.jsonl"
        texts, reasons = dict[str, str](), dict[str, str]()
        for folder in (track, *other_tracks):
            for path in sorted(folder.glob(f"{name}*.jsonl")):
                if path != own and not path.name.endswith(".failures.jsonl"):
                    answers = Answers.read(path, jobs, task, self.name, (0, 0))
                    texts |= answers.texts
                    reasons |= {} if self.runner.retry_failed else answers.reasons
        remaining = [job for job in jobs if job.row["id"] not in texts | reasons]
        if not remaining:
            return Answers(texts, reasons, (0, 0))
        track.mkdir(parents=True, exist_ok=True)
        answers = self.runner.stage(own, remaining, task, self.writer)
        return Answers(texts | answers.texts, reasons | answers.reasons, answers.tokens)


def write_batch(
    designer: "LocalDesigner", sources: Sequence[Image.Image], instructions: Sequence[str]
) -> list[tuple[Response, str | None, str | None]]:
    """Answers by an encoder whose processor is the painter's, each with its blueprint, or why there is none that the painter could read."""
    processor = designer.processor
    short = replace(designer, max_tokens=min(designer.max_tokens, processor.condition_length))  # what is longer is not painted
    return [(response, *_read_blueprint(response, processor)) for response in short.write(sources, instructions)]


def _read_blueprint(response: Response, processor: Processor) -> tuple[str | None, str | None]:
    if response.failure:
        return None, response.failure
    try:
        text = BLUEPRINT.parse(response.text)
    except AnswerError as error:
        return None, str(error)
    tokens, longest = processor.condition_tokens(text, pictures=1), processor.condition_length
    return (text, None) if tokens <= longest else (None, f"the blueprint takes {tokens} tokens, and the painter reads {longest}")


def write_locally(
    designer: "LocalDesigner",
    path: Path,
    edits: Mapping[str, tuple[Image.Image, str]],
    *,
    weights: str,
    batch_size: int = 16,
    progress: bool = False,
) -> Answers:
    """Blueprints by an encoder of this machine, in batches, for sources and instructions by id.

    Answers, and why there is none, are kept in the journal `path`, and taken from there for the same source, instruction and weights.
    One that the painter's condition cannot hold counts as none.

    Args:
        designer: writes; its processor is the painter's.
        path: the journal; its folder is made.
        edits: by id, source and instruction.
        weights: a digest of the designer's weights.
        batch_size: how many are written at once.
        progress: show a bar.

    Raises:
        InputError: the journal cannot be read or written, or as in `LocalDesigner.write`.
    """
    version = f"{PROMPT_VERSION} {weights}"
    keys = {
        id_: request_key([hashlib.sha256(source.tobytes()).hexdigest()], instruction, designer.name, version)
        for id_, (source, instruction) in edits.items()
    }
    make_folder(path.parent)
    with Journal(path) as journal:
        missing = [id_ for id_, key in keys.items() if journal.answer(key) is None and journal.reason(key) is None]
        rounds = batches([None] * len(missing), batch_size)
        for batch in track(rounds, "writing blueprints", console=open_console(), transient=True, disable=not progress):
            ids = batch.fill(missing)
            sources, instructions = zip(*(edits[id_] for id_ in ids), strict=True)
            for id_, (response, text, reason) in zip(ids[: len(batch.indices)], write_batch(designer, sources, instructions), strict=False):
                design = {"key": keys[id_], "designer": designer.name, "prompt_version": version, "instruction": edits[id_][1]}
                design |= {"tokens_in": response.tokens_in, "tokens_out": response.tokens_out}
                journal.add({"id": id_}, text, design | ({} if text is not None else {"reason": reason, "text": response.text}))
        texts = {id_: text for id_, key in keys.items() if (text := journal.answer(key)) is not None}
        reasons = {id_: reason for id_, key in keys.items() if (reason := journal.reason(key)) is not None}
        return Answers(texts, reasons, (journal.tokens_in, journal.tokens_out))
