"""Candidates from a forward model: the arrow from problems to candidates.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from ledom.direction import Direction
from ledom.errors import DirectionError
from ledom.lm.base import Generation, LanguageModel, Sampling
from ledom.records import Candidate, Problem

__all__ = ["sample_candidates"]

_TOGETHER = 128  # problems whose greedy answers are made, and can be lost, before any is yielded


def sample_candidates(
    problems: Sequence[Problem], lm: LanguageModel, sampling: Sampling, num_samples: int
) -> Iterator[list[Candidate]]:
    """Yield each problem's candidates as they are ready: `num_samples` drawn, then the greedy one.

    The greedy candidate has the index `num_samples` and `greedy`: true. Raises `DirectionError`
    for a reverse model, which writes questions, not answers.
    """
    if lm.direction is not Direction.FORWARD:
        raise DirectionError(f"{lm.name}: solutions are sampled from a forward model")
    greedy_sampling = replace(sampling, temperature=0.0, top_k=0, top_p=1.0)
    for first in range(0, len(problems), _TOGETHER):
        together = problems[first : first + _TOGETHER]
        prompts = [lm.pair_format.before_solution(problem.question) for problem in together]
        greedy = {place: texts[0] for place, texts in lm.generate(prompts, greedy_sampling)}
        for place, texts in lm.generate(prompts, sampling, num_samples):
            problem_id = together[place].id
            drawn = [(index, text, sampling) for index, text in enumerate(texts)]
            yield [
                _candidate(problem_id, index, text, lm, how)
                for index, text, how in [*drawn, (num_samples, greedy[place], greedy_sampling)]
            ]


def _candidate(
    problem_id: str, index: int, text: Generation, lm: LanguageModel, sampling: Sampling
) -> Candidate:
    return Candidate(
        problem_id=problem_id,
        index=index,
        text=text.text,
        model=lm.name,
        finish_reason="stop" if text.finish_reason == "stop" else "length",
        greedy=sampling.temperature == 0,
        sampling=asdict(sampling),
    )
