"""The layout that a benchmark's makers expect, and their own scorer."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Benchmark, Case, read_finished
from dim_jax.evals.pictures import link
from dim_jax.storage.folders import make_folder, new_file, write_text

FOLDER, RESULTS = "official", "official_results.jsonl"


def write_official(track: Path, benchmark: Benchmark, cases: Sequence[Case]) -> int:
    """Put the pictures of all finished cases where the makers' scorer looks for them, with what else it reads. Returns how many cases.

    Raises:
        InputError: a file cannot be written.
    """
    finished, folder, count = read_finished(track), track / FOLDER, 0
    for case in cases:
        if case.id not in finished:
            continue
        count += 1
        for k, name in enumerate(finished[case.id]["pictures"]):
            link(track / name, folder / benchmark.official(case, k))
        for name, content in benchmark.official_files(case).items():
            _write(folder / name, content)
    return count


def _write(path: Path, content: str | Path) -> None:
    if isinstance(content, Path):
        link(content, path)
        return
    make_folder(path.parent)
    write_text(path, content)


def run_scorer(track: Path, command: str) -> Path:
    """Run the makers' scorer; in the command {pictures} stands for the folder with their layout, and {results} for the file to write.

    Raises:
        InputError: the command does not name both, cannot be started, fails, or writes nothing.
    """
    if "{pictures}" not in command or "{results}" not in command:
        raise InputError(f'"{command}": the scorer\'s command must name {{pictures}}, the folder, and {{results}}, the file to write.')
    with new_file(track / RESULTS) as scratch:
        scratch.unlink()  # some scorers go on with a file that is there
        words = [word.format(pictures=(track / FOLDER).absolute(), results=scratch.absolute()) for word in shlex.split(command)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InputError(f"{words[0]}: the scorer cannot be started ({error.strerror}). Check --official-scorer.") from error
        if done.returncode or not scratch.is_file():
            output = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise InputError(f"{words[0]}: the scorer ended with {done.returncode} and wrote no results: {output[-1]}")
    return track / RESULTS
