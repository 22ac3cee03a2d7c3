"""The five sections of a blueprint, in Draw-In-Mind's words and order (arXiv 2509.01986), and how one is written by rule."""

from collections.abc import Sequence

SECTIONS = (
    "Edit Instruction", "Global Layout Perception", "Local Object Perception", "Edit Area Localization", "Edited Image Imagination",
)  # fmt: skip


def format_sections(texts: Sequence[str]) -> str:
    """One text for each section, as a blueprint."""
    return "\n\n".join(f"{number}. **{title}**: {text}" for number, (title, text) in enumerate(zip(SECTIONS, texts, strict=True), 1))
