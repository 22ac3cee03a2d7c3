"""The Hugging Face hub, by its own library: what is fetched to the library's cache, and folders that are pushed. Nobody else asks the hub.

A model is named ORG/NAME, or ORG/NAME@REVISION with a branch, a tag or a commit, as the library's own addresses have it.
"""

import hashlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dim_jax.errors import InputError, check, first_line
from dim_jax.storage.disk import NO_SPACE
from dim_jax.storage.paths import AnyPath, as_path, is_remote

TIMEOUT = 5.0  # seconds, of one question before long work
SILENCE = 120.0  # seconds after which a hub that says nothing counts as out of reach; its library would wait for ever
NAME = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
WEIGHT_FILES = (".safetensors", ".pth")  # a name that ends so is a path
SHA256 = re.compile(r"[0-9a-f]{64}")  # a large file in the cache is named by the hash that the hub states
LOG_IN = "log in (hf auth login, or set HF_TOKEN)"


class Located(NamedTuple):
    """Where a model lies, and its name for people: as it was given, or ORG/NAME@COMMIT."""

    path: AnyPath
    name: str


def locate(path: AnyPath | str, patterns: Sequence[str], *, revision: str | None = None, ignored: Sequence[str] = ()) -> Located:
    """What lies at a path here or in a bucket; else the model ORG/NAME of the hub, of which the files that match are fetched.

    Args:
        path: a path that exists counts, whatever its name.
        patterns, ignored: of the model's files, as in `fetch`.
        revision: a branch, tag or commit of the hub's model, also as ORG/NAME@REVISION; None: its main branch.

    Raises:
        InputError: a revision is given twice, or for a path; or as in `fetch`.
    """
    text, here = os.fspath(path), as_path(path)
    named = None if is_remote(text) or here.exists() or text.endswith(WEIGHT_FILES) else NAME.fullmatch(text)
    if named is None:
        check(revision is None, f"{text}: a revision ({revision}) goes with a model of the hub, ORG/NAME. Leave it out, or check the name.")
        return Located(here, text)
    check(not (revision and named["revision"]), f"{text}: names a revision, and {revision} is another one. Give one of them.")
    folder = fetch(named["id"], patterns, revision=revision or named["revision"], ignored=ignored)
    return Located(folder, f"{named['id']}@{folder.name}")


def fetch(
    name: str,
    patterns: Sequence[str] | None,
    *,
    revision: str | None = None,
    ignored: Sequence[str] = (),
    kind: Literal["model", "dataset"] = "model",
    folder: Path | None = None,
) -> Path:
    """The folder of a repository's files on this machine. What is not there yet is fetched; what was cut off goes on.

    With HF_HUB_OFFLINE, or while the hub cannot be reached, it is what the cache holds, if that is whole.

    Args:
        name: ORG/NAME.
        patterns: the files to fetch, such as "*.json"; None: all.
        revision: a branch, tag or commit; None: the main branch.
        ignored: patterns of files that are not fetched.
        kind: of the repository.
        folder: where to put the files, instead of the library's cache.

    Raises:
        InputError: there is no such repository or revision, it has none of these files, it may not be read, or it cannot be fetched; or
            the bytes that came are others than the hub says.
    """
    from huggingface_hub import snapshot_download

    start = time.time()
    with _quiet(), _fetch_errors(name, revision, kind):
        fetched = snapshot_download(
            name, repo_type=kind, revision=revision, allow_patterns=None if patterns is None else [*patterns], ignore_patterns=[*ignored],
            local_dir=folder, library_name="dim_jax",
        )  # fmt: skip
    check(Path(fetched).is_dir(), f"{name}: on the hub it has none of the files {', '.join(patterns or ())}. Check the name.")
    _check_hashes(name, Path(fetched), start)
    return Path(fetched)


def _check_hashes(name: str, folder: Path, since: float) -> None:
    """Refuse, and remove, what was fetched since then to the cache with other bytes; the library compares sizes alone."""
    for file in sorted(folder.rglob("*")):
        blob = file.resolve()
        if SHA256.fullmatch(blob.name) and blob.is_file() and blob.stat().st_mtime >= since:
            with blob.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if digest != blob.name:
                blob.unlink()
                where = file.relative_to(folder)
                raise InputError(f"{name}: {where} came with other bytes than the hub says (SHA-256 {digest}). Run the same command again.")


def cached_snapshot(name: str, *files: str) -> Path | None:
    """The folder in the cache of the hub's library that has one of these files of the model `name`; None: there is none.

    Raises:
        InputError: `name` cannot be an id.
    """
    from huggingface_hub import try_to_load_from_cache

    with _fetch_errors(name):
        paths = [try_to_load_from_cache(name, file) for file in files]
    return next((Path(path).parent for path in paths if isinstance(path, str)), None)


def is_cached(name: str) -> bool:
    """Whether anything of the model ORG/NAME was ever fetched to this machine."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model")).is_dir()


def check_hub_id(name: str) -> None:
    """Ask the hub once whether it has the model `name`. Its library, asked for a file, would try for a minute and warn each time.

    Raises:
        InputError: the hub has no such model, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _fetch_errors(name):
        HfApi().model_info(name, timeout=TIMEOUT)


def check_push(name: str) -> None:
    """Refuse what `push` could not write to, before long work.

    Raises:
        InputError: `name` is not ORG/NAME, the hub is not to be reached, or does not know this user.
    """
    from huggingface_hub import HfApi

    named = NAME.fullmatch(name)
    check(named and not named["revision"], f"{name}: name a model of the hub as ORG/NAME; a branch is given apart (--revision).")
    with _push_errors(name):
        HfApi().whoami()


def push(folder: Path, name: str, *, message: str, revision: str | None = None, private: bool = False, replaced: Sequence[str] = ()) -> str:
    """Push the files of a folder to the model ORG/NAME as one commit, so that nobody ever fetches a part of them; return its address.

    The model is made if there is none. What was uploaded before an interruption is not uploaded again.

    Args:
        folder: its files, and those below it.
        name: ORG/NAME.
        message: of the commit.
        revision: the branch, which is made if there is none; None: the main branch.
        private: make a new model private.
        replaced: patterns of files of an earlier push, which go unless `folder` has them too.

    Raises:
        InputError: the hub refuses it, or is not to be reached; the model is public, though `private` was asked for; or somebody else
            pushed meanwhile. Then the branch is as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="dim_jax")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with _quiet(), _push_errors(name):
        api.create_repo(name, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        there = api.model_info(name, revision=revision)
        check(there.private or not private, f"{name}: is public on the hub. Make it private there first, or leave --private out.")
        earlier = [file.rfilename for file in there.siblings or ()]
        stale = [file for file in earlier if file not in files and any(fnmatchcase(file, pattern) for pattern in replaced)]
        operations = [CommitOperationAdd(file, path) for file, path in files.items()]
        operations += [CommitOperationDelete(file, is_folder=False) for file in stale]
        commit = api.create_commit(name, operations, commit_message=message, revision=revision, parent_commit=there.sha)
    return str(commit.commit_url)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's warnings go, since errors say it all, and its bars too where nobody watches."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, shown = logging.get_verbosity(), not are_progress_bars_disabled()
    hide = shown and not sys.stderr.isatty()
    logging.set_verbosity_error()
    if hide:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")
            yield
    finally:
        logging.set_verbosity(level)
        if hide:
            enable_progress_bars()


@contextmanager
def _fetch_errors(name: str, revision: str | None = None, kind: str = "model") -> Iterator[None]:
    here = "is not a folder or file here, nor whole in the cache of the Hugging Face hub, and " if kind == "model" else ""
    remedy = "Check the spelling, or give a folder." if kind == "model" else "Run the same command again."
    with _hub_errors(f"{name}: {here}cannot be fetched from the hub", f'it has no revision "{revision}"', remedy):
        yield


@contextmanager
def _push_errors(name: str, revision: str | None = None) -> Iterator[None]:
    with _hub_errors(f"{name}: cannot be pushed to the Hugging Face hub", f'it has no branch "{revision}"', "No file was changed there."):
        yield


@contextmanager
def _hub_errors(prefix: str, no_revision: str, suffix: str) -> Iterator[None]:
    """Turn errors of the hub's library into one InputError: what could not be done, why, and what to do."""
    from huggingface_hub import errors, get_session

    hooks = get_session().event_hooks["request"]
    if _limit_silence not in hooks:
        hooks.append(_limit_silence)

    def reason(error: BaseException) -> str:
        if isinstance(error, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(error, errors.LocalTokenNotFoundError):
            return f"nobody is logged in: {LOG_IN}"
        if isinstance(error, errors.GatedRepoError):
            return f"its owner grants access: ask for it on the model's page, and {LOG_IN}"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"there is no such repository, or it is private: {LOG_IN}"
        if isinstance(error, errors.RevisionNotFoundError):
            return no_revision
        if isinstance(error, errors.HfHubHTTPError):
            return _describe_status(error.response.status_code, error.server_message or first_line(error))
        if isinstance(error, errors.HFValidationError):
            return f"as an id of the hub it is not valid: {error}"
        if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
            return reason(error.__cause__)
        return f"its answer is not that of a hub: {first_line(error)}" if isinstance(error, malformed) else first_line(error)

    malformed = (TypeError, KeyError, AttributeError, AssertionError, RecursionError)  # the library's, for JSON of another form
    # Of httpx or its fork, whichever this version of the library uses.
    http_error = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    except InputError:
        raise
    except (http_error, OSError, ValueError, RuntimeError, *malformed) as error:
        if type(error) is RuntimeError and not isinstance(error.__cause__, http_error | OSError):
            raise  # a RuntimeError wraps such an error where a file is uploaded
        of_the_disk = isinstance(error, OSError) and (error.errno in NO_SPACE or error.filename is not None)
        remedy = "Free some space, or name another folder for its cache (HF_HOME)." if of_the_disk else suffix
        raise InputError(f"{prefix} ({reason(error)}). {remedy}") from error


def _limit_silence(request: Any) -> None:
    """A hook of httpx, before it sends a request."""
    limits = request.extensions["timeout"]  # seconds by phase
    request.extensions["timeout"] = {phase: SILENCE if limit is None else limit for phase, limit in limits.items()}


def _describe_status(status: int, message: str) -> str:
    """What an answer of the hub means for who asked."""
    remedies = {
        401: f"the token is not known: {LOG_IN}",
        403: "the token may not do that: take one with write access to this account or organisation",
        412: "somebody else pushed meanwhile: push again",
        429: "too many requests: wait some minutes, and run the same command again",
    }
    if status >= 500:
        return f"the hub answers {status}, {message}: run the same command again later"
    return f"{status}, {remedies.get(status, message)}"
