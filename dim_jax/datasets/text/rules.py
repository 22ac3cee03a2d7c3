"""The five changes of a text, each as another scene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from dim_jax.data.example import Split
from dim_jax.datasets.text.backgrounds import distinct_colours
from dim_jax.datasets.text.faces import Face, other_faces
from dim_jax.datasets.text.scenes import MAX_TRIES, POSITIONS, SIZES, Label, Scene
from dim_jax.datasets.text.vocabulary import sample_text


@dataclass(frozen=True)
class Change:
    """A scene before and after one of its labels changed by a rule."""

    rule: str
    source: Scene
    target: Scene
    index: int

    @property
    def old(self) -> Label:
        return self.source.labels[self.index]

    @property
    def new(self) -> Label:
        return self.target.labels[self.index]

    @property
    def others(self) -> tuple[Label, ...]:
        """The labels that stay."""
        return tuple(label for i, label in enumerate(self.source.labels) if i != self.index)

    def reversed(self) -> "Change":
        """The same the other way round."""
        return replace(self, source=self.target, target=self.source)


@dataclass(frozen=True)
class Choices:
    """What changes may draw from."""

    split: Split
    faces: Sequence[Face]
    colours: Sequence[str]


RULES: dict[str, Callable[[Random, Label, Choices], Label]] = {
    "word": lambda rng, label, stock: replace(label, text=sample_text(rng, stock.split, label.case)),
    "font": lambda rng, label, stock: replace(label, face=rng.choice(other_faces(stock.faces, label.face))),
    "colour": lambda rng, label, stock: replace(label, colour=rng.choice(distinct_colours(label.colour, stock.colours) or [label.colour])),
    "size": lambda rng, label, stock: replace(label, size=rng.choice([size for size in range(len(SIZES)) if size != label.size])),
    "position": lambda rng, label, stock: replace(label, position=rng.choice([other for other in POSITIONS if other != label.position])),
}


def change(rule: str, rng: Random, scene: Scene, choices: Choices, side: int) -> Change | None:
    """A scene changed by a rule so that it can still be read; None where no try finds room."""
    for _ in range(MAX_TRIES):
        index = rng.randrange(len(scene.labels))
        target = scene.with_label(index, RULES[rule](rng, scene.labels[index], choices))
        texts = {label.text.lower() for label in target.labels}
        labels_differ = len(texts) == len(target.labels) and (rule != "word" or scene.labels[index].text.lower() not in texts)
        if target != scene and labels_differ and target.is_legible(side):
            return Change(rule, scene, target, index)
    return None
