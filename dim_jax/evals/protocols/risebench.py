"""RISEBench: is the reasoning right, is the rest as it was, does it look plausible? Three scores from 1 to 5; of logical puzzles two, each
right or wrong. The accuracy is the share of cases with full marks in all of them.

Source: RISEBench (arXiv 2504.02826), gpt_eval.py of PhoenixZ810/RISEBench; percentages are 25 (score - 1), as there.

`Case.metadata` holds a row of the makers' table. `reference` and `reference_txt` say in words what should be there, `Case.target` is the
reference picture; `reasoning_img` says that the source is needed to judge the reasoning, `consistency_free` that consistency is not judged.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dim_jax.designer.scores import Scale
from dim_jax.evals.benchmark import Case
from dim_jax.evals.protocols import OfficialScores, Protocol, Question, RecordedAnswers, by_category, means

RETAINED = """Compare everything that the instruction does not ask to change: people, objects, their places and colours, background, style.
5: all of it is the same. 4: one small thing differs. 3: one thing that matters differs, or several small ones. 2: several such things
differ. 1: it is another picture."""
ACHIEVED = """5: all of it is there, to the right degree. 4: nearly all of it. 3: part of it. 2: things that matter are missing or wrong.
1: the instruction was not followed."""
END = "Say in a few sentences how you come to the score, then end with this line:\nFinal Score: N"
ASKED = "The instruction was: {instruction}"
EXPECTED = "This is what should be seen after the edit: {reference}"
LOGIC = "Is the answer that the {picture} picture shows the right one? 1: yes. 0: no, or it shows more than one answer."
PROMPTS = {
    "consistency": f"The first picture was edited, and the second one is the result.\n{ASKED}\n\n{RETAINED}\n\n{END}",
    "reasoning": f"The picture is the result of an edit.\n{ASKED}\n{EXPECTED}\n\nHow well does the picture show it?\n{ACHIEVED}\n\n{END}",
    "reasoning_with_source": (
        f"The first picture was edited, and the second one is the result.\n{ASKED}\n{EXPECTED}\n\n"
        f"How well does the second picture show it?\n{ACHIEVED}\n\n{END}"
    ),
    "reasoning_by_picture": (
        f"The first picture shows what an edit should have arrived at, the second one is what it did arrive at.\n{ASKED}\n\n"
        f"How well does the second picture show what the first one does? Style and colours do not matter here.\n{ACHIEVED}\n\n{END}"
    ),
    "plausibility": (
        "The picture was made by a model. Is it sharp and free of distortions, and could it be real?\n5: it is, in every detail. "
        "4: small flaws. 3: something that matters is blurred or impossible. 2: much of it is. 1: it can hardly be recognised.\n\n" + END
    ),
    "logic_consistency": (
        f"The second picture was made from the first one, to show the answer to a puzzle.\n{ASKED}\n\nBut for the answer, are "
        f"style, lines, colours and layout those of the first picture? A slightly lighter or darker colour does not matter. "
        f"1: yes. 0: no.\n\n{END}"
    ),
    "logic_text": (
        f"The picture should show the answer to a puzzle.\n{ASKED}\nThe right answer is: {{reference}}\n\n"
        f"{LOGIC.replace('{picture} ', '')}\n\n{END}"
    ),
    "logic_picture": (
        "The first picture shows the right answer to a puzzle, the second one what a model answered.\n"
        f"{ASKED}\n\n{LOGIC.replace('{picture}', 'second')}\n\n{END}"
    ),
}
FIVE, YES_OR_NO, PERCENT = Scale(1.0, 5.0), Scale(0.0, 1.0, is_integer=True), Scale(0.0, 100.0)
LOGICAL, SPATIAL = "logical_reasoning", "spatial_reasoning"


def metadata_value(case: Case, name: str) -> Any:
    """A value of the makers' row; None where it has none, as their tables write it."""
    value = case.metadata.get(name)
    return None if value is None or value is False or value != value or value == "" else value


def questions(case: Case, result: Path) -> list[Question]:
    source = case.source
    assert source is not None
    reference = str(metadata_value(case, "reference") or "")
    if case.category == LOGICAL:
        words = metadata_value(case, "reference_txt")
        before = source if words or case.target is None else case.target
        right = (
            Question("reasoning", "logic_picture", (before, result), ("reasoning",), YES_OR_NO)
            if not words and case.target is not None
            else Question("reasoning", "logic_text", (result,), ("reasoning",), YES_OR_NO, str(words or reference))
        )
        return [Question("consistency", "logic_consistency", (before, result), ("consistency",), YES_OR_NO), right]
    before, prompt, judged_pictures = source, "reasoning", (result,)
    if case.category == SPATIAL and case.target is not None:
        before, prompt, judged_pictures = case.target, "reasoning_by_picture", (case.target, result)
    elif metadata_value(case, "reasoning_img"):
        prompt, judged_pictures = "reasoning_with_source", (source, result)
    all_questions = [
        Question("consistency", "consistency", (before, result), ("consistency",), FIVE),
        Question("reasoning", prompt, judged_pictures, ("reasoning",), FIVE, reference),
        Question("plausibility", "plausibility", (result,), ("plausibility",), FIVE),
    ]
    return all_questions[1:] if metadata_value(case, "consistency_free") else all_questions


def combine(case: Case, scores: Mapping[str, float]) -> dict[str, float]:
    """Of puzzles 0 and 1 count as 1 and 5. Where the reasoning is worth 1, the weighted score is halved, down to 1 at least."""
    logical = case.category == LOGICAL
    return _metrics({name: 4 * value + 1 if logical else value for name, value in scores.items()}, _weights(case, "consistency" in scores))


def _weights(case: Case, consistent: bool) -> dict[str, float]:
    if case.category == LOGICAL:
        return {"consistency": 0.3, "reasoning": 0.7}
    return (
        {"consistency": 0.3, "reasoning": 0.5, "plausibility": 0.2} if consistent else {"reasoning": 0.8, "plausibility": 0.2}
    )  # fmt: skip


def _metrics(scores: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    weighted = sum(weight * scores[name] for name, weight in weights.items())
    if scores["reasoning"] == 1:
        weighted = max(1.0, weighted / 2)
    percents = {name: 25 * (value - 1) for name, value in scores.items()}
    return {"accuracy": 100.0 * all(value == 5 for value in scores.values()), "score": weighted, **percents}


def official(recorded: Sequence[RecordedAnswers], seed: int) -> OfficialScores:
    """Scores are the whole numbers after "Final Score"; a failed case is in no mean but counts as not accurate."""
    free_column = any("consistency_free" in entry.case.metadata for entry in recorded)
    scored, failed, never = [], 0, 0
    for case, answers in recorded:
        logical = case.category == LOGICAL
        numbers_by_question = {name: _extract(texts[0] if texts else "") for name, texts in answers.items()}
        if any(len(numbers) != 1 for numbers in numbers_by_question.values()):
            failed += 1
            scored.append((case, {"accuracy": 0.0}))
            continue
        scores = {name: 4.0 * min(numbers[0], 1) + 1 if logical else float(numbers[0]) for name, numbers in numbers_by_question.items()}
        row = _metrics(scores, _weights(case, "consistency" in scores and not free_column))
        if not logical and "consistency" not in scores:
            row["accuracy"], never = 0.0, never + 1
        scored.append((case, row))
    notes = [
        "Of 4.5 and 4/5 only the 4 counts.",
        f"{failed} of {len(recorded)} cases failed: they are in no mean of scores, and count as not accurate.",
        f"{never} cases whose consistency is not judged can never be accurate.",
    ]
    if free_column:
        notes.append("Since some rows have consistency_free, consistency counts in no weighted score but those of puzzles.")
    return OfficialScores(means([row for _, row in scored]), by_category(scored), tuple(notes))


def _extract(answer: str) -> list[int]:
    for match in re.findall(r"\*?\*?Final Scores?\*?\*?:?\s*([\d*\s,\n]*)", answer, re.IGNORECASE):
        if numbers := [int(number) for number in re.findall(r"\d+", match)]:
            return numbers
    return []


PROTOCOL = Protocol(
    name="risebench",
    source="RISEBench (arXiv 2504.02826), PhoenixZ810/RISEBench",
    prompts=PROMPTS,
    questions=questions,
    combine=combine,
    metrics={"accuracy": PERCENT, "score": FIVE, **dict.fromkeys(("reasoning", "consistency", "plausibility"), PERCENT)},
    average="cases",
    official=official,
)
