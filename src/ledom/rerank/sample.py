"""Samples candidates from a forward model: from problems to candidates.jsonl.

All of a problem's candidates are drawn at once, or in rounds until its vote is decided. The rounds
draw the same candidates, but not the last of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.records import (
    CONFIDENCE,
    EARLY_STOP,
    NUM_TOKENS,
    SELF_CERTAINTY,
    Candidate,
    Key,
    Problem,
)
from ledom.core.stage import even_groups
from ledom.lm.language_model import Generation, LanguageModel, Sampling
from ledom.rerank.strategies import is_decided
from ledom.text.answers import extract_answer
from ledom.text.math.equality import AnswerClasses

__all__ = [
    "check_prompts",
    "is_finished",
    "rounds",
    "sample_candidates",
    "sample_until_decided",
    "sampling_groups",
]

ItemT = TypeVar("ItemT")

_WARM_UP = 4  # one in this many samples is completed before any is broken off
_TOGETHER = 512  # texts that are drawn together, and lost together if the run is stopped


def sampling_groups(items: Sequence[ItemT], num_samples: int) -> list[Sequence[ItemT]]:
    """The groups of problems or prompts whose texts are drawn together.

    They depend only on the number of items and samples, so a resumed run has the same groups.

    >>> [len(group) for group in sampling_groups(range(100), num_samples=8)]
    [50, 50]
    """
    return even_groups(items, max(1, _TOGETHER // num_samples))


def check_prompts(problems: Sequence[Problem], lm: LanguageModel, sampling: Sampling) -> None:
    """Raise the errors that sampling for these problems would raise, before any work.

    These are `DirectionError` for a reverse model, and `InputError` for temperature 0, or for
    questions that leave no room for a solution.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(context=8)
    >>> check_prompts([Problem(id="p", question="2 + 2?")], lm, Sampling())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: 1 of 1 problems cannot be sampled for, the first is 'p': ...
    """
    _require_forward(lm)
    if sampling.temperature == 0:
        raise InputError(
            "the temperature is 0, so all candidates of a problem would have the same text; give "
            "one above 0 (the greedy solution is always written too)"
        )
    too_long: list[tuple[Problem, InputError]] = []
    for problem, prompt in zip(problems, _prompts(problems, lm), strict=True):
        try:
            lm.prompt_ids(prompt, sampling.max_tokens)
        except InputError as error:
            too_long.append((problem, error))
    if too_long:
        problem, reason = too_long[0]
        raise InputError(
            f"{len(too_long)} of {len(problems)} problems cannot be sampled for, the first is "
            f"{problem.id!r}: {reason}, or remove these problems"
        )


def sample_candidates(
    problems: Sequence[Problem],
    lm: LanguageModel,
    sampling: Sampling,
    num_samples: int,
    stop_unsure: float = 0.0,
) -> Iterator[list[Candidate]]:
    """Yield each problem's candidates once they are ready: `num_samples` samples and a greedy one.

    The greedy candidate comes last, with the index `num_samples` and `greedy`: true. Raises
    `DirectionError` for a reverse model, which writes questions, not answers.

    With `stop_unsure`, the first quarter of the samples is completed. The threshold is the lowest
    confidence that this share of them reaches. Each later sample is broken off where its confidence
    falls below the threshold (DeepConf's online stop).

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> drawn = sample_candidates([Problem(id="p", question="2 + 2?")], lm, Sampling(), 2)
    >>> [(candidate.index, candidate.greedy) for own in drawn for candidate in own]
    [(0, False), (1, False), (2, True)]
    """
    _require_forward(lm)
    greedy = sampling.greedy
    for together in sampling_groups(problems, num_samples):
        prompts = _prompts(together, lm)
        if stop_unsure:
            written = _stopped_samples(prompts, lm, sampling, num_samples, stop_unsure)
        else:
            written = lm.generate_with_greedy(prompts, sampling, num_samples)
        for place, texts in written:
            problem_id = together[place].id
            yield [
                _candidate(problem_id, index, text, lm, sampling if index < num_samples else greedy)
                for index, text in enumerate(texts)
            ]


def _stopped_samples(
    prompts: Sequence[str], lm: LanguageModel, sampling: Sampling, num_samples: int, share: float
) -> Iterator[tuple[int, list[Generation]]]:
    """Each prompt's samples, the later ones broken off where unsure, and last its greedy text."""
    assert sampling.confidence is not None
    first = max(1, num_samples // _WARM_UP)
    written = dict(lm.generate_with_greedy(prompts, sampling, first))
    least = tuple(_threshold(written[place][:-1], share) for place in range(len(prompts)))
    strict = replace(sampling, confidence=replace(sampling.confidence, least=least))
    rest = num_samples - first
    later = lm.generate(prompts, strict, rest, first_sample=first) if rest else ()
    for place, texts in later or ((place, []) for place in written):
        *drawn, greedy = written[place]
        yield place, [*drawn, *texts, greedy]


def _threshold(texts: Sequence[Generation], share: float) -> float:
    """The lowest confidence that this share of the texts reaches."""
    lowest = [text.confidence.lowest for text in texts if text.confidence is not None]
    return float(np.quantile(lowest, 1 - share, method="lower"))


def rounds(num_samples: int) -> list[int]:
    """The total number of candidates after each round of sampling; the last is `num_samples`.

    Half of the candidates or fewer cannot decide a vote, so the first round draws more than half.
    Each later one draws an eighth: rounds of single samples would leave a batch almost empty.

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
    comes first. The others are the first of those that `sample_candidates` draws; their `sampling`
    records the planned number (`early_stop_of`). To resume, `have` holds the candidates that were
    yielded before, by the problem's key. Raises `DirectionError` as `sample_candidates` does.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(answers=["#### 4"])
    >>> drawn = sample_until_decided([Problem(id="p", question="2 + 2?")], lm, Sampling(), 8, {})
    >>> [([c.index for c in some], last) for some, last in drawn]  # the greedy one, then 5 of 8
    [([8], False), ([0, 1, 2, 3, 4], True)]
    """
    _require_forward(lm)
    for together in sampling_groups(problems, num_samples):
        votes = {problem.id: _Votes(have.get(problem.key, ())) for problem in together}
        waiting = [problem for problem in together if not votes[problem.id].has_greedy]
        for place, texts in lm.generate(_prompts(waiting, lm), sampling.greedy):
            problem_id = waiting[place].id
            yield [_candidate(problem_id, num_samples, texts[0], lm, sampling.greedy)], False
        for before, total in pairwise([0, *rounds(num_samples)]):
            waiting = [
                problem for problem in together if votes[problem.id].waits(before, num_samples)
            ]
            for place, texts in lm.generate(
                _prompts(waiting, lm), sampling, total - before, first_sample=before
            ):
                problem_id = waiting[place].id
                drawn = [
                    _candidate(problem_id, index, text, lm, sampling, num_samples)
                    for index, text in enumerate(texts, start=before)
                ]
                votes[problem_id].count(drawn)
                yield drawn, votes[problem_id].are_enough(num_samples)


def is_finished(candidates: Iterable[Candidate], num_samples: int) -> bool:
    """Whether these are all candidates that `sample_until_decided` draws for their problem.

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


def _require_forward(lm: LanguageModel) -> None:
    Direction.FORWARD.require(lm.direction, lm.name, "to sample solutions")


def _prompts(problems: Sequence[Problem], lm: LanguageModel) -> list[str]:
    return [lm.pair_format.before_solution(problem.question) for problem in problems]


def _candidate(
    problem_id: str,
    index: int,
    text: Generation,
    lm: LanguageModel,
    sampling: Sampling,
    early_stop_of: int | None = None,
) -> Candidate:
    planned = {} if early_stop_of is None else {EARLY_STOP: early_stop_of}
    candidate = Candidate(
        problem_id=problem_id,
        index=index,
        text=lm.pair_format.written_solution(text.text),
        model=lm.name,
        finish_reason="length" if text.finish_reason == "pattern" else text.finish_reason,
        greedy=sampling.temperature == 0,
        sampling=asdict(sampling) | planned,
    )
    candidate.extra[NUM_TOKENS] = len(text.ids) + (text.finish_reason == "stop")
    if text.self_certainty is not None:
        candidate.extra[SELF_CERTAINTY] = round(text.self_certainty, 5)
    if (found := text.confidence) is not None:
        values = (found.mean, found.tail, found.lowest)
        candidate.extra |= {k: round(v, 5) for k, v in zip(CONFIDENCE, values, strict=True)}
    return candidate
