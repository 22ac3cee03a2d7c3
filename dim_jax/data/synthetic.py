"""Examples without data: random pictures and words, so that any config runs on a bare machine (the first run of every team)."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dim_jax.data.chat import ChatTokenizer
from dim_jax.data.example import Example, Kind, Texts
from dim_jax.data.row_stats import RowStats

SYNTHETIC = "synthetic"  # the name of this source in configs
LENGTH = 1024
WORDS = ("make", "the", "cat", "dog", "sky", "heart", "small", "large", "red", "green", "blue", "smile", "turn", "left", "into", "a")


@dataclass(frozen=True)
class Synthetic:
    """A sequence of examples, each a function of its index: to paint `side` x `side` pixels from a text, and for edits from a source.

    The target is the source with a random tint. The texts say nothing of it: what can be learned is the source, not the edit.
    """

    kind: Kind
    side: int

    def __len__(self) -> int:
        return LENGTH

    def rules(self) -> list[str]:
        return ["synthetic"] * len(self)

    def stats(self, tokenizer: ChatTokenizer | None) -> RowStats | None:
        return None  # nobody counted them

    def row_texts(self, index: int) -> Texts:
        rng = self._rng(index, words=True)
        texts = tuple(" ".join(rng.choice(WORDS, 6)) + "." for _ in range(2))
        return Texts(texts, " ".join(rng.choice(WORDS, 24)) + ".")

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def __getitem__(self, index: int) -> Example:
        rng = self._rng(index, words=False)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        source = Image.fromarray(coarse).resize((self.side, self.side), Image.Resampling.BICUBIC)
        tint = Image.new("RGB", source.size, tuple(int(level) for level in rng.integers(0, 256, 3)))
        target = Image.blend(source, tint, 0.5)
        said = self.row_texts(index)
        return Example(source if self.kind == "edit" else None, target, "synthetic", said.texts, said.blueprint, f"synthetic/{index}")

    def _rng(self, index: int, *, words: bool) -> np.random.Generator:
        return np.random.default_rng((index, self.kind == "edit", words))
