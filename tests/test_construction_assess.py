"""Is an instruction what was done: the answers of real models, read."""

import pytest

from dim_jax.datasets.construction.assess import ASSESSMENT, Assessment, parse, prompt
from dim_jax.designer.blueprint import BLUEPRINT_WITH_TARGET, PROMPT_VERSION, TEMPLATE_WITH_TARGET, VERSION_WITH_TARGET
from dim_jax.designer.task import AnswerError
from tests.designer_answers import GOOD, TEXTS, lines

ALIGNED = Assessment("aligned", "It fits.", "Paint the cup blue.")
GOOD_ANSWERS = {
    "plain": "Verdict: aligned\nReason: It fits.\nInstruction: Paint the cup blue.",
    "bold": "**Verdict:** Aligned\n\n**Reason:** It fits.\n\n**Instruction:** Paint the cup blue.",
    "bold outside": "**Verdict**: aligned.\n**Reason**: It fits.\n**Instruction**: Paint the cup blue.",
    "bullets": "- Verdict: ALIGNED\n- Reason: It fits.\n- Instruction: Paint the cup blue.",
    "thoughts": "<think>Verdict: misaligned?</think>\nVerdict: aligned\nReason: It fits.\nInstruction: Paint the cup blue.",
    "fence": "```\nVerdict: aligned\nReason: It fits.\nInstruction: Paint the cup\nblue.\n```",
    "more words": "Verdict: aligned (completely)\nReason: It fits.\nInstruction: Paint the cup blue.",
}


@pytest.mark.parametrize("text", GOOD_ANSWERS.values(), ids=GOOD_ANSWERS)
def test_parse_assessment_variants(text):
    assert parse(text) == ALIGNED


def test_parse_misaligned_and_aligned_verdicts():
    assert parse("Verdict: misaligned\nReason: Nothing changed.\nInstruction: none") == Assessment("misaligned", "Nothing changed.", "")
    assert parse("Verdict: Misaligned\nReason: Nothing changed.").instruction == ""
    assert parse("Verdict: partly aligned\nReason: More.\nInstruction: Do both.") == Assessment("partially aligned", "More.", "Do both.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I'm sorry, I can't do that.", "the model refused"), ("It is aligned.", "no verdict"), ("", "no verdict"),
        ("Verdict: good\nInstruction: x", "not one of misaligned, partially aligned, aligned"),
        ("Verdict: not aligned\nInstruction: x", "not one of"),
        ("Verdict: aligned\nReason: It fits.", "has no instruction"), ("Verdict: aligned\nInstruction: None.", "has no instruction"),
        ("Verdict: aligned\nInstruction: Make it as in the second picture.", 'speaks of the "second picture"'),
    ],
)  # fmt: skip
def test_other_answers_are_refused_with_a_reason(text, reason):
    with pytest.raises(AnswerError, match=reason):
        parse(text)


@pytest.mark.parametrize("text", [*GOOD_ANSWERS.values(), "Verdict: misaligned\nReason: No."])
def test_normalized_assessment_parses_to_itself(text):
    kept = ASSESSMENT.parse(text)
    assert parse(kept) == parse(text)
    assert ASSESSMENT.parse(kept) == kept


def test_assessment_prompt():
    assert "\nMake it {instruction} blue.\n" in prompt("  Make it {instruction} blue. ")
    assert ASSESSMENT.pictures == 2


def test_blueprints_with_the_target_in_sight():
    """The same form and reader under a version of its own; a text that lets on what it saw is refused."""
    assert VERSION_WITH_TARGET != PROMPT_VERSION
    assert BLUEPRINT_WITH_TARGET.prompt("Blue.") == TEMPLATE_WITH_TARGET.replace("{instruction}", "Blue.")
    assert BLUEPRINT_WITH_TARGET.parse(f"<answer>{GOOD}</answer>") == GOOD
    leak = lines("{n}. {title}: {text}", (*TEXTS[:4], "The cup is blue, as in the target image."))
    with pytest.raises(AnswerError, match='"target image"'):
        BLUEPRINT_WITH_TARGET.parse(leak)
