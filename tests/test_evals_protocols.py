"""Every protocol on recorded answers: the scores as counted by hand, ours and by the makers' arithmetic."""

import json
import math
import random
from pathlib import Path

import pytest

from dim_jax.designer.task import AnswerError
from dim_jax.errors import InputError
from dim_jax.evals.benchmark import Case
from dim_jax.evals.protocols import RecordedAnswers, protocol

SOURCE, RESULT, TARGET = Path("source.png"), Path("result.png"), Path("target.png")
IMGEDIT, GEDIT, RISE = protocol("imgedit"), protocol("gedit"), protocol("risebench")


def case(category: str, name: str = "1", target: Path | None = None, **facts) -> Case:
    return Case(name, category, "Paint the {reference} <instruction> red.", SOURCE, target, metadata=facts)


def score(rules, one: Case, answers: dict[str, str]) -> dict[str, float]:
    asked = {question.name: question for question in rules.questions(one, RESULT)}
    assert asked.keys() == answers.keys()
    return rules.combine(one, {name: value for key, text in answers.items() for name, value in asked[key].read(text).items()})


def test_unknown_protocols():
    with pytest.raises(InputError, match=r'no judging protocol "vie".*gedit, imgedit, rise'):
        protocol("vie")


def test_what_is_asked():
    for rules, one in ((IMGEDIT, case("style")), (GEDIT, case("any")), (RISE, case("causal_reasoning", reference="A {instruction}."))):
        for question in rules.questions(one, RESULT):
            text = rules.text(question, one)
            assert question.name == "PQ" or question.name == "plausibility" or one.prompt in text, "whatever stands in it"
            assert "{instruction}" not in text.replace("A {instruction}.", "")
    assert len({IMGEDIT.prompts[name] for name in IMGEDIT.prompts}) == 10
    (question,) = IMGEDIT.questions(case("skin tone"), RESULT)
    assert question.prompt == "edit", "kinds that ImgEdit does not have"


def test_other_texts(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"style": "Grade <edit_prompt>!"}))
    other = IMGEDIT.with_prompts(file)
    one = case("style")
    (question,) = other.questions(one, RESULT)
    assert other.text(question, one) == f"Grade {one.prompt}!"
    assert (other.wording, IMGEDIT.wording) == ("prompts.json", "ours")
    assert other.version != IMGEDIT.version
    for content, says in ({"tint": "x"}, "nothing under tint"), ({"style": " "}, "texts by name"), ([], "texts by name"):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=says):
            IMGEDIT.with_prompts(file)


# ImgEdit


def test_imgedit_by_hand():
    answer = "Reasoning: it is blue now\nCompliance: 4\nQuality: **4.5**\nPreservation: 2/5"
    assert score(IMGEDIT, case("adjust"), {"edit": answer}) == {"score": 3.5, "compliance": 4, "quality": 4.5, "preservation": 2}


def test_imgedit_as_the_makers_count():
    texts = {
        "1": ("adjust", "Brief reasoning: none\nPrompt Compliance: 1\nVisual Seamlessness: 4\nPhysical & Detail Fidelity: 4"),  # 3
        "2": ("adjust", "Prompt Compliance: 4\nVisual Seamlessness: 4.5\nPhysical & Detail Fidelity: **4**"),  # 4 of one
        "3": ("adjust", "Prompt Compliance: 5/5\nVisual Seamlessness: 4/5\nPhysical & Detail Fidelity: 4/5"),  # dropped
        "4": ("style", "Style Fidelity: 2\nContent Preservation: 2\nRendering Quality: 1"),  # 1.67
        "5": ("style", ""),
    }
    recorded = [RecordedAnswers(case(kind, name), {"edit": (text,)}) for name, (kind, text) in texts.items()]
    found = IMGEDIT.official(recorded, 0)
    assert found.categories == {"adjust": {"score": 3.5}, "style": {"score": 1.67}}
    assert found.overall == {"score": pytest.approx((3.5 + 1.67) / 2)}
    assert "2 of 5 cases" in found.notes[-1]


# GEdit-Bench


def test_gedit_by_hand():
    answers = {"SC": '{"reasoning": "done", "score": [8, 6]}', "PQ": 'Sure:\n```json\n{"reasoning": "", "score": [9, 7]}\n```'}
    assert score(GEDIT, case("tone_transfer"), answers) == {"O": pytest.approx(math.sqrt(42)), "SC": 6, "PQ": 7}
    with pytest.raises(AnswerError):
        score(GEDIT, case("tone_transfer"), answers | {"PQ": "7"})
    sc, pq = GEDIT.questions(case("tone_transfer"), RESULT)
    assert (sc.pictures, pq.pictures) == ((SOURCE, RESULT), (RESULT,))


def test_gedit_as_the_makers_count():
    answers = {
        "json": ('{"reasoning": "x", "score": [8, 6]}', '{"score": 7}'),  # 6, 7
        "bare": ("[8, 6]", "9"),  # 6, 9
        "mended": ("{reasoning: fine, score: 5}", '||V^=^V||{"score": [4, 3]}||V^=^V||'),  # 5, 3: VIEScore puts quotes right
        "beyond": ('{"score": [80, 12.5]}', "[1,1]"),  # 12.5, 1: no scale is checked
        "prose": ("It is well done.", '{"score": [9, 9]}'),  # guessed, 9
        "endless": ('{"score": ', "[9, 9]"),  # guessed: no closing brace
        "broken": ('{"score": [9, }', "[9, 9]"),  # left out
    }
    recorded = [
        RecordedAnswers(case("a" if i < 4 else "b", name), {"SC": (sc,), "PQ": (pq,)}) for i, (name, (sc, pq)) in enumerate(answers.items())
    ]
    found = GEDIT.official(recorded, 3)
    guess = {name: random.Random(f"3 {name} SC").randint(0, 10) for name in ("prose", "endless")}
    rows = {"a": [(6, 7), (6, 9), (5, 3), (12.5, 1)], "b": [(guess["prose"], 9), (guess["endless"], 9)]}
    for category, pairs in rows.items():
        assert found.categories[category] == {
            "O": pytest.approx(sum(math.sqrt(sc * pq) for sc, pq in pairs) / len(pairs)),
            "SC": pytest.approx(sum(sc for sc, _ in pairs) / len(pairs)),
            "PQ": pytest.approx(sum(pq for _, pq in pairs) / len(pairs)),
        }
    assert found.overall["PQ"] == pytest.approx((5 + 9) / 2), "the mean of the types' means"
    assert "2 of 14 answers" in found.notes[1]
    assert "seed 3" in found.notes[1]
    assert "1 of 7 cases" in found.notes[2]
    assert GEDIT.official(list(reversed(recorded)), 3).categories["b"]["SC"] == found.categories["b"]["SC"], "whatever the order"
    assert {GEDIT.official(recorded, seed).overall["SC"] for seed in range(4)} != {found.overall["SC"]}


def test_viescore_reads_the_second_answer():
    recorded = [RecordedAnswers(case("a"), {"SC": ("prose", "[4, 4]", "[9, 9]"), "PQ": ("prose", "prose", "[9, 9]")})]
    found = GEDIT.official(recorded, 0)
    assert found.overall["SC"] == 4
    assert found.overall["PQ"] == random.Random("0 1 PQ").randint(0, 10), "it asks twice, and guesses then"


# RISEBench


def final(score: object) -> str:
    return f"The apple is rotten, 2 days too early.\n**Final Score:** **{score}**"


def test_rise_by_hand():
    answers = {"consistency": final(4), "reasoning": final(5), "plausibility": final("3/5")}
    found = score(RISE, case("temporal_reasoning", reference="A rotten apple."), answers)
    assert found == {
        "accuracy": 0, "score": pytest.approx(0.3 * 4 + 0.5 * 5 + 0.2 * 3), "consistency": 75, "reasoning": 100, "plausibility": 50,
    }  # fmt: skip
    right = score(RISE, case("causal_reasoning", reference="x"), dict.fromkeys(answers, final(5)))
    assert (right["accuracy"], right["score"]) == (100, 5)
    wrong = score(RISE, case("causal_reasoning", reference="x"), answers | {"reasoning": final(1)})
    assert wrong["score"] == pytest.approx((0.3 * 4 + 0.5 * 1 + 0.2 * 3) / 2), "halved"
    free = case("spatial_reasoning", reference="x", consistency_free=True)
    del answers["consistency"]
    assert score(RISE, free, answers)["score"] == pytest.approx(0.8 * 5 + 0.2 * 3)


def test_rise_puzzles():
    puzzle = case("logical_reasoning", reference_txt="4")
    assert score(RISE, puzzle, {"consistency": final(1), "reasoning": final(1)}) == {
        "accuracy": 100, "score": 5, "consistency": 100, "reasoning": 100,
    }  # fmt: skip
    found = score(RISE, puzzle, {"consistency": final(1), "reasoning": final(0)})
    assert found == {"accuracy": 0, "score": pytest.approx((0.3 * 5 + 0.7) / 2), "consistency": 100, "reasoning": 0}


def test_which_pictures_a_question_of_rise_has():
    def seen(one: Case) -> dict[str, tuple[Path, ...]]:
        return {question.prompt: question.pictures for question in RISE.questions(one, RESULT)}

    assert seen(case("temporal_reasoning", reference="x", target=TARGET, reasoning_img=float("nan"))) == {
        "consistency": (SOURCE, RESULT), "reasoning": (RESULT,), "plausibility": (RESULT,),
    }  # fmt: skip
    assert seen(case("spatial_reasoning", reference="x", reasoning_img=1))["reasoning_with_source"] == (SOURCE, RESULT)
    by_picture = seen(case("spatial_reasoning", target=TARGET))
    assert (by_picture["reasoning_by_picture"], by_picture["consistency"]) == ((TARGET, RESULT), (TARGET, RESULT))
    assert seen(case("logical_reasoning", target=TARGET)) == dict.fromkeys(("logic_consistency", "logic_picture"), (TARGET, RESULT))
    assert seen(case("logical_reasoning", reference_txt="4")) == {"logic_consistency": (SOURCE, RESULT), "logic_text": (RESULT,)}


def test_rise_as_the_makers_count():
    full = {"consistency": (final(5),), "reasoning": (final(5),), "plausibility": (final(5),)}
    recorded = [
        RecordedAnswers(case("causal_reasoning", "1"), full),
        RecordedAnswers(case("causal_reasoning", "2"), full | {"reasoning": (final("4.5"),)}),  # 4
        RecordedAnswers(case("causal_reasoning", "3"), full | {"reasoning": ("It is right.",)}),  # failed: not accurate
        RecordedAnswers(case("logical_reasoning", "4"), {"consistency": (final(1),), "reasoning": (final(0),)}),
    ]
    found = RISE.official(recorded, 0)
    assert found.overall["accuracy"] == 25
    assert found.categories["causal_reasoning"]["accuracy"] == pytest.approx(100 / 3)
    assert found.categories["causal_reasoning"]["score"] == pytest.approx((5 + 0.3 * 5 + 0.5 * 4 + 0.2 * 5) / 2), "without the failed one"
    assert found.categories["logical_reasoning"]["score"] == pytest.approx((0.3 * 5 + 0.7) / 2)
    assert "1 of 4 cases failed" in found.notes[1]
    free = RecordedAnswers(
        case("spatial_reasoning", "5", consistency_free=True), {name: full[name] for name in ("reasoning", "plausibility")}
    )
    poor = RecordedAnswers(case("causal_reasoning", "6"), full | {"consistency": (final(1),)})
    found = RISE.official([poor, free], 0)
    assert found.overall == {"accuracy": 0, "score": 5, "consistency": 0, "reasoning": 100, "plausibility": 100}, (
        "consistency has no weight"
    )
    assert any("can never be accurate" in note and note.startswith("1 ") for note in found.notes)
