"""Pictures with text on them, and edits of that text: another word, typeface, colour, size or position."""
