"""Blueprints for one picture or for many rows: what the command line and scripts call."""

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from dim_jax.designer.blueprint import PROMPT_VERSION, prompt
from dim_jax.designer.choice import read_rows
from dim_jax.designer.clients import ChatDesigner, Designer
from dim_jax.designer.journal import Journal, request_key
from dim_jax.designer.limits import Limits, Price
from dim_jax.designer.picture import digest
from dim_jax.designer.responses import replace_surrogates
from dim_jax.designer.runner import Job, run, summary
from dim_jax.errors import InputError, SignalError, check, check_unicode
from dim_jax.storage.disk import is_creatable
from dim_jax.storage.paths import resolve

JOURNAL_VARIABLE = "DIM_BLUEPRINTS"  # the environment variable that names the file of answers to single questions


def journal_path() -> Path:
    """The file of servers' answers, so that the same edit with another seed is not paid again.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(os.path.expanduser(os.environ.get(JOURNAL_VARIABLE) or "~/.cache/dim_jax/blueprints.jsonl"))
    if path.parts[0] == "~" or not is_creatable(path.parent.absolute()) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path}: answers are kept there, and it cannot be written. Name another file: {JOURNAL_VARIABLE}=FILE.jsonl.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_blueprint(
    picture: Path, instruction: str, designer: Designer, *, row_id: str | None = None, journal_file: Path | None = None
) -> str:
    """The blueprint of one edit, as the painter reads it. A server's answer is kept in `journal_path()`, and taken from there next time.

    Args:
        picture: the file of the source.
        instruction: what is to be edited.
        designer: the designer that writes.
        row_id: the id to look for in a file of blueprints; by default the name of the picture's file, without its suffix.
        journal_file: where the answer is kept instead. A file has one writer at a time, and others wait.

    Raises:
        InputError: the instruction or the picture cannot be read, the designer cannot be reached, or it wrote no blueprint; the message
            says why. SignalError: a signal ended it.
    """
    check_unicode(instruction, "The instruction")
    prompt(instruction)
    job = Job((picture,), instruction, {"id": replace_surrogates(row_id or picture.stem)})
    with ExitStack() as stack:
        path = journal_file or (
            journal_path() if isinstance(designer, ChatDesigner) else Path(stack.enter_context(TemporaryDirectory())) / "blueprints.jsonl"
        )
        journal = stack.enter_context(Journal(path, wait=True))
        report = run([job], designer, journal, Limits(concurrency=1), retry_failed=True)
        key = request_key([digest(picture)], instruction, designer.name, PROMPT_VERSION)
        text = journal.answer(key)
        if report.signal:
            paid = text is not None and isinstance(designer, ChatDesigner)
            hint = "; its answer is kept, the same command goes on from there" if paid else ""
            raise SignalError(f"stopped by {report.stopped} while {designer.name} was asked{hint}", report.signal)
        if text is None:
            reason = journal.reason(key) or f"stopped by {report.stopped}"
            raise InputError(
                f"{designer.name} wrote no blueprint for {picture.name}: {reason}. Try again, another wording, or another designer."
            )
    return text


def read_text(path: Path) -> str:
    """A blueprint from a text file, stripped and otherwise unchanged: the painter reads any text.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: the blueprint cannot be read ({getattr(error, 'strerror', None) or error}). Give a text file."
        ) from error
    check(text, f"{path}: the blueprint is empty. Write what to paint.")
    return text


def write_blueprints(
    path: Path,
    output: Path,
    designer: Designer,
    limits: Limits,
    *,
    pictures: Path | None = None,
    price: Price | None = None,
    retry_failed: bool = False,
    progress: bool = False,
) -> str:
    """Write the blueprints of a jsonl to another one, with failures beside it; continue an existing output. Returns a summary.

    Args:
        path: objects with `id`, `prompt` (the instruction) and `image_path`, as the benchmarks are published.
        output: the same objects with the blueprint as `prompt`, in the order of the answers (`Journal`).
        designer: the designer that writes.
        limits: as in `run`, like `price`, `retry_failed` and `progress`.
        pictures: the folder that `image_path` starts from; by default that of `path`.

    Raises:
        InputError: a row is wrong or its picture missing (then no request is sent), or as in `run` and `Journal`. SignalError: a signal
            ended the run; the message is the summary.
    """
    check_output(output, path)
    folder = pictures or path.parent
    total = _check_rows(path, folder)
    jobs = (Job((folder / row["image_path"],), row["prompt"], row) for _, row in read_rows(path))
    with Journal(output) as journal:
        report = run(jobs, designer, journal, limits, price=price, retry_failed=retry_failed, total=total, progress=progress)
        text = f"{output}: {summary(report, journal, price)}"
    if report.failed:
        text += f", such as {report.example}; why they failed stands in {journal.failures_path}, --retry-failed asks again"
    remaining = total - report.answered - report.failed - report.skipped
    if report.stopped:
        text += f"; stopped by {report.stopped}, {remaining} remain: run the command again, with a larger limit if it was one, to continue"
    if report.signal:
        raise SignalError(text, report.signal)
    return text


def check_output(output: Path, path: Path) -> None:
    """Refuses an output for the rows of `path` that is not another jsonl, or whose folder is missing, with an InputError."""
    if output.suffix != ".jsonl" or not output.parent.is_dir() or resolve(output) == resolve(path):
        raise InputError(f"{output}: name another file that ends in .jsonl, in a folder that exists.")


def _check_rows(path: Path, folder: Path) -> int:
    """The number of rows. Raises InputError if a row has no picture, no instruction or an id of another row, or there is no row."""
    ids, missing = set[str](), list[Path]()
    for number, (_, row) in enumerate(read_rows(path), 1):
        if not isinstance(row.get("image_path"), str) or not row["prompt"].strip() or row["id"] in ids:
            raise InputError(f'{path}, row {number}: needs an "id" of its own, a "prompt" with the instruction, and an "image_path".')
        ids.add(row["id"])
        # Invalid text fails its row alone.
        if replace_surrogates(row["image_path"]) == row["image_path"] and not (folder / row["image_path"]).is_file():
            missing.append(folder / row["image_path"])
    check(ids, f"{path} has no rows. Write one object on each line.")
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(ids)} pictures are missing, such as {missing[0]}. Name their folder (--pictures)."
        )
    return len(ids)
