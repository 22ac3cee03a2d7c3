"""Synthetic examples: random pictures and words, so that any config runs without data."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from PIL import Image

from dim_jax.data.example import JUDGEMENT, Example, Kind, Texts
from dim_jax.data.row_stats import RowStats
from dim_jax.processing.chat import ChatTokenizer

SYNTHETIC = "synthetic"  # the name of this source in configs
LENGTH = 1024
WORDS = ("make", "the", "cat", "dog", "sky", "heart", "small", "large", "red", "green", "blue", "smile", "turn", "left", "into", "a")


@dataclass(frozen=True)
class Synthetic:
    """Examples of `side` x `side` pixels, each a function of its index.

    The target is the source with a random tint. The texts do not describe it, so a model can learn the source, not the edit.
    """

    kind: Kind
    side: int

    def __len__(self) -> int:
        return LENGTH

    def rules(self) -> list[str]:
        return [self._rule] * len(self)

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None:
        return None  # not counted

    def row_texts(self, index: int) -> Texts:
        rng = self._rng(index, words=True)
        texts = tuple(" ".join(rng.choice(WORDS, 6)) + "." for _ in range(2))
        return Texts(texts, " ".join(rng.choice(WORDS, 24)) + ".")

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def prefetch(self, indices: Int[np.ndarray, " n"]) -> None:
        pass  # nothing is stored

    def __getitem__(self, index: int) -> Example:
        rng = self._rng(index, words=False)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        source = Image.fromarray(coarse).resize((self.side, self.side), Image.Resampling.BICUBIC)
        tint = Image.new("RGB", source.size, tuple(int(level) for level in rng.integers(0, 256, 3)))
        target = Image.blend(source, tint, 0.5)
        row_texts = self.row_texts(index)
        source = None if self.kind == "caption" else source
        return Example(source, target, self._rule, row_texts.texts, row_texts.blueprint, f"synthetic/{index}")

    @property
    def _rule(self) -> str:
        return JUDGEMENT if self.kind == JUDGEMENT else "synthetic"

    def _rng(self, index: int, *, words: bool) -> np.random.Generator:
        return np.random.default_rng((index, self.kind == "edit", words))
