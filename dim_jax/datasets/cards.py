"""The files beside a built data set: counts of its pictures and pairs, lengths of its texts, tables of its card."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dim_jax.data.example import SPLITS
from dim_jax.datasets.hashing import stable_hash
from dim_jax.datasets.layouts.pairs import Pair, Picture, decode_webp, pair_split
from dim_jax.markdown import markdown_table
from dim_jax.sheets import named_rows

SHEET_PAIRS = 4  # of a rule


class PairStatistics:
    """Counts of pictures by (set, split) and of pairs by (rule, split), added as they are written."""

    def __init__(self) -> None:
        self.pictures: Counter[tuple[str, str]] = Counter()
        self.pairs: Counter[tuple[str, str | None]] = Counter()
        self._words: dict[str, list[int]] = defaultdict(list)

    def add(self, pictures: Sequence[Picture], pairs: Iterable[Pair]) -> None:
        """Count pictures, and the pairs between them."""
        self.pictures.update((picture.set, picture.split) for picture in pictures)
        self._words["captions"] += [len(text.split()) for picture in pictures for text in picture.captions]
        for pair in pairs:
            self.pairs[pair.rule, pair_split(pictures[pair.source].split, pictures[pair.target].split)] += 1
            self._words["instructions"] += [len(text.split()) for text in pair.instructions]
            self._words["blueprints"].append(len(pair.blueprint.split()))

    def total(self, splits: Sequence[str]) -> dict[str, int]:
        """The pairs of each split."""
        return {split: sum(count for (_, of_split), count in self.pairs.items() if of_split == split) for split in splits}

    def words(self) -> dict[str, dict[str, float]]:
        """The mean and the largest number of words of each kind of text."""
        return {
            name: {"mean": round(sum(counts) / len(counts), 1), "longest": max(counts)}
            for name in ("captions", "instructions", "blueprints")
            for counts in [self._words[name] or [0]]
        }


def counts_by_split(pictures: Sequence[Picture], pairs: Iterable[Pair]) -> dict[str, Any]:
    """The pairs of each split by rule, and in all, as statistics.json holds them."""
    counts = {split: Counter[str]() for split in SPLITS}
    for pair in pairs:
        counts[pictures[pair.source].split][pair.rule] += 1
    return {"pairs": counts, "total": {split: counts[split].total() for split in SPLITS}}


def contact_sheet(pictures: Sequence[Picture], pairs: Iterable[Pair], seed: int) -> Image.Image:
    """For every rule a few pairs, each with its first instruction."""
    rows = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: stable_hash(seed, f"{pair.rule}/{pair.source}>{pair.target}")):
        if len(rows[pair.rule]) < SHEET_PAIRS:
            images = tuple(decode_webp(pictures[index].webp) for index in (pair.source, pair.target))
            rows[pair.rule].append((images, pair.instructions[0]))
    return named_rows(dict(sorted(rows.items())))


def words_table(words: Mapping[str, Mapping[str, float]]) -> str:
    """The table of `PairStatistics.words`."""
    return markdown_table(("texts, in words", "mean", "longest"), [(name, *row.values()) for name, row in words.items()])


def write_card(folder: Path, statistics: Mapping[str, Any], sheet: Image.Image, text: str) -> None:
    """Write statistics.json, sheet.png and README.md."""
    (folder / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
    sheet.save(folder / "sheet.png")
    (folder / "README.md").write_text(text)
