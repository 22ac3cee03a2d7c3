"""The emoji data set, from packages to a folder: fetch, render, pair, split, write, describe."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dim_jax.data.example import Split
from dim_jax.datasets.cards import write_card
from dim_jax.datasets.emoji import card, packages
from dim_jax.datasets.emoji.blueprint import blueprint
from dim_jax.datasets.emoji.names import Emoji, read_emoji
from dim_jax.datasets.emoji.render import SIDE, RenderedEmoji, render
from dim_jax.datasets.emoji.rules import Edit, edits
from dim_jax.datasets.emoji.split import sampling_hash, split_of
from dim_jax.datasets.emoji.wording import captions, instructions
from dim_jax.datasets.layouts.pairs import DATASET, PAIR_SPLITS, Pair, PairSplit, Picture, encode_webp, pair_split, write_pairs
from dim_jax.datasets.measures import main_colours
from dim_jax.errors import require_packages
from dim_jax.storage.folders import new_folder
from dim_jax.storage.paths import AnyPath

# The most pairs of a rule in training; a tenth of it in the test. Other rules have no limit.
LIMITS = {"skin_tone": 15_000, "expression": 20_000, "style": 20_000, "occupation_swap": 10_000, "flag": 8_000}
NEEDS = 200 * 2**20  # bytes on disk, at 64 pixels


@dataclass(frozen=True)
class EmojiPair:
    """An edit between two pictures, by number."""

    edit: Edit
    source: int
    target: int
    split: PairSplit


def build(
    target: AnyPath,
    *,
    sets: Sequence[str] = tuple(packages.SETS),
    side: int = SIDE,
    archives: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict:
    """Make the data set folder, complete or not at all; the same archives give the same bytes.

    Args:
        target: the folder to make (`datasets/layouts/pairs.py` says what is in it), with statistics.json, sheet.png and README.md.
        sets: who drew the emoji, of `packages.SETS` and `packages.OLDER_SETS`. The split of an emoji is the same with all of them.
        side: of the pictures, in pixels.
        archives: a folder with the packages' .tgz files; None fetches them through npm.
        overwrite: replace a data set that is already there.
        console: where bars are shown, if it is a terminal; None shows none.

    Returns:
        What statistics.json holds.

    Raises:
        InputError: the target exists, a package cannot be fetched or is damaged, or a Python package is missing.
    """
    require_packages("array_record", "resvg_py", extra="data", feature="The emoji data set")
    with (
        new_folder(target, overwrite=overwrite, num_bytes=NEEDS * side**2 // SIDE**2, kind=DATASET) as folder,
        Progress(console=console, disable=console is None or not console.is_terminal, transient=True) as bar,
    ):
        if archives is None:
            bar.add_task("fetching the packages", total=None)
        with packages.open_archives(archives, packages.packages_of(sets)) as source:
            emoji = read_emoji(packages.read_names(source))
            rendered = _render_all(source, sets, emoji, side, bar)
        splits: list[Split] = [split_of(item.emoji) for item in rendered]
        all_pairs, dropped = _find_pairs(rendered, splits, edits(emoji))
        sampled_pairs = _limit_per_rule(all_pairs, rendered)
        pairs = [_make_pair(item, rendered) for item in bar.track(sampled_pairs, description="writing blueprints")]
        pictures = [
            Picture(item.set, item.emoji.code, item.emoji.name, split, captions(item), encode_webp(item.pixels))
            for item, split in zip(bar.track(rendered, description="compressing pictures"), splits, strict=True)
        ]
        write_pairs(folder, pictures, pairs)
        statistics = card.statistics(pictures, pairs, candidates=Counter(item.edit.rule for item in all_pairs), dropped=dropped)
        write_card(folder, statistics, card.contact_sheet(rendered, pairs), card.data_card(statistics, side, LIMITS))
    return statistics


def _render_all(archives: Path, sets: Sequence[str], emoji: dict[str, Emoji], side: int, bar: Progress) -> list[RenderedEmoji]:
    """Every drawing of every set whose emoji has a name."""
    rendered = []
    for name in sets:
        archive = archives / packages.HANDS[name].archive
        drawings = [drawing for drawing in packages.read_drawings(archives, name) if drawing.code in emoji]
        for drawing in bar.track(drawings, description=f"rendering {name}"):
            pixels = render(drawing, str(archive), side)
            rendered.append(RenderedEmoji(name, emoji[drawing.code], pixels, main_colours(pixels)))
    return rendered


def _find_pairs(rendered: list[RenderedEmoji], splits: list[Split], candidates: Iterable[Edit]) -> tuple[list[EmojiPair], Counter]:
    """Every edit in every set that draws both emoji, and why others were dropped: equal pictures, or a pair of no split."""
    pairs, dropped = [], Counter()
    for edit, source, target in _match_candidates(rendered, candidates):
        split = pair_split(splits[source], splits[target])
        if np.array_equal(rendered[source].pixels, rendered[target].pixels):
            dropped["equal"] += 1
        elif split is None:
            dropped["mixed"] += 1
        else:
            pairs.append(EmojiPair(edit, source, target, split))
    return pairs, dropped


def _match_candidates(rendered: list[RenderedEmoji], candidates: Iterable[Edit]) -> Iterator[tuple[Edit, int, int]]:
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    for number, item in enumerate(rendered):
        numbers[item.set][item.emoji.code] = number
    for edit in candidates:
        for codes in numbers.values():
            if edit.source in codes and edit.target in codes:
                yield edit, codes[edit.source], codes[edit.target]
    for number, item in enumerate(rendered):
        for name, codes in numbers.items():
            if name != item.set and item.emoji.tone == "" and item.emoji.code in codes:
                old, new = packages.HANDS[item.set], packages.HANDS[name]
                words = {"old": old.title, "new": new.title, "look": new.look}
                yield Edit(item.emoji.code, item.emoji.code, "style", words), number, codes[item.emoji.code]


def _limit_per_rule(pairs: list[EmojiPair], rendered: list[RenderedEmoji]) -> list[EmojiPair]:
    """At most `LIMITS` of each rule, by their hash; a tenth of that outside of training."""
    pairs = sorted(pairs, key=lambda item: sampling_hash(rendered[item.source], rendered[item.target]))
    limited = []
    for split in PAIR_SPLITS:
        for rule in sorted({item.edit.rule for item in pairs}):
            group = [item for item in pairs if item.edit.rule == rule and item.split == split]
            limit = LIMITS.get(rule)
            limited += group if limit is None else group[: limit if split == "train" else limit // 10]
    return limited


def _make_pair(item: EmojiPair, rendered: list[RenderedEmoji]) -> Pair:
    source, target = rendered[item.source], rendered[item.target]
    texts = instructions(item.edit, source.emoji, target.emoji)
    return Pair(item.source, item.target, item.edit.rule, texts, blueprint(item.edit, texts[0], source, target))
