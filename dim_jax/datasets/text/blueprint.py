"""Blueprints of text changes, written by rule in Draw-In-Mind's five sections (arXiv 2509.01986). They have seen the target."""

from dim_jax.datasets.measures import third
from dim_jax.datasets.text.rules import Change
from dim_jax.datasets.text.scenes import Box, Scene, box
from dim_jax.datasets.text.wording import AT, look, spelled
from dim_jax.datasets.words import capital, listed
from dim_jax.designer.sections import numbered

# What changes, and what of the text stays.
AREAS = {
    "word": ("the letters", "their typeface, colour, size and place"),
    "font": ("the shapes of the letters", "the wording, colour, size and place"),
    "colour": ("the colour of the letters", "the wording, typeface, size and place"),
    "size": ("the size of the letters", "the wording, typeface, colour and place"),
    "position": ("the place of the letters", "the wording, typeface, colour and size"),
}


def blueprint(change: Change, instruction: str, ground: str, side: int) -> str:
    """The blueprint of a change on a picture of `side` pixels; `ground` says what is behind the texts."""
    part, unchanged = AREAS[change.rule]
    old, new = (box(label, scene.ground, side) for label, scene in ((change.old, change.source), (change.new, change.target)))
    unchanged_parts = (*(f'the text "{label.text}"' for label in change.others), f"{ground} wherever no letter was or will be")
    box_text = f"they fill {_box_words(old, side)}"
    if old != new:
        box_text += f"; afterwards {_box_words(new, side)}, and where they are gone the ground is shown again"
    ground, texts = capital(ground), "one text" if len(change.source.labels) == 1 else "two texts"
    result = (
        f'{capital(AT[change.new.position])} it says "{change.new.text}", spelled {spelled(change.new.text)}. Nothing else has changed.'
    )
    sections = (
        instruction,
        f"{ground} with {texts}: {_texts_in(change.source)}.",
        " ".join(f"{capital(look(label))}, spelled {spelled(label.text)}." for label in change.source.labels),
        f'Change {part} of "{change.old.text}": {box_text}. Keep {unchanged}, and {listed(unchanged_parts)}.',
        f"{ground} with {listed(tuple(map(look, change.target.labels)))}. {result}",
    )
    return numbered(sections)


def _texts_in(scene: Scene) -> str:
    return listed(tuple(f'"{label.text}" {AT[label.position]}' for label in scene.labels))


def _box_words(area: Box, side: int) -> str:
    """A box in words: the part of the picture, and its edges in percent."""
    left, top, right, bottom = (100 * edge / side for edge in area)
    part = third(left / 100, right / 100, top / 100, bottom / 100)
    return f"{part}, {left:.0f} to {right:.0f} % across and {top:.0f} to {bottom:.0f} % down"
