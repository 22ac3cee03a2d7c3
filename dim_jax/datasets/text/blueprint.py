"""Blueprints of text changes, written by rule in Draw-In-Mind's five sections (arXiv 2509.01986). They have seen the target."""

from dim_jax.datasets.measures import position_in_words
from dim_jax.datasets.text.rules import Change
from dim_jax.datasets.text.scenes import Box, Scene, label_box
from dim_jax.datasets.text.wording import POSITION_TEXTS, describe_label, spell
from dim_jax.datasets.words import capitalize_first, join_with_and
from dim_jax.designer.sections import format_sections

# What changes, and what of the text stays.
AREAS = {
    "word": ("the letters", "their typeface, colour, size and place"),
    "font": ("the shapes of the letters", "the wording, colour, size and place"),
    "colour": ("the colour of the letters", "the wording, typeface, size and place"),
    "size": ("the size of the letters", "the wording, typeface, colour and place"),
    "position": ("the place of the letters", "the wording, typeface, colour and size"),
}


def blueprint(change: Change, instruction: str, background: str, side: int) -> str:
    """The blueprint of a change on a picture of `side` pixels; `background` describes it."""
    part, unchanged = AREAS[change.rule]
    old, new = (label_box(label, scene.background, side) for label, scene in ((change.old, change.source), (change.new, change.target)))
    unchanged_parts = (*(f'the text "{label.text}"' for label in change.others), f"{background} wherever no letter was or will be")
    box_text = f"they fill {_describe_box(old, side)}"
    if old != new:
        box_text += f"; afterwards {_describe_box(new, side)}, and where they are gone the ground is shown again"
    background, texts = capitalize_first(background), "one text" if len(change.source.labels) == 1 else "two texts"
    position, text = capitalize_first(POSITION_TEXTS[change.new.position]), change.new.text
    result = f'{position} it says "{text}", spelled {spell(text)}. Nothing else has changed.'
    sections = (
        instruction,
        f"{background} with {texts}: {_list_texts(change.source)}.",
        " ".join(f"{capitalize_first(describe_label(label))}, spelled {spell(label.text)}." for label in change.source.labels),
        f'Change {part} of "{change.old.text}": {box_text}. Keep {unchanged}, and {join_with_and(unchanged_parts)}.',
        f"{background} with {join_with_and(tuple(map(describe_label, change.target.labels)))}. {result}",
    )
    return format_sections(sections)


def _list_texts(scene: Scene) -> str:
    return join_with_and(tuple(f'"{label.text}" {POSITION_TEXTS[label.position]}' for label in scene.labels))


def _describe_box(area: Box, side: int) -> str:
    """A box in words: the part of the picture, and its edges in percent."""
    left, top, right, bottom = (100 * edge / side for edge in area)
    part = position_in_words(left / 100, right / 100, top / 100, bottom / 100)
    return f"{part}, {left:.0f} to {right:.0f} % across and {top:.0f} to {bottom:.0f} % down"
