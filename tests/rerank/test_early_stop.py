"""Votes that stop early: always the full vote's winner, as early as it can be known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ledom.core.records import Candidate, Key, Problem
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.rerank.candidate_table import CandidateTable
from ledom.rerank.sample import is_finished, rounds, sample_candidates, sample_until_decided
from ledom.rerank.strategies import STRATEGIES, is_decided, needed_candidates
from ledom.text.tokenizer import Tokenizer
from made import made_table

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?") for i in range(40)]
SAMPLING = Sampling(temperature=0.7, seed=1)
N = 16


@pytest.fixture
def lm(tokenizer: Tokenizer) -> FakeLanguageModel:
    """A model that answers 1 six times out of ten."""
    return FakeLanguageModel(tokenizer, answers=[f"#### {n}" for n in (1, 1, 1, 1, 1, 1, 2, 3, 4)])


def table(answers: list[list[int]], correct: int = 0) -> CandidateTable:
    """Problems whose candidates have these answers; -1 is no answer, -2 no candidate."""
    numbers = np.array(answers)
    answered = np.maximum(numbers, -1)
    return made_table(numbers == correct, {}, answers=answered, mask=numbers > -2)


@pytest.mark.parametrize(
    ("votes", "remaining", "decided"),
    [
        ([], 3, False),
        ([3], 3, False),  # an unseen answer may still tie
        ([3], 2, True),
        ([5, 3, 1], 2, False),  # a tie is not the same answer
        ([5, 2, 2], 2, True),
        ([1, 2, 5], 2, True),  # in any order
        ([4, 4], 0, False),
    ],
)
def test_when_a_vote_is_decided(votes: list[int], remaining: int, decided: bool) -> None:
    assert is_decided(votes, remaining) is decided


def test_the_number_needed_equals_that_by_hand() -> None:
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
    # Of nine planned, the five present decide only if the rest cannot change the winner.
    assert needed_candidates(replace(made, num_planned=9)).tolist() == [5, 5, 5, 5, 3]


@pytest.mark.slow
def test_the_winner_is_that_of_the_full_vote() -> None:
    """Random tables of every shape, with ties, unreadable answers and missing candidates."""
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
    """Check that the prefix has the full vote's winners and that a shorter one is undecided."""
    assert 1 <= needed <= len(answers)
    assert winners(answers[:needed]) == winners(answers)
    if needed > 1:
        before, remaining = answers[: needed - 1], len(answers) - needed + 1
        rivals = {*before, 99} - winners(before)  # 99: an unseen answer
        worst = [winners(before + [rival] * remaining) for rival in rivals]
        tied = len(winners(before)) != 1
        assert tied or any(after != winners(before) for after in worst)


def winners(answers: list[int]) -> set[int]:
    votes = Counter(answer for answer in answers if answer >= 0)
    return {answer for answer, count in votes.items() if count == max(votes.values())}


def test_rounds_begin_where_a_vote_can_be_decided() -> None:
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


def drawn_early(lm: FakeLanguageModel, have: dict[Key, list[Candidate]]) -> list[list[Candidate]]:
    return [chunk for chunk, _ in sample_until_decided(PROBLEMS, lm, SAMPLING, N, have)]


def by_problem(chunks: list[list[Candidate]]) -> dict[Key, list[Candidate]]:
    """Each problem's candidates by index."""
    found: dict[Key, list[Candidate]] = {problem.key: [] for problem in PROBLEMS}
    for candidate in (candidate for chunk in chunks for candidate in chunk):
        found[candidate.key[:1]].append(candidate)
    return {key: sorted(group, key=lambda c: c.index) for key, group in found.items()}


def winner(candidates: list[Candidate]) -> list[str]:
    """The most frequent texts, ties included."""
    votes = Counter(c.text for c in candidates if not c.greedy)
    return sorted(text for text, count in votes.items() if count == max(votes.values()))


@pytest.mark.slow
def test_an_early_stop_draws_a_prefix_of_all_candidates(lm: FakeLanguageModel) -> None:
    full = by_problem(list(sample_candidates(PROBLEMS, lm, SAMPLING, N)))
    early = by_problem(drawn_early(lm, {}))
    counts = set()
    for name, group in early.items():
        *drawn, greedy = group
        counts.add(len(drawn))
        assert [c.text for c in drawn] == [c.text for c in full[name][: len(drawn)]]
        assert [c.index for c in drawn] == list(range(len(drawn)))
        assert (greedy.index, greedy.greedy, greedy.text) == (N, True, full[name][-1].text)
        assert winner(group) == winner(full[name])
        assert all(c.sampling is not None and c.sampling["early_stop_of"] == N for c in drawn)
    assert counts <= {9, 11, 13, 15, 16}
    assert len(counts) > 2
    assert all("early_stop_of" not in (c.sampling or {}) for c in full["p0",])


@pytest.mark.slow
def test_sampling_resumes_from_existing_candidates(lm: FakeLanguageModel) -> None:
    chunks = drawn_early(lm, {})
    expected = by_problem(chunks)
    for cut in range(0, len(chunks), 7):
        have = by_problem(chunks[:cut])
        rest = [
            chunk
            for chunk, _ in sample_until_decided(
                [p for p in PROBLEMS if not is_finished(have[p.key], N)], lm, SAMPLING, N, have
            )
        ]
        assert len(rest) == len(chunks) - cut  # nothing twice
        assert by_problem(chunks[:cut] + rest) == expected


@pytest.mark.slow
def test_the_last_candidates_of_a_problem_are_marked(lm: FakeLanguageModel) -> None:
    ended = []
    drawn: dict[str, list[Candidate]] = {problem.id: [] for problem in PROBLEMS}
    for chunk, is_last in sample_until_decided(PROBLEMS, lm, SAMPLING, N, {}):
        drawn[chunk[0].problem_id] += chunk
        assert is_finished(drawn[chunk[0].problem_id], N) is is_last
        ended += [chunk[0].problem_id] * is_last
    assert sorted(ended) == sorted(drawn)
