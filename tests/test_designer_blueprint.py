"""Prompt and parser: what real models write is read, what is no blueprint is refused with its reason."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_jax.designer.blueprint import SECTION_PROMPTS, Blueprint, parse, prompt
from dim_jax.designer.sections import SECTIONS, format_sections
from dim_jax.designer.task import AnswerError
from dim_jax.errors import InputError
from tests.designer_answers import GOOD, TEXTS, lines

# Folder of published prompt files whose `*_cot*.jsonl` hold real blueprints.
BENCHMARKS = os.environ.get("DIM_BENCHMARKS")

FORMS = {
    "plain": "{n}. {title}: {text}",
    "bold": "{n}. **{title}:** {text}",
    "bold outside": "{n}. **{title}**: {text}",
    "all bold": "**{n}. {title}**\n{text}",
    "headings": "### {n}. {title}\n\n{text}\n",
    "headings without numbers": "## {title}\n{text}\n",
    "no numbers": "{title}: {text}",
    "bullets": "- **{title}**: {text}",
    "round bullets": "• {title} – {text}",
    "brackets": "({n}) {title}: {text}",
    "one bracket": "{n}) {title} - {text}",
    "steps": "Step {n}: {title}\n{text}",
    "circled": "①{title}：{text}",
    "quoted": "> {n}. {title}: {text}",
    "an article": "{n}. The {title}: {text}",
    "underlined": "{n}. __{title}__: {text}",
    "a gloss": "{n}. {title} (short): {text}",
    "windows": "{n}. {title}: {text}\r",
}


def texts_of(found: Blueprint) -> tuple[str, ...]:
    return found.instruction, found.layout, found.objects, found.area, found.imagination


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("case", [str, str.upper, str.lower], ids=["as is", "upper", "lower"])
def test_parse_blueprint_formats(form, case):
    written = "\n".join(
        form.format(n=n, title=case(title), text=text) for n, (title, text) in enumerate(zip(SECTIONS, TEXTS, strict=True), 1)
    )
    found = parse(f"\n  {written}\n\n")
    assert texts_of(found) == TEXTS
    assert found.text == written.strip()


def test_all_in_one_line():
    written = lines("{n}. {title}: {text}", between=" ")
    assert texts_of(parse(written)) == TEXTS
    assert parse(written).text == written


def test_variants_of_titles():
    written = GOOD.replace("Edit Area Localization", "Edit-area localisation")
    assert parse(written).area == TEXTS[3]


WRAPPERS = {
    "thoughts": "<think>\nEdit Instruction: maybe? I'm sorry.\n</think>\n\n{}",
    "the end of thoughts": "First I look at the cup.\n1. Edit Instruction: hm.</think>{}",
    "an answer": "<think>hm</think><answer>\n{}\n</answer>",
    "an answer without an end": "<answer>{}",
    "a fence": "```markdown\n{}\n```",
    "a fence in an answer": "<answer>\n```\n{}\n```\n</answer>",
    "an answer in a fence": "```\n<answer>{}</answer>\n```",
    "a remark and a fence": "Sure! Here is the blueprint:\n\n```text\n{}\n```\nLet me know.",
    "a remark": "Certainly, here is the plan you asked for.\n\n{}",
    "a regret that is none": "Sorry for the wait. Here it is:\n\n{}",
    "thoughts after": "{}\n<think>Was that all right?",
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_removed_and_the_rest_stays(wrapper):
    written = "\n\n".join(f"{n}.  **{title}** :\t{text}  " for n, (title, text) in enumerate(zip(SECTIONS, TEXTS, strict=True), 1))
    found = parse(wrapper.format(written))
    assert found.text == written.strip()
    assert texts_of(found) == TEXTS


def test_lists_and_fences_inside_are_text():
    objects = "\n   - **Cup**: white, with the words `edit area`.\n   - Edit area localization is no title here.\n```\ncode\n```"
    found = parse(GOOD.replace(TEXTS[2], objects))
    assert found.objects == objects.strip()
    assert objects in found.text


def test_a_last_section_of_bullets_needs_no_full_stops():
    assert parse(GOOD.replace(TEXTS[4], "\n- A blue cup\n- The same table")).imagination == "- A blue cup\n- The same table"


def test_the_form_repeated_before_it_is_filled_in():
    """As a small model did for the published benchmarks; the painter gets what was written."""
    written = f"{lines('{n}. {title}: {text}', SECTION_PROMPTS)}\n\n{GOOD}"
    assert texts_of(parse(written)) == TEXTS
    assert parse(written).text == written


def test_restarted_answer_uses_last_complete_blueprint():
    assert texts_of(parse(f"{GOOD}\n\n1. Edit Instruction: Paint the cup")) == TEXTS


def test_numbered_blueprint_parses():
    assert texts_of(parse(format_sections(TEXTS))) == TEXTS


@pytest.mark.skipif(not BENCHMARKS, reason="DIM_BENCHMARKS names no folder of published prompt files")
def test_real_blueprints():
    """Those of GPT-4o, Qwen2.5-VL-3B and -7B reach the painter unchanged."""
    files = list(Path(BENCHMARKS or "").rglob("*_cot*.jsonl"))
    prompts = [json.loads(line)["prompt"] for file in files for line in file.read_text().splitlines()]
    assert len(prompts) >= 4029
    for written in prompts:
        found = parse(written)
        assert found.text == written.strip()
        assert all(texts_of(found))


# What is no blueprint

CUT = GOOD[: GOOD.index("Only the outside") + 9]
REFUSED = {
    "nothing": ("", "empty"),
    "white space": (" \n\t", "empty"),
    "only thoughts": ("<think>Let me see.</think>", "empty"),
    "thoughts without an end": (f"<think>I see a cup. {GOOD[:0]}It is white", "within the model's thoughts"),
    "an empty answer": ("<answer></answer>", "none of the titles"),
    "a refusal": ("I'm sorry, but I can't assist with that request.", "refused: I'm sorry, but"),
    "a typographic refusal": ("I’m really sorry, I cannot edit pictures of people.", "refused"),
    "inability": ("Unfortunately, I am not able to see pictures.", "refused"),
    "a refusal in a section": (GOOD.replace(TEXTS[4], "I can't help with identifying people."), 'refused in "Edited Image Imagination"'),
    "small talk": ("What a lovely picture! What shall I do?", "none of the titles"),
    "the instruction alone": (lines("{n}. {title}: {text}").splitlines()[0], 'within "Edit Instruction"; Global Layout Perception'),
    "cut off in a section": (CUT, 'within "Edit Area Localization"; Edited Image Imagination'),
    "cut off in a sentence": (GOOD[:-14], "in the middle of a sentence"),
    "cut off in bold": (GOOD.replace(TEXTS[4], "- A **blue"), "in the middle of a sentence"),
    "cut off after the last title": (GOOD.replace(TEXTS[4], ""), "is empty, the answer ends there"),
    "cut off in a title": (GOOD[: GOOD.index("Image Imagination")], "Edited Image Imagination"),
    "an empty section": (GOOD.replace(TEXTS[2], "**"), '"Local Object Perception" is empty'),
    "a section left out": (GOOD.replace("3. Local Object Perception: ", ""), "missing: Local Object Perception"),
    "another order": ("\n".join(reversed(GOOD.splitlines())), "another order"),
    "the questions again": (lines("{n}. {title}: {text}", SECTION_PROMPTS), "repeats the questions"),
    "json": (json.dumps(dict(zip(SECTIONS, TEXTS, strict=True)), indent=1), "none of the titles"),
}  # fmt: skip


@pytest.mark.parametrize(("written", "reason"), REFUSED.values(), ids=REFUSED)
def test_invalid_blueprints_give_the_reason(written, reason):
    with pytest.raises(AnswerError, match=re.escape(reason)):
        parse(written)


@given(st.integers(0, len(GOOD) - 2))
def test_truncated_blueprints_are_refused(end):
    """Wherever a server stops: nothing half said is taken for a blueprint."""
    try:
        found = parse(GOOD[:end])
    except AnswerError:
        return
    assert found.imagination.endswith(".")


@given(st.text(alphabet="<>/think answer`*#-_.:\n123450 EditInstrucoGlbaLyPp", max_size=200))
def test_parse_never_raises_other_errors_on_random_text(written):
    try:
        found = parse(written)
    except AnswerError:
        return
    assert found.text in written


@pytest.mark.parametrize("unit", ["-", " ", "*", "_", "<think>", "1. ", "`", "```\n", "Edit Instruction:\n", "\n", "<answer>"])
def test_long_nonsense_is_refused_at_once(unit):
    start = time.process_time()
    with pytest.raises(AnswerError):
        parse(unit * (100_000 // len(unit)))
    assert time.process_time() - start < 5


# The prompt


def test_the_prompt_asks_for_what_the_parser_reads():
    asked = prompt("  Make {the} cup blue. ")
    assert "The instruction: Make {the} cup blue.\n" in asked
    with pytest.raises(AnswerError, match="repeats the questions"):
        parse(asked)


@pytest.mark.parametrize("instruction", ["", " \n"])
def test_an_empty_instruction(instruction):
    with pytest.raises(InputError, match="empty"):
        prompt(instruction)
