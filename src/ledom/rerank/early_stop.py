"""Samples candidates in rounds until the majority vote of a problem is decided.

The candidates are the first ones that `sample` would draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from ledom.core.direction import Direction
from ledom.core.records import Candidate, Key, Problem
from ledom.lm.language_model import LanguageModel, Sampling
from ledom.rerank.sample import as_candidate, prompts_of, sampling_groups
from ledom.rerank.strategies import is_decided
from ledom.text.answers import AnswerClasses, extract_answer

__all__ = ["is_finished", "rounds", "sample_until_decided"]


def rounds(num_samples: int) -> list[int]:
    """The total number of candidates after each round of sampling; the last is `num_samples`.

    Half of the candidates or fewer cannot decide a vote, so the first round draws more than half.
    Each later round draws an eighth, as rounds of one sample would leave a batch almost empty.

    >>> rounds(16)
    [9, 11, 13, 15, 16]
    """
    step = max(1, num_samples // 8)
    return [*range(num_samples // 2 + 1, num_samples, step), num_samples]


def sample_until_decided(
    problems: Sequence[Problem],
    lm: LanguageModel,
    sampling: Sampling,
    num_samples: int,
    have: Mapping[Key, Sequence[Candidate]],
) -> Iterator[tuple[list[Candidate], bool]]:
    """Draw each problem's candidates in rounds until its majority vote is decided.

    Yields (new candidates of a problem, whether they are its last). A problem's greedy candidate
    comes first. The rest are the first ones that `sample_candidates` would draw; their `sampling`
    records the planned number (`early_stop_of`). To resume, pass the candidates yielded before as
    `have`, by the problem's key. Raises `DirectionError` as `sample_candidates` does.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(answers=["#### 4"])
    >>> drawn = sample_until_decided([Problem(id="p", question="2 + 2?")], lm, Sampling(), 8, {})
    >>> [([c.index for c in some], last) for some, last in drawn]  # the greedy one, then 5 of 8
    [([8], False), ([0, 1, 2, 3, 4], True)]
    """
    Direction.FORWARD.require(lm.direction, lm.name, "to sample solutions")
    for together in sampling_groups(problems, num_samples):
        votes = {problem.id: _Votes(have.get(problem.key, ())) for problem in together}
        waiting = [problem for problem in together if not votes[problem.id].has_greedy]
        for place, texts in lm.generate(prompts_of(waiting, lm), sampling.greedy):
            problem_id = waiting[place].id
            yield [as_candidate(problem_id, num_samples, texts[0], lm, sampling.greedy)], False
        for before, total in pairwise([0, *rounds(num_samples)]):
            waiting = [p for p in together if votes[p.id].waits(before, num_samples)]
            for place, texts in lm.generate(
                prompts_of(waiting, lm), sampling, total - before, first_sample=before
            ):
                problem_id = waiting[place].id
                drawn = [
                    as_candidate(problem_id, index, text, lm, sampling, num_samples)
                    for index, text in enumerate(texts, start=before)
                ]
                votes[problem_id].count(drawn)
                yield drawn, votes[problem_id].are_enough(num_samples)


def is_finished(candidates: Iterable[Candidate], num_samples: int) -> bool:
    """Whether these are all the candidates that `sample_until_decided` draws for their problem.

    >>> same = [Candidate(problem_id="p", index=i, text="4") for i in range(5)]
    >>> greedy = Candidate(problem_id="p", index=8, text="4", greedy=True)
    >>> is_finished([*same, greedy], num_samples=8), is_finished(same, num_samples=8)
    (True, False)
    """
    votes = _Votes(candidates)
    return votes.has_greedy and votes.are_enough(num_samples)


class _Votes:
    """The votes for the answers to one problem so far."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self.drawn = 0
        self.has_greedy = False
        self._by_answer: Counter[int] = Counter()
        self._classes = AnswerClasses()
        self.count(candidates)

    def count(self, candidates: Iterable[Candidate]) -> None:
        """Add more candidates."""
        for candidate in candidates:
            if candidate.greedy:
                self.has_greedy = True
                continue
            self.drawn += 1
            answer = self._classes.number(extract_answer(candidate.text))
            if answer >= 0:
                self._by_answer[answer] += 1

    def are_enough(self, num_samples: int) -> bool:
        """Whether the vote is decided, or all candidates are drawn."""
        remaining = num_samples - self.drawn
        return remaining <= 0 or is_decided(self._by_answer.values(), remaining)

    def waits(self, drawn: int, num_samples: int) -> bool:
        """Whether the problem needs the round that starts after `drawn` samples."""
        return self.drawn == drawn and not self.are_enough(num_samples)
