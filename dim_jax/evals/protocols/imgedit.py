"""ImgEdit-Bench: three scores from 1 to 5 for each edit, by criteria of its type; a case's score is their mean.

Source: ImgEdit (arXiv 2505.20275); basic_bench.py, step1_get_avgscore.py and step2_typescore.py of PKU-YuanGroup/ImgEdit. The overall score
of the paper is the mean of the nine types' means; the scripts end with those.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dim_jax.designer.scores import Scale
from dim_jax.evals.benchmark import Case
from dim_jax.evals.protocols import OfficialScores, Protocol, Question, RecordedAnswers, by_category, mean, means

TEMPLATE = """You grade edits of pictures. The first picture is the original, the second one is what an editing model made of it.
The instruction was: {instruction}

It asks to %s. Give three scores, each a whole number from 1 (failed) to 5 (nothing to improve):

Compliance: %s
Quality: %s
Preservation: %s

If the edit was not done, or done to the wrong thing, Compliance is 1. Neither of the other two scores may be above Compliance.

Answer with exactly these four lines:
Reasoning: at most 20 words
Compliance: 1 to 5
Quality: 1 to 5
Preservation: 1 to 5"""
BLEND = "does the changed region fit the rest in style, sharpness, colour and grain, without seams, smears or noise?"
PHYSICS = "are light, shadows, perspective and contact right, and is everything that the instruction does not name as it was?"
CRITERIA = {
    "add": ("add something", "is it there, of the right kind, number, place, size and colour?", BLEND, PHYSICS),
    "remove": ("take something away", "is all of it gone, and nothing else?", BLEND, PHYSICS),
    "replace": (
        "put one thing in place of another",
        "is the old one gone, and the new one right in kind, number and place?",
        BLEND,
        PHYSICS,
    ),
    "adjust": (
        "change a property of something",
        "does the right thing have the right new colour, material or state, and its old shape?",
        BLEND,
        PHYSICS,
    ),
    "background": (
        "change the background",
        "is the background what was asked for, and the foreground untouched?",
        "is the border between foreground and background clean, without halos or holes?",
        "do light, perspective and depth of foreground and background belong together?",
    ),
    "style": (
        "render the picture in another style",
        "is the style unmistakable, and all over the picture?",
        "is the rendering clean, without noise, banding or broken strokes?",
        "are all objects and their places kept?",
    ),
    "action": (
        "change a pose, an action or an expression",
        "is it exactly the pose, action or expression that was asked for?",
        "are anatomy, light and edges right, without duplicated or broken limbs?",
        "is it the same person or animal, with the same face, hair and clothes?",
    ),
    "extract": (
        "cut something out and put it before a plain white background",
        "is it the right object, complete, and nothing else?",
        "is the cut precise, and the background pure white without remnants or fringes?",
        "is the object itself as sharp and as coloured as in the original?",
    ),
    "edit": ("change something", "is it done, all of it and to the right thing?", BLEND, PHYSICS),  # of kinds that ImgEdit does not have
    "compose": ("make several changes", "is every one of the changes made, and each of them right?", BLEND, PHYSICS),
}
SCORES = ("compliance", "quality", "preservation")
SCALE = Scale(1.0, 5.0)


def questions(case: Case, result: Path) -> list[Question]:
    assert case.source is not None
    prompt = case.category if case.category in CRITERIA else "edit"
    return [Question("edit", prompt, (case.source, result), SCORES, SCALE)]


def combine(case: Case, scores: Mapping[str, float]) -> dict[str, float]:
    return {"score": mean([scores[name] for name in SCORES]), **scores}


def official(recorded: Sequence[RecordedAnswers], seed: int) -> OfficialScores:
    """Only "NAME: N" lines with a whole N and one ": " count; whatever number of them there is, the case is their mean, rounded."""
    scored, dropped = [], 0
    for case, answers in recorded:
        text = answers["edit"][0] if answers["edit"] else ""
        parts = [line.strip().split(": ") for line in text.splitlines()]
        # isdigit in the script, which ends in an error on digits such as "²"
        scores = [float(part[1]) for part in parts if len(part) == 2 and part[1].isdecimal()]
        if scores:
            scored.append((case, {"score": round(mean(scores), 2)}))
        dropped += not scores
    categories = {name: {"score": round(row["score"], 2)} for name, row in by_category(scored).items()}
    overall = means(list(categories.values()))
    notes = ["Scores such as 4.5, 4/5 and **4** are dropped, and a case is the mean of what is left of its three."]
    return OfficialScores(overall, categories, (*notes, f"{dropped} of {len(recorded)} cases had no score left and are in no mean."))


PROTOCOL = Protocol(
    name="imgedit",
    source="ImgEdit (arXiv 2505.20275), PKU-YuanGroup/ImgEdit",
    prompts={kind: TEMPLATE % criteria for kind, criteria in CRITERIA.items()},
    questions=questions,
    combine=combine,
    metrics={"score": SCALE, **dict.fromkeys(SCORES, SCALE)},
    average="categories",
    official=official,
)
