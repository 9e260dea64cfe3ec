"""Majority voting that stops as soon as the winner is certain.

Candidates are looked at in the order in which they were drawn. The vote is decided when the first
answer's lead over the second is larger than the number of candidates still to come: nothing that
they say can change the winner, nor tie it, so the answer is always that of the full vote. No labels
are read.

Only the plain vote stops: how much a later candidate may weigh has no useful bound. (A ballot
exp(score) of a log-probability is at most 1, many orders of magnitude above those seen.)
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ledom.rerank.candidate_table import CandidateTable

__all__ = ["is_decided", "needed_candidates", "rounds"]


def is_decided(votes: Iterable[int], remaining: int) -> bool:
    """Whether `remaining` more votes, whoever gets them, leave the same single winner.

    `votes` are those of each answer so far.

    >>> is_decided([5, 2], remaining=2), is_decided([5, 2], remaining=3)
    (True, False)
    """
    first, second = [*heapq.nlargest(2, votes), 0, 0][:2]
    return first - second > remaining


def needed_candidates(table: CandidateTable) -> NDArray[np.int64]:
    """[P]: how many of its candidates, in order, decide each problem's vote; all if none do.

    >>> from ledom.core.records import Candidate, Problem
    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> texts = ["4", "4", "4", "5", "4"]
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate(texts)]
    >>> table = build_candidate_table([Problem(id="p", question="?", answer="4")], drawn, [])
    >>> needed_candidates(table)  # 3 of 5 are a majority
    array([3])
    """
    return np.array(
        [
            _needed(answers[mask], table.num_planned)
            for answers, mask in zip(table.answers, table.mask, strict=True)
        ],
        np.int64,
    )


def _needed(answers: NDArray[np.int64], planned: int) -> int:
    votes: Counter[int] = Counter()
    for drawn, answer in enumerate(answers.tolist(), start=1):
        if answer >= 0:
            votes[answer] += 1
        if is_decided(votes.values(), max(planned, len(answers)) - drawn):
            return drawn
    return len(answers)


def rounds(num_samples: int) -> list[int]:
    """The number of candidates after each round of sampling; the last number is all.

    No vote can be decided by half of the candidates or fewer, so more than half come first;
    then an eighth at a time: rounds of single samples would leave a batch empty.

    >>> rounds(16)
    [9, 11, 13, 15, 16]
    """
    step = max(1, num_samples // 8)
    return [*range(num_samples // 2 + 1, num_samples, step), num_samples]
