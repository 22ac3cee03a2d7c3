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
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import TRACKS, Benchmark, Case, Track
from dim_jax.evals.designs import Designs
from dim_jax.evals.generate import PICTURES, Generator
from dim_jax.evals.judge import painted_tracks
from dim_jax.evals.measuring import FILE as METRICS_FILE
from dim_jax.evals.measuring import Models, measure
from dim_jax.evals.official import run_scorer, write_official
from dim_jax.evals.pictures import Album, checkpoint_digest
from dim_jax.sampling import Sampler
from dim_jax.settings import Settings
from dim_jax.storage.folders import make_folder, write_json
from dim_jax.storage.locks import lock_output
from dim_jax.storage.paths import read_json

Stage = Literal["generate", "judge", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
RUN = "run.json"
GROWS = ("tracks", "limit", "data", "version")  # what may differ from one call to the next


class Shard(NamedTuple):
    """Part `number` of `count`, from 1: every `count`-th case."""

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str) -> "Shard":
        """From "2/4".

        Raises:
            InputError: it is not such a text.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f'"{text}": write a shard as its number, from 1, and how many there are, such as 1/4.')
        return cls(int(found[1]), int(found[2]))

    @property
    def tag(self) -> str:
        return "" if self.count == 1 else f".{self.number}of{self.count}"

    def of(self, cases: Sequence[Case]) -> list[Case]:
        return list(cases[self.number - 1 :: self.count])


def read_tracks(text: str, benchmark: Benchmark, *, designed: bool) -> list[Track]:
    """The tracks of a list such as "direct,designed", in their order; `designed`: there is a designer.

    Raises:
        InputError: there is no such track, or it cannot be painted.
    """
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in TRACKS]:
        raise InputError(f'There is no track "{unknown[0]}". Tracks are {", ".join(TRACKS)}.')
    if names != ["direct"] and not designed:
        raise InputError(f"The tracks {text} need a designer that writes blueprints. Give one (--designer).")
    if "reflected" in names and benchmark.kind == "generate":
        raise InputError(f"{benchmark.title} has no pictures to edit, so no track reflected. Tracks for it are direct and designed.")
    return [track for track in TRACKS if track in names]


@dataclass(frozen=True)
class Painting:
    """What the stage generate needs, opened when it begins.

    Attributes:
        open: the painter.
        changes: settings that were named, by name.
        designs: who writes blueprints, of that painter for a designer that shares it; None: nobody.
        designer: the spelling of who writes.
        rounds: of the reflected track, at most.
    """

    open: Callable[[], Sampler]
    settings: Callable[[Sampler], Settings]
    designs: Callable[[Sampler, str], Designs] | None = None
    designer: str = "none"
    rounds: int = 3


def generate(
    benchmark: Benchmark,
    cases: Sequence[Case],
    out: Path,
    painting: Painting,
    *,
    data: str,
    tracks: Sequence[Track],
    seed: int,
    limit: int | None,
    shard: Shard,
    official: bool = False,
    progress: bool = False,
    tell: Callable[[str], None] = lambda line: None,
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
        _note(out / RUN, run)
    designs = painting.designs(painter, shard.tag) if painting.designs else None
    generator = Generator(
        benchmark, out, Album(out, painter, settings, weights), designs, seed, painting.rounds, shard.tag, progress
    )  # fmt: skip
    own = shard.of(cases)
    for track in tracks:
        failed = generator.paint(track, own)
        tell(f"{out / track / PICTURES}: {len(own) - len(failed)} of {len(own)} cases are painted")
        if official:
            write_official(out / track, benchmark, own)
        if failed:
            case, reason = next(iter(failed.items()))
            tell(f'{len(failed)} cases have no blueprint, such as "{case}": {reason}; --retry-failed asks again')


def _note(path: Path, run: dict[str, Any]) -> None:
    """Write run.json, or see that it is of the same run.

    Raises:
        InputError: it is of another one.
    """
    run = json.loads(json.dumps(run))
    if path.is_file():
        known = read_json(path)
        # A run without a designer may be given one: its pictures stay as they are.
        free = (*GROWS, "checkpoint", *(["designer", "rounds"] if "none" in (known.get("designer"), run["designer"]) else []))
        if other := [key for key in run if key not in free and known.get(key) != run[key]]:
            was, now = (", ".join(f"{key} {one.get(key)}" for key in other) for one in (known, run))
            raise InputError(f"{path.parent}: holds an evaluation with {was}, not {now}. Choose another output, or the same options.")
        if run["designer"] == "none":
            run |= {key: known[key] for key in ("designer", "rounds")}
        tracks = [track for track in TRACKS if track in (*known.get("tracks", ()), *run["tracks"])]
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
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Measure every track that is painted, with the makers' layout and scorer where they are asked for; the metrics by track.

    Raises:
        InputError: nothing is painted, or as in `measure` and `run_scorer`.
    """
    found: dict[str, dict[str, Any]] = {}
    tracks = painted_tracks(out)
    if not tracks:
        raise InputError(f"{out}: nothing is painted there. Generate pictures first (--stage generate).")
    for track in tracks:
        folder = out / track
        if official or scorer:
            count = write_official(folder, benchmark, cases)
            tell(f"{folder}/official: {count} cases in the makers' layout")
        if scorer:
            run_scorer(folder, scorer)
        found[track] = measure(folder, benchmark, cases, models)
        done = len(found[track]["cases"])
        if done < len(cases):
            tell(f"{folder}: {done} of {len(cases)} cases are painted; scores are of those alone")
        for name, reason in found[track]["left_out"].items():
            tell(f"{folder / METRICS_FILE}: without {name}, which {reason}")
    return found


def table(metrics: dict[str, dict[str, Any]]) -> Table | None:
    """Means by track, for people; None if nothing was measured."""
    names = list(dict.fromkeys(name for found in metrics.values() for name in found["mean"]))
    if not names:
        return None
    shown = Table()
    for column in ("track", "cases", *names):
        shown.add_column(column, justify="left" if column == "track" else "right")
    for track, found in metrics.items():
        for name, part in ((track, found), *([(f"{track}, best by target", found["oracle"])] if "oracle" in found else [])):
            shown.add_row(
                Text(name), str(len(part["cases"])), *(f"{part['mean'][one]:.4g}" if one in part["mean"] else "" for one in names)
            )
    return shown
