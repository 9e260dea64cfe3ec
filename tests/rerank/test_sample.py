"""Candidates: all at once, or by rounds until a problem's vote is decided."""

from __future__ import annotations

from collections import Counter

import pytest

from ledom.core.direction import Direction
from ledom.core.errors import DirectionError
from ledom.core.records import Candidate, Key, Problem
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.lm.language_model import Sampling
from ledom.rerank.sample import is_finished, sample_candidates, sample_until_decided
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

PROBLEMS = [Problem(id=f"p{i}", question=f"What is {i} + 1?") for i in range(40)]
SAMPLING = Sampling(temperature=0.7, seed=1)
N = 16


@pytest.fixture
def lm(tokenizer: Tokenizer) -> FakeLanguageModel:
    """Answers 1 six times out of ten."""
    return FakeLanguageModel(tokenizer, answers=[f"#### {n}" for n in (1, 1, 1, 1, 1, 1, 2, 3, 4)])


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


def test_what_is_drawn_early_is_the_beginning_of_all(lm: FakeLanguageModel) -> None:
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
def test_sampling_goes_on_from_what_is_there(lm: FakeLanguageModel) -> None:
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


def test_the_last_candidates_of_a_problem_are_said(lm: FakeLanguageModel) -> None:
    ended = []
    drawn: dict[str, list[Candidate]] = {problem.id: [] for problem in PROBLEMS}
    for chunk, is_last in sample_until_decided(PROBLEMS, lm, SAMPLING, N, {}):
        drawn[chunk[0].problem_id] += chunk
        assert is_finished(drawn[chunk[0].problem_id], N) is is_last
        ended += [chunk[0].problem_id] * is_last
    assert sorted(ended) == sorted(drawn)


def test_a_reverse_model_writes_no_answers(tokenizer: Tokenizer) -> None:
    reverse = FakeLanguageModel(tokenizer, Direction.REVERSE)
    with pytest.raises(DirectionError, match="give a forward one to sample solutions"):
        next(sample_until_decided(PROBLEMS, reverse, SAMPLING, N, {}))
    with pytest.raises(DirectionError, match="give a forward one to sample solutions"):
        next(sample_candidates(PROBLEMS, reverse, SAMPLING, N))


@pytest.mark.parametrize("early", [False, True])
def test_the_formats_ending_is_no_part_of_an_answer(tokenizer: Tokenizer, early: bool) -> None:
    """A model trained on `...</a>` writes it; it would be scored twice, and read as the answer."""
    lm = FakeLanguageModel(tokenizer, answers=["1 + 1 = 2\n#### 2</a>"])
    lm.pair_format = PairFormat("<q>{question}</q>\n<a>{solution}</a>")
    drawn = (
        [own for own, _ in sample_until_decided(PROBLEMS[:1], lm, SAMPLING, 2, {})]
        if early
        else [*sample_candidates(PROBLEMS[:1], lm, SAMPLING, 2)]
    )
    assert {c.text for own in drawn for c in own} == {"1 + 1 = 2\n#### 2"}
