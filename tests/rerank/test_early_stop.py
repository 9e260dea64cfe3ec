"""Votes that stop early: always the winner of the full vote, and no later than can be known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ledom.rerank.candidate_table import CandidateTable
from ledom.rerank.sample import rounds
from ledom.rerank.strategies import STRATEGIES, is_decided, needed_candidates


def table(answers: list[list[int]], correct: int = 0) -> CandidateTable:
    """Problems whose candidates have these answers; -1 is none, -2 no candidate."""
    numbers = np.array(answers)
    return CandidateTable(
        problem_ids=[str(i) for i in range(len(answers))],
        features={},
        answers=np.maximum(numbers, -1),
        correct=numbers == correct,
        mask=numbers > -2,
        greedy=np.full(len(answers), np.nan),
        groups=[""] * len(answers),
    )


@pytest.mark.parametrize(
    ("votes", "remaining", "decided"),
    [
        ([], 3, False),
        ([3], 3, False),  # an answer not seen yet may still tie
        ([3], 2, True),
        ([5, 3, 1], 2, False),  # a tie is not the same answer
        ([5, 2, 2], 2, True),
        ([1, 2, 5], 2, True),  # in whatever order
        ([4, 4], 0, False),
    ],
)
def test_when_a_vote_is_decided(votes: list[int], remaining: int, decided: bool) -> None:
    assert is_decided(votes, remaining) is decided


def test_needed_by_hand() -> None:
    made = table(
        [
            [0, 0, 0, 1, 1],  # 3 - 0 > 2
            [0, 1, 0, 0, 1],  # 3 - 1 > 1 after four
            [0, 1, -1, 0, -1],  # 2 - 1 > 1 fails after four: all five
            [-1, -1, -1, -1, 0],
            [0, 0, 1, -2, -2],  # three candidates: 2 - 0 > 1 after two
        ]
    )
    assert needed_candidates(made).tolist() == [3, 4, 5, 5, 2]
    # Of nine planned, the five that are there decide only where nothing is left to hope for.
    assert needed_candidates(replace(made, num_planned=9)).tolist() == [5, 5, 5, 5, 3]


def test_the_winner_is_that_of_the_full_vote() -> None:
    """On random tables of every shape, ties, unread answers and missing candidates included."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        kinds, count = int(rng.integers(1, 6)), int(rng.integers(1, 14))
        numbers = rng.integers(-1, kinds, (30, count))
        numbers[np.arange(count)[None] >= rng.integers(1, count + 1, 30)[:, None]] = -2
        made = table(numbers.tolist())
        full = STRATEGIES["majority"].accuracy(made, None)
        np.testing.assert_array_equal(STRATEGIES["majority_stopped"].accuracy(made, None), full)
        for row, needed in zip(numbers, needed_candidates(made), strict=True):
            check_needed([int(i) for i in row if i > -2], int(needed))


def check_needed(answers: list[int], needed: int) -> None:
    """The prefix has the full vote's winners, and one candidate fewer could still be overturned."""
    assert 1 <= needed <= len(answers)
    assert winners(answers[:needed]) == winners(answers)
    if needed > 1:
        before, remaining = answers[: needed - 1], len(answers) - needed + 1
        rivals = {*before, 99} - winners(before)  # 99: an answer that was not seen
        worst = [winners(before + [rival] * remaining) for rival in rivals]
        tied = len(winners(before)) != 1
        assert tied or any(after != winners(before) for after in worst)


def winners(answers: list[int]) -> set[int]:
    votes = Counter(answer for answer in answers if answer >= 0)
    return {answer for answer, count in votes.items() if count == max(votes.values())}


def test_rounds_begin_where_a_vote_can_end() -> None:
    assert rounds(32) == [17, 21, 25, 29, 32]
    assert rounds(5) == [3, 4, 5]
    assert rounds(2) == [2]
    assert rounds(1) == [1]
    for num_samples in range(1, 70):
        first, *_ = made = rounds(num_samples)
        assert made == sorted(set(made))
        assert made[-1] == num_samples
        assert is_decided([first], num_samples - first)
        assert not is_decided([first - 1], num_samples - first + 1)
