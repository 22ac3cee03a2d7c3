"""What is read in a designer's opinion of a result."""

import json

import pytest

from dim_jax.evals import designs
from tests.test_evals_run import opinion


def test_reading_a_designers_opinion():
    found = designs.parse(f"<think>hm</think>Here:\n```json\n{opinion(7.5)}\n```")
    assert (found.done, found.score, found.instruction) == (False, 7.5, "Try again.")
    assert designs.parse(designs.REFLECTION.parse(opinion(7.5))) == found, "what is kept reads the same again"
    for text, says in (
        ("Very good!", "no JSON object"),
        ('{"done": tru}', "is not a JSON"), (opinion(11), '"score" is 11'), (opinion(-1), '"score" is -1'),
        (json.dumps({"done": "yes", "score": 3}), '"done" is'), (json.dumps({"done": False, "score": True}), '"score" is True'),
        (json.dumps({"done": False, "score": 3, "instruction": " "}), "says nothing"),
    ):  # fmt: skip
        with pytest.raises(designs.AnswerError, match=says):
            designs.parse(text)
