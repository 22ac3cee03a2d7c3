"""Counts of the rows of a data set while they are written; counts of several workers add up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dim_jax.data.example import RawExample


@dataclass
class DatasetStatistics:
    """Sums, least and most values by name; plain dictionaries, so that they can be JSON.

    Attributes:
        sums: such as "rows", "texts", "words of texts", "rule: colour".
        least: such as "width of target", in pixels.
        most: the same, and "words of texts" of the longest text.
    """

    sums: dict[str, int] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: RawExample, sizes: dict[str, tuple[int, int]], stored: int) -> "DatasetStatistics":
        """A row alone; `sizes` are (width, height) of its pictures in pixels by "source" and "target", `stored` is its record's bytes."""
        tally = cls({"rows": 1, "bytes": stored, "texts": len(row.texts), f"rule: {row.rule}": 1})
        for name, texts in (("texts", row.texts), ("blueprint", () if row.blueprint is None else (row.blueprint,))):
            words = [len(text.split()) for text in texts]
            tally.sums |= {f"words of {name}": sum(words)}
            tally.most |= {f"words of {name}": max(words, default=0)}
        for name, size in sizes.items():
            sides = {f"width of {name}": size[0], f"height of {name}": size[1]}
            tally.sums |= sides
            tally.least |= sides
            tally.most |= sides
        return tally

    def __add__(self, other: "DatasetStatistics") -> "DatasetStatistics":
        least, most = (
            {name: choose(value, others.get(name, value)) for name, value in (others | ours).items()}
            for choose, ours, others in ((min, self.least, other.least), (max, self.most, other.most))
        )
        return DatasetStatistics(dict(Counter(self.sums) + Counter(other.sums)), least, most)

    def report(self) -> dict[str, Any]:
        """Counts, rules, and least, mean and most of every measure, for people."""
        rows = self.sums.get("rows", 0)
        report: dict[str, Any] = {name: self.sums.get(name, 0) for name in ("rows", "bytes", "texts")}
        counts = {name.removeprefix("rule: "): count for name, count in sorted(self.sums.items()) if name.startswith("rule: ")}
        if set(counts) != {""}:
            report["rules"] = counts
        for name, most in self.most.items():
            if most:
                many = report["texts"] if name == "words of texts" else rows
                least = {"least": self.least[name]} if name in self.least else {}
                report[name] = {**least, "mean": round(self.sums[name] / many, 1), "most": most}
        return report
