"""An evaluation from the folder of a benchmark to scores: generate, judge, report, each of which goes on where it stopped.

What it was made of stands in OUT/run.json, and OUT takes nothing else: pictures of other weights or settings need a folder of their own.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rich.table import Table
from rich.text import Text

from dim_jax import __version__
from dim_jax.errors import InputError, check
from dim_jax.evals.benchmark import TRACKS, Benchmark, Case, Track
from dim_jax.evals.designs import EvalDesigner
from dim_jax.evals.generate import PICTURES, Generator
from dim_jax.evals.judge import painted_tracks
from dim_jax.evals.measuring import FILE as METRICS_FILE
from dim_jax.evals.measuring import Models, measure
from dim_jax.evals.official import run_scorer, write_official
from dim_jax.evals.pictures import PictureStore, checkpoint_digest
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.storage.folders import make_folder, write_json
from dim_jax.storage.locks import lock_output
from dim_jax.storage.paths import read_object

Stage = Literal["generate", "judge", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
RUN = "run.json"
MAY_CHANGE = ("tracks", "limit", "data", "version")  # what may differ from one call to the next


class Shard(NamedTuple):
    """Part `number` of `count`, from 1: every `count`-th case."""

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str) -> "Shard":
        """From "2/4". Raises InputError if it is not such a text."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f'"{text}": write a shard as its number, from 1, and how many there are, such as 1/4.')
        return cls(int(match[1]), int(match[2]))

    @property
    def tag(self) -> str:
        return "" if self.count == 1 else f".{self.number}of{self.count}"

    def select(self, cases: Sequence[Case]) -> list[Case]:
        return list(cases[self.number - 1 :: self.count])


def read_tracks(text: str, benchmark: Benchmark, *, designed: bool) -> list[Track]:
    """The tracks of a list such as "direct,designed", in their order; `designed`: there is a designer.

    Raises:
        InputError: there is no such track, or it cannot be painted.
    """
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in TRACKS]:
        raise InputError(f'There is no track "{unknown[0]}". Tracks are {", ".join(TRACKS)}.')
    check(names == ["direct"] or designed, f"The tracks {text} need a designer that writes blueprints. Give one (--designer).")
    if "reflected" in names and benchmark.kind == "generate":
        raise InputError(f"{benchmark.title} has no pictures to edit, so no track reflected. Tracks for it are direct and designed.")
    return [track for track in TRACKS if track in names]


@dataclass(frozen=True)
class GenerateSetup:
    """What the stage generate needs; nothing is loaded before it begins.

    Attributes:
        open: the painter.
        settings: of the painter.
        designer_factory: opens the designer, from the painter (whose encoder it may share) and the shard's tag; None: there is none.
        designer: the spec of who writes.
        rounds: of the reflected track, at most.
    """

    open: Callable[[], Sampler]
    settings: Callable[[Sampler], Settings]
    designer_factory: Callable[[Sampler, str], EvalDesigner] | None = None
    designer: str = "none"
    rounds: int = 3


def generate(
    benchmark: Benchmark,
    cases: Sequence[Case],
    out: Path,
    painting: GenerateSetup,
    *,
    data: str,
    tracks: Sequence[Track],
    seed: int,
    limit: int | None,
    shard: Shard,
    official: bool = False,
    progress: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Paint the tracks of a shard's cases that are not finished; `official` also lays them out as the makers expect.

    Raises:
        InputError: `out` is of another run, another process paints the same, or as in `Generator.paint`.
    """
    make_folder(out)
    painter = painting.open()
    settings, weights = painting.settings(painter), checkpoint_digest(painter)
    run = {
        "benchmark": benchmark.name, "data": data, "seed": seed, "limit": limit, "checkpoint": painter.name, "weights": weights,
        "settings": {key: value for key, value in asdict(settings).items() if key != "batch_size"}, "dtype": painter.dtype,
        "designer": painting.designer, "rounds": painting.rounds, "version": __version__, "tracks": list(tracks),
    }  # fmt: skip
    with lock_output(out / RUN):
        _write_run(out / RUN, run)
    designer = painting.designer_factory(painter, shard.tag) if painting.designer_factory else None
    generator = Generator(
        benchmark, out, PictureStore(out, painter, settings, weights), designer, seed, painting.rounds, shard.tag, progress
    )  # fmt: skip
    shard_cases = shard.select(cases)
    for track in tracks:
        failed = generator.paint(track, shard_cases)
        log(f"{out / track / PICTURES}: {len(shard_cases) - len(failed)} of {len(shard_cases)} cases are painted")
        if official:
            write_official(out / track, benchmark, shard_cases)
        if failed:
            case, reason = next(iter(failed.items()))
            log(f'{len(failed)} cases have no blueprint, such as "{case}": {reason}; --retry-failed asks again')


def _write_run(path: Path, run: dict[str, Any]) -> None:
    """Write run.json, or see that it is of the same run. Raises InputError if it is of another one."""
    run = json.loads(json.dumps(run))
    if path.is_file():
        previous = read_object(path)
        # A run without a designer may be given one: its pictures stay as they are.
        free = (*MAY_CHANGE, "checkpoint", *(["designer", "rounds"] if "none" in (previous.get("designer"), run["designer"]) else []))
        if other := [key for key in run if key not in free and previous.get(key) != run[key]]:
            was, now = (", ".join(f"{key} {config.get(key)}" for key in other) for config in (previous, run))
            raise InputError(f"{path.parent}: holds an evaluation with {was}, not {now}. Choose another output, or the same options.")
        if run["designer"] == "none":
            run |= {key: previous[key] for key in ("designer", "rounds")}
        tracks = [track for track in TRACKS if track in (*previous.get("tracks", ()), *run["tracks"])]
        run["tracks"] = tracks
    write_json(path, run)


def score(
    benchmark: Benchmark,
    cases: Sequence[Case],
    out: Path,
    models: Models,
    *,
    official: bool = False,
    scorer: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Measure every track that is painted, with the makers' layout and scorer where they are asked for; the metrics by track.

    Raises:
        InputError: nothing is painted, or as in `measure` and `run_scorer`.
    """
    metrics: dict[str, dict[str, Any]] = {}
    tracks = painted_tracks(out)
    check(tracks, f"{out}: nothing is painted there. Generate pictures first (--stage generate).")
    for track in tracks:
        folder = out / track
        if official or scorer:
            count = write_official(folder, benchmark, cases)
            log(f"{folder}/official: {count} cases in the makers' layout")
        if scorer:
            run_scorer(folder, scorer)
        metrics[track] = measure(folder, benchmark, cases, models)
        done = len(metrics[track]["cases"])
        if done < len(cases):
            log(f"{folder}: {done} of {len(cases)} cases are painted; scores are of those alone")
        for name, reason in metrics[track]["left_out"].items():
            log(f"{folder / METRICS_FILE}: without {name}, which {reason}")
    return metrics


def table(metrics: dict[str, dict[str, Any]]) -> Table | None:
    """Means by track, for people; None if nothing was measured."""
    names = list(dict.fromkeys(name for report in metrics.values() for name in report["mean"]))
    if not names:
        return None
    table = Table()
    for column in ("track", "cases", *names):
        table.add_column(column, justify="left" if column == "track" else "right")
    for track, report in metrics.items():
        for name, part in ((track, report), *([(f"{track}, best by target", report["oracle"])] if "oracle" in report else [])):
            table.add_row(
                Text(name), str(len(part["cases"])), *(f"{part['mean'][metric]:.4g}" if metric in part["mean"] else "" for metric in names)
            )
    return table
