"""Answers as designers write them, shared by the tests of the designer."""

from dim_jax.designer.sections import SECTIONS

TEXTS = (
    "Paint the cup on the saucer blue.",
    "A still life seen from above: one cup of coffee on a saucer, on a wooden table that fills the frame.",
    "The cup is white porcelain with a thin rim. The table is dark oak, and the spoon reads \"N. 5\".",
    "Only the outside of the cup changes. Coffee, saucer, spoon and table stay as they are.",
    "The same table from above, with a cup of deep blue porcelain; the coffee in it is as dark as before.",
)  # fmt: skip


def lines(form: str, texts: tuple[str, ...] = TEXTS, between: str = "\n") -> str:
    """One line for each section, in the given form."""
    return between.join(form.format(n=n, title=title, text=text) for n, (title, text) in enumerate(zip(SECTIONS, texts, strict=True), 1))


GOOD = lines("{n}. {title}: {text}")
