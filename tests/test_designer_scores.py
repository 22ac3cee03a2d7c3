"""Scores in answers: how they may be written, and that whatever has none fails with a reason."""

import pytest

from dim_jax.designer.scores import Scale, read_scores
from dim_jax.designer.task import AnswerError

FIVE, TEN, YES_OR_NO = Scale(1, 5), Scale(0, 10), Scale(0, 1, is_integer=True)
LINES = "Reasoning: 2 of 3 cats, so: fair.\nCompliance: {}\nQuality: {}\nPreservation: {}"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 4), ("4.", 4), (" 4\n", 4), ("4.5", 4.5), ("4/5", 4), ("4 / 5", 4), ("4 out of 5", 4), ("**4**", 4), ("**4/5**", 4),
        ("- 4", 4), ("Score: 4", 4), ("score = 4", 4), ("**Score:** 4", 4), ("**Score: 4**", 4), ("Score: **4/5**", 4),
        ("Score: 4 (good)", 4), ("Score: 4 - good", 4), ("The score is 4.", 4), ("I give it a rating of 4.5, since it is done.", 4.5),
        ("评分：4", 4), ("Оценка: 4", 4), ("Score: 4\nScore: 4", 4), ("[4]", 4), ('{"score": 4}', 4), ('{"score": "4/5"}', 4),
        ('{"score": [4]}', 4), ('Well. {"reasoning": "a [b] {c}", "score": 4} I hope this helps.', 4), ("```\n4\n```", 4),
        ('```json\n{"score": 4}\n```\nDone.', 4), ("<think>It is a 2 or a 3.</think>4", 4),
        ("Consistency: 3, I think.\n\n**Final Score:** **4**", 4), ("Final score: 4\nThe scene: kept", 4),
        ("Score: 4.", 4), ("Final score: 4 out of 5.", 4), ("Score: 4/5 stars", 4), ("4 points", 4), ("Score: [4]", 4),
        ("{'reasoning': \"it's fine\", 'score': [4]} Done.", 4),
    ],
)  # fmt: skip
def test_one_score(text, score):
    assert read_scores(text, 1, FIVE) == (score,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"), ("  \n", "empty"), ("The edit is well done, and the cat is grey.", "no score"), ("I see 3 cats.", "no score"),
        ("Three cats: 3 of them grey", "no score"), ("Score: 4 cats", "no score"), ("Score: four", "no score"),
        ("画得很好，猫是灰色的。", "no score"), ("Очень хорошо, 4 кота.", "no score"), ("I'm sorry, I can't assist with that.", "refused"),
        ("As an AI, I cannot judge people.", "refused"), ("[4, 5]", "2 scores where 1"), ("4, 5", "2 scores where 1"),
        ("Score: 4, 5", "2 scores where 1"), ("6", "not on the scale"), ("0", "not on the scale"), ("-1", "not on the scale"),
        ("Score: 100", "not on the scale"), ("8/10", "out of 10"), ('{"score": 6}', "not on the scale"), ('{"score": NaN}', "not on the"),
        ('{"score": true}', "damaged or has no scores"), ('{"score": null}', "damaged or has no scores"), ('{"score": ', "damaged"),
        ('{"reasoning": "the cat', "damaged"), ("[4", "damaged"), ("Score: 4\nScore: 5", "two scores"), ("4 5", "no score"),
        ('{"score": 4} or {"score": 5}', "different scores"), ("<think>4", "within the model's thoughts"), ("Score:", "no score"),
        ("Score: 4.x", "no score"), ("{'a': 4, 'b': __import__('os')}", "no score"),
    ],
)  # fmt: skip
def test_no_score(text, says):
    with pytest.raises(AnswerError, match=says):
        read_scores(text, 1, FIVE)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        (LINES.format(4, 5, 3), (4, 5, 3)), (LINES.format("4/5", "**4**", 4.5), (4, 4, 4.5)), ("[4, 4, 5]", (4, 4, 5)),
        ("4\n4\n5", (4, 4, 5)), ("1. 4\n2. 4\n3. 5", (4, 4, 5)), ("Scores: 4, 4, 5", (4, 4, 5)), ("4, 4, 5", (4, 4, 5)),
        ('{"compliance": 4, "quality": 3, "preservation": 5, "reasoning": "3 cats"}', (4, 3, 5)),
        ('{"scores": {"a": 4, "b": 3, "c": 5}}', (4, 3, 5)), ('{"a": {"score": 4, "reason": "x"}, "b": {"score": 4}, "c": 5}', (4, 4, 5)),
        ("Brief reasoning: none\nPrompt Compliance: 4\nVisual Naturalness: 3\nPhysical & Detail Integrity: 2", (4, 3, 2)),
        ("**Compliance: 4**, done\n**Quality: 3**; fair\n**Preservation: 2**", (4, 3, 2)),
    ],
)  # fmt: skip
def test_three_scores(text, scores):
    assert read_scores(text, 3, FIVE) == scores


@pytest.mark.parametrize(
    "text",
    [
        "4", "[4, 4]", "[4, 4, 4, 4]", '{"score": [4, 4', '{"score": [4, 4, "good"]}', "Compliance: 4\nQuality: 5", "Compliance: 4\nQual",
        LINES.format(4, 4, 6), LINES.format(4, 4, "good"), LINES.format(4, 4, 4) + "\nOverall harmony: 4", "4\n4",
        "The box [3, 4, 5] moved.",
    ],
)  # fmt: skip
def test_too_few_too_many_and_off_the_scale(text):
    with pytest.raises(AnswerError):
        read_scores(text, 3, FIVE)


def test_other_scales():
    assert read_scores('{"reasoning": "ok", "score": [0, 10]}', 2, TEN) == (0, 10)
    assert read_scores('||V^=^V||\n{"score": [8, 9]}\n||V^=^V||', 2, TEN) == (8, 9)
    assert read_scores("It is right.\n**Final Score**: **1,0**", 2, YES_OR_NO) == (1, 0)
    for text in ("Final Score: 0.5", "Final Score: 2", "Final Score: yes"):
        with pytest.raises(AnswerError):
            read_scores(text, 1, YES_OR_NO)


def test_no_answer_takes_long():
    for text in ("[" * 20_000, "{" * 20_000, "a: " * 20_000, "*" * 20_000 + "4x", "4, " * 20_000, '{"a":' * 5_000):
        with pytest.raises(AnswerError):
            read_scores(text, 1, FIVE)
