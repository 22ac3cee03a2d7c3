"""Editing in rounds: what a judge does not take for done is painted again, and the result that it likes best counts."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from dim_jax.batching import batches
from dim_jax.designer.local import LocalDesigner


class Round(NamedTuple):
    """The state after a round.

    Attributes:
        painted: the pairs that it painted.
        scores: the judge's of these results; above 0: done.
        best: of every pair, the round whose result has the best score so far.
        best_scores: these scores.
    """

    painted: Int[np.ndarray, " some"]
    scores: Float[np.ndarray, " some"]
    best: Int[np.ndarray, " pairs"]
    best_scores: Float[np.ndarray, " pairs"]


def edit_in_rounds(pairs: int, rounds: int, attempt: Callable[[int, list[int]], Float[np.ndarray, " some"]]) -> list[Round]:
    """Up to `rounds` attempts at each pair, until one has a score above 0; the states after each round.

    `attempt` paints some pairs in a round, both by their numbers from 0 on, and returns the scores of the results.
    """
    best, best_scores, states = np.zeros(pairs, int), np.full(pairs, -np.inf), list[Round]()
    for number in range(rounds):
        painted = np.flatnonzero(best_scores <= 0)
        scores = attempt(number, painted.tolist()) if len(painted) else np.zeros(0)
        best[painted] = np.where(scores > best_scores[painted], number, best[painted])
        best_scores[painted] = np.maximum(best_scores[painted], scores)
        states.append(Round(painted, scores, best.copy(), best_scores.copy()))
    return states


def judge_in_batches(
    judge: LocalDesigner, results: list[tuple[Image.Image, Image.Image, str]], batch_size: int
) -> Float[np.ndarray, " results"]:
    """`LocalDesigner.judge` of sources, results and instructions, so many at a time; raises the same."""
    scores = [
        judge.judge(*zip(*batch.fill(results), strict=True))[: len(batch.indices)] for batch in batches([None] * len(results), batch_size)
    ]
    return np.concatenate(scores)


def scores_by_pair(states: list[Round]) -> list[list[float]]:
    """The scores of each pair's results, round by round."""
    scores: list[list[float]] = [[] for _ in states[0].best]
    for state in states:
        for i, score in zip(state.painted.tolist(), state.scores.tolist(), strict=True):
            scores[i].append(score)
    return scores
