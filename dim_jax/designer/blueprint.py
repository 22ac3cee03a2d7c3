"""The prompt that asks for a blueprint, and the parser of its answers.

Source: the four steps of Draw-In-Mind's blueprints (arXiv 2509.01986) after the instruction; the wording of the prompt is ours.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from dim_jax.designer.sections import SECTIONS
from dim_jax.designer.task import AnswerError, Task
from dim_jax.errors import check

SECTION_PROMPTS = (
    "the instruction again, made precise. Name the objects as they are in this picture and add nothing that was not asked for.",
    "what kind of picture it is, its main objects, and where each of them is.",
    "how each object and the background look: shape, colour, material, state, and any text, letter by letter.",
    "which objects or regions change and where they are; then what must stay exactly as it is.",
    "the finished picture, as if it lay before you. Say most about what has changed.",
)
FORMAT = (
    "The instruction: {instruction}\n\n"
    "Answer in English with exactly these five numbered sections, each with its title and then your own text, as plain sentences. "
    "Write nothing before the first section and nothing after the last, about 250 words in all.\n\n"
    + "\n".join(
        f"{number}. {title}: {section_prompt}"
        for number, (title, section_prompt) in enumerate(zip(SECTIONS, SECTION_PROMPTS, strict=True), 1)
    )
)
TEMPLATE = f"You plan the edit of the picture above for a painter, who sees the picture and your words and nothing else.\n\n{FORMAT}"
# For training data, whose results are known: the designer sees the result, and must not mention it.
TEMPLATE_WITH_TARGET = (
    "The first picture is to be edited by a painter, who sees that picture and your words and nothing else. The second picture is what "
    "the painter shall arrive at. Plan the edit so that its result is the second picture: the sections on layout and objects describe "
    "the first one, the last section describes the second one as you imagine it. Write as if you had never seen the second picture, "
    f"and mention it nowhere.\n\n{FORMAT}"
)
# Answers to an older prompt have another version and are not used.
PROMPT_VERSION, VERSION_WITH_TARGET = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (TEMPLATE, TEMPLATE_WITH_TARGET))

MARKS = r"[ \t>#*_•–-]*+"  # Markdown's headings, quotes, bullets and bold; possessive, so that no line of dashes takes long
NUMBER = r"(?:\(?[1-5][.):]+\)?|[①-⑤]|[1-5](?=[ \t]))"
TITLES = "|".join(re.escape(title).replace(r"\ ", r"[ \t_-]+").replace("Localization", "Locali[sz]ation") for title in SECTIONS)
END = r"[ \t*_]*(?:\([^()\n]*\)[ \t*_]*)?(?:[:：]|[.](?!\w)|[–—-](?=\s)|$)[*_]*"
# At the start of a line a title stands alone; within a line, where some models write everything in one, it needs its number.
HEADING = re.compile(
    rf"(?:^{MARKS}(?:(?:step|section|part)\s*)?{NUMBER}?|(?<=\s)[*_]*+[1-5][.)]){MARKS}(?:the\s+)?(?P<title>{TITLES}){END}",
    re.IGNORECASE | re.MULTILINE,
)
THOUGHT = re.compile(r"<(?P<end>/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
TAGGED = re.compile(r"<(answer|blueprint|output|response)>(?P<inside>.*?)(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
FENCED = re.compile(r"^[ \t]*(?P<fence>```+|~~~+)[^\n`]*\n(?P<inside>.*?)(?:^[ \t]*(?P=fence)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
REFUSAL = re.compile(
    r"\W*(?:(?:i[’']?m|i am|we[’']?re) (?:very |so |really )?(?:sorry|afraid|unable|not able)|sorry\b|i (?:must|have to) decline"
    r"|i (?:apologi[sz]e|can[’']?t|can ?not|won[’']?t|will not)\b|unfortunately,? i\b|as an ai\b)",
    re.IGNORECASE,
)
OTHER_PICTURE = re.compile(r"\b(?:second|target) (?:image|picture|photo)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?…。！？।؟][\s\"'”’»)\]}*_`]*\Z")
BULLET = re.compile(r"[ \t]*(?:[-*•–]|\d+[.)])[ \t]")


@dataclass(frozen=True)
class Blueprint:
    """A designer's plan.

    Attributes:
        text: what the painter reads: the answer as it was written, without wrappers.
        instruction, layout, objects, area, imagination: the texts of the five sections.
    """

    text: str
    instruction: str
    layout: str
    objects: str
    area: str
    imagination: str


def prompt(instruction: str) -> str:
    """The text of a request, beside the source picture. Raises InputError if the instruction is empty."""
    return _fill(TEMPLATE, instruction)


def _fill(template: str, instruction: str) -> str:
    check(instruction.strip(), f"The instruction is empty ({instruction!r}). Say what is to be edited.")
    return template.replace("{instruction}", instruction.strip())


def parse(text: str) -> Blueprint:
    """The blueprint in a model's answer.

    Thoughts, tags such as <answer>, code fences and remarks before the first title are wrappers and removed; all else stays as written.
    Titles count in any case, bold or not, with or without numbers. A model that repeats the form before it fills it in (or begins
    anew) is read from its last complete blueprint.

    Raises:
        AnswerError: the model refused, or the answer is empty, lacks a section, or ends in the middle.
    """
    body = _unwrap(text)
    if not body:
        raise AnswerError("the answer is empty")
    headings = list(HEADING.finditer(body))
    if not headings:
        if REFUSAL.match(body):
            raise AnswerError(f"the model refused: {_first_line(body)}")
        raise AnswerError(f"the answer has none of the titles of a blueprint: {_first_line(body)}")
    sections = _sections(body, headings)
    for title, section in zip(SECTIONS, sections, strict=True):
        if REFUSAL.match(section):
            raise AnswerError(f'the model refused in "{title}": {_first_line(section)}')
        if not section.strip(" \t\n*_#>-"):
            raise AnswerError(f'the section "{title}" is empty' + (", the answer ends there" if title == SECTIONS[-1] else ""))
    if sections[1:] == SECTION_PROMPTS[1:]:
        raise AnswerError("the answer repeats the questions")
    last_line = sections[-1].splitlines()[-1]
    if last_line.count("**") % 2 or not (SENTENCE_END.search(last_line) or BULLET.match(last_line)):
        raise AnswerError(f"the answer ends in the middle of a sentence: …{last_line[-60:]}")
    return Blueprint(body[headings[0].start() :].strip(), *sections)


def _parse_with_target(answer: str) -> str:
    text = parse(answer).text
    if leak := OTHER_PICTURE.search(text):
        raise AnswerError(f'the blueprint speaks of the "{leak[0]}", which no painter has')
    return text


BLUEPRINT = Task(prompt, lambda answer: parse(answer).text, PROMPT_VERSION)
BLUEPRINT_WITH_TARGET = Task(partial(_fill, TEMPLATE_WITH_TARGET), _parse_with_target, VERSION_WITH_TARGET, pictures=2)


def _unwrap(text: str) -> str:
    """The part of an answer inside tags or a fence, without its thoughts."""
    text = strip_thoughts(text)
    for wrapper in (TAGGED, FENCED, TAGGED):
        enclosed = wrapper.search(text)
        # A fence within a blueprint is part of it.
        if enclosed and HEADING.search(enclosed["inside"]) and not HEADING.search(text[: enclosed.start()]):
            text = enclosed["inside"]
    return text.strip()


def strip_thoughts(text: str) -> str:
    """An answer without the model's reasoning before it. Raises AnswerError if the answer ends within the thoughts."""
    answer, start, in_thought = "", 0, False
    for tag in THOUGHT.finditer(text):
        if tag["end"] and not in_thought:
            answer = ""  # some servers leave out the tag that begins the thought
        elif not in_thought:
            answer += text[start : tag.start()]
        start, in_thought = tag.end(), not tag["end"]
    if not in_thought:
        return answer + text[start:]
    if HEADING.search(answer) is None:
        raise AnswerError("the answer ends within the model's thoughts; allow more tokens")
    return answer


def _sections(body: str, headings: list[re.Match[str]]) -> tuple[str, ...]:
    """The five texts, from the last complete run of titles in order."""
    numbers = [_number(heading) for heading in headings]
    chosen: list[int] = []
    end = len(headings)
    for number in reversed(range(len(SECTIONS))):
        end = next((i for i in reversed(range(end)) if numbers[i] == number), -1)
        if end < 0:
            break
        chosen.insert(0, end)
    if len(chosen) < len(SECTIONS):
        missing = [title for number, title in enumerate(SECTIONS) if number not in numbers]
        if missing and max(numbers) < len(SECTIONS) - 1:
            raise AnswerError(f'the answer ends within "{SECTIONS[max(numbers)]}"; {", ".join(missing)} are missing')
        raise AnswerError(f"sections are missing: {', '.join(missing)}" if missing else "the sections are in another order")
    ends = [*(heading.start() for heading in headings[1:]), len(body)]
    spans = [(headings[first].end(), headings[second].start()) for first, second in pairwise(chosen)]
    spans.append((headings[chosen[-1]].end(), ends[chosen[-1]]))
    return tuple(body[start:stop].strip() for start, stop in spans)


def _number(heading: re.Match[str]) -> int:
    words = re.sub(r"[\s_-]+", " ", heading["title"]).lower().replace("localisation", "localization")
    return [title.lower() for title in SECTIONS].index(words)


def _first_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"
