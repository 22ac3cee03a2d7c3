"""The goldens notice when a tensor changes by 1 %: one of every kind in each file here, all of them in sensitivity.py."""

import random
from pathlib import Path

import pytest

from tests.parity import sensitivity

GOLDENS = Path(__file__).parents[1] / "goldens"
KINDS: dict[str, list[tuple[str, str]]] = {}
for _file, _name in sensitivity.tensors(GOLDENS):
    KINDS.setdefault(sensitivity.kind(_file, _name), []).append((_file, _name))
CHOICE = random.Random(0)
CHOSEN = [CHOICE.choice(members) for members in KINDS.values()]
# The checkpoint's parts are the models of the other files; of these tensors, which have been looked at already, a few do.
AGAIN = [chosen for chosen in CHOSEN if chosen[0] == "dim_edit.model.safetensors" and not chosen[1].startswith("projector.")]
CHOSEN = [chosen for chosen in CHOSEN if chosen not in AGAIN] + CHOICE.sample(AGAIN, 12)


@pytest.mark.parametrize("file", sorted({file for file, _ in CHOSEN}))
def test_a_change_of_one_per_cent_is_noticed(goldens, file):
    missed = [
        (name, line.name, line.ratio)
        for name in (name for other, name in CHOSEN if other == file)
        if (line := sensitivity.noticed(goldens, file, name)).ok and sensitivity.explanation(file, name) is None
    ]
    assert not missed


@pytest.mark.parametrize("pattern", sensitivity.INSENSITIVE)
def test_every_explanation_has_a_tensor(goldens, pattern):
    why = sensitivity.INSENSITIVE[pattern]
    assert any(sensitivity.explanation(file, name) == why for file, name in sensitivity.tensors(goldens))
