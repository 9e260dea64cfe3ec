"""Step scores: how likely each step of a solution is, and where the first wrong one may be.

A step is a line. A forward model says how likely it is after the steps before it, a reverse model
how likely it is given the steps that follow: log P(y) of the same pass, cut into lines (after
BiPRM, 2025, which reads steps in both directions). The step of the least likely token is where a
solution is most likely to go wrong. This is arithmetic on scores; no model is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ledom.core.records import Score

__all__ = ["Step", "least_likely_step", "split_steps", "worst_step"]

_LINE = re.compile(r"[^\n]*\S[^\n]*")


@dataclass(frozen=True)
class Step:
    """A line of a solution, with the log-probability of its tokens in nats."""

    start: int
    end: int
    logprob: float
    """The sum over its tokens."""
    least: float
    """That of its least likely token; 0 for a step without tokens of its own."""
    num_tokens: int


def split_steps(score: Score, text: str) -> list[Step]:
    """The steps of a solution `text`, from a score of `y` or `y|x`; none without token scores.

    A token belongs to the step of its last character; line ends and the document's end to none.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> [(step.logprob, step.num_tokens) for step in split_steps(score, "1+1\\n#2")]
    [(-1.0, 1), (-2.0, 1)]
    """
    if score.token_logprobs is None or score.token_spans is None:
        return []
    tokens = list(zip(score.token_spans, score.token_logprobs, strict=True))
    steps = []
    for line in _LINE.finditer(text):
        inside = [
            value
            for (start, end), value in tokens
            if end > start and line.start() < end <= line.end()
        ]
        steps.append(
            Step(*line.span(), sum(inside), min(inside, default=0.0), num_tokens=len(inside))
        )
    return steps


def least_likely_step(*readings: Sequence[Step]) -> int | None:
    """The place of the step whose least likely token is least likely; None without steps.

    Several readings of one text, forward and reverse, are averaged step by step. The first of
    equals is taken.

    >>> steps = [Step(0, 5, logprob=-3.0, least=-1.0, num_tokens=4),
    ...          Step(5, 9, logprob=-2.5, least=-2.5, num_tokens=1)]
    >>> least_likely_step(steps)
    1
    """
    values = _averages(readings)
    return min(range(len(values)), key=values.__getitem__, default=None)


def worst_step(reverse: Score, forward: Score | None, text: str) -> float:
    """What the least likely step of a solution has, in nats: a feature of the candidate.

    `reverse` is a score of `y`, `forward` of `y|x`; the latter counts where it is of the same text.
    0 where there are no token scores.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> worst_step(score, None, "1+1\\n#2")
    -2.0
    """
    readings = [split_steps(reverse, text if reverse.text is None else reverse.text)]
    if forward is not None and forward.text == reverse.text:
        readings.append(split_steps(forward, text if forward.text is None else forward.text))
    return min(_averages(readings), default=0.0)


def _averages(readings: Sequence[Sequence[Step]]) -> list[float]:
    """The least likely token of each step, averaged over readings that have any."""
    own = [reading for reading in readings if reading]
    return [sum(step.least for step in steps) / len(own) for steps in zip(*own, strict=True)]
