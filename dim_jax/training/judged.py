"""Rewards from a judge: a vision-language model on a server scores every picture that the policy paints.

Requests go through `designer.runner`, with its retries, and answers into a journal in the working directory. A run that is killed paints
the same pictures again after its last checkpoint, and finds their answers there.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dim_jax import processes
from dim_jax.config import Config
from dim_jax.data.batches import PaintBatch
from dim_jax.designer.choice import DesignerSpec
from dim_jax.designer.clients import Designer
from dim_jax.designer.journal import Journal, request_key
from dim_jax.designer.limits import Limits
from dim_jax.designer.picture import digest
from dim_jax.designer.runner import Job, run
from dim_jax.designer.scores import Scale, read_scores
from dim_jax.designer.task import Task
from dim_jax.errors import InputError, check
from dim_jax.processes import to_host
from dim_jax.processing.chat import ChatTokenizer
from dim_jax.storage.paths import AnyPath

PROMPT = """The first picture is the original, the second one is what an editing model made of it.

The instruction was: {instruction}

How well is the instruction carried out, with nothing else changed and the picture well made? Answer with one whole number from 0 (not at
all) to 10 (perfectly), and nothing else."""
VERSION = hashlib.sha256(PROMPT.encode()).hexdigest()[:12]
SCALE = Scale(0.0, 10.0)
MAX_ATTEMPTS = 2  # for an answer with a score in it


class Judge:
    """Scores of a judge as rewards from 0 to 1. The first process alone asks."""

    def __init__(self, config: Config, tokenizer: ChatTokenizer, journal: Journal | None):
        """`journal`: None in the other processes."""
        self._config, self._tokenizer, self._journal = config, tokenizer, journal

    def __call__(self, step: int, batch: PaintBatch, painted: UInt8[np.ndarray, "b k h w 3"]) -> Float[np.ndarray, "b k"]:
        """NaN for a picture whose answers have no score.

        Raises:
            InputError: the server answers no request at all, none of the answers has a score, or the journal cannot be written.
        """
        source, ids, turns = (np.asarray(to_host(array)) for array in (batch.source, batch.inputs.input_ids, batch.inputs.user_turn))
        rewards = None
        if self._journal is not None:
            # What the painter reads, whichever wording was drawn: the text of its turn.
            instructions = [self._tokenizer.decode(row[turn].tolist()).strip() for row, turn in zip(ids, turns, strict=True)]
            rewards = self._ask(self._journal, step, instructions, source, painted)
        return np.asarray(processes.gather(rewards)[0], np.float32)

    def _ask(self, journal: Journal, step: int, instructions: Sequence[str], sources: Any, painted: Any) -> list[list[float]]:
        designer = open_designer(self._config)
        with tempfile.TemporaryDirectory() as scratch:
            groups = [
                [
                    Job((_write(scratch, f"{i}", source), _write(scratch, f"{i}-{k}", picture)), instruction, {"id": f"{step}/{i}/{k}"})
                    for k, picture in enumerate(pictures)
                ]
                for i, (instruction, source, pictures) in enumerate(zip(instructions, sources, painted, strict=True))
            ]
            task = Task(lambda instruction: PROMPT.format(instruction=instruction), _checked, VERSION, 2, MAX_ATTEMPTS)
            ask = partial(run, [job for group in groups for job in group], designer, journal, Limits(self._config.reward.concurrency))
            with ThreadPoolExecutor(1) as thread:  # where it leaves SIGTERM to the run, which ends after this step
                report = thread.submit(ask, task=task, retry_failed=True).result()
            rewards = [[_reward(journal, job, designer) for job in group] for group in groups]
        check(not np.isnan(rewards).all(), f"{designer.name}: no answer of step {step} has a score. The first: {report.example}")
        return rewards


def open_designer(config: Config) -> Designer:
    """The client of `config.reward.judge`. Errors as in `DesignerSpec.open`, or it is none that asks a server."""
    spec = DesignerSpec.parse(config.reward.judge)
    if not spec.online:
        raise InputError(f'config.reward.judge is "{config.reward.judge}": give a model on a server, such as vllm:MODEL or openai:gpt-4o.')
    return spec.open(base_url=config.reward.base_url or None)


@contextmanager
def open_judge(config: Config, tokenizer: ChatTokenizer, workdir: AnyPath) -> Iterator[Judge]:
    """The judge of a run, with its journal judge.jsonl in `workdir`.

    Raises:
        InputError: the judge cannot be opened, `workdir` is not on this machine, or the journal is not one or in use.
    """
    open_designer(config)  # refuses one before anything is painted
    if not isinstance(workdir, Path):
        raise InputError(f"{workdir}: answers of a judge are appended to a file, which a bucket cannot. Take a --workdir on this machine.")
    with ExitStack() as opened:
        yield Judge(config, tokenizer, opened.enter_context(Journal(workdir / "judge.jsonl")) if processes.is_first() else None)


def _write(folder: str, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> Path:
    path = Path(folder) / f"{name}.png"
    Image.fromarray(pixels).save(path)
    return path


def _checked(answer: str) -> str:
    read_scores(answer, 1, SCALE)
    return answer  # as it came


def _reward(journal: Journal, job: Job, designer: Designer) -> float:
    answer = journal.answer(request_key([digest(picture) for picture in job.pictures], job.instruction, designer.name, VERSION))
    return float("nan") if answer is None else read_scores(answer, 1, SCALE)[0] / SCALE.high
