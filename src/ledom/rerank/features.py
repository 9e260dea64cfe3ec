"""Features: the numbers that strategies weigh, computed from a candidate's scores.

The steps of a solution are its lines. A forward model scores a step given the earlier steps, a
reverse model given the later ones. Both scores are token log-probabilities, grouped by line (after
BiPRM, 2025, which reads steps in both directions). This module only does arithmetic on scores; it
loads no model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ledom.core.errors import InputError
from ledom.core.records import CONFIDENCE, SELF_CERTAINTY, Candidate, Problem, Score

__all__ = [
    "EXTERNAL_LABELS",
    "FEATURES",
    "TOKEN_FEATURES",
    "Feature",
    "candidate_features",
    "computable",
    "split_steps",
    "worst_step",
]


@dataclass(frozen=True)
class Feature:
    """A number that strategies weigh, in nats; larger for better candidates."""

    targets: tuple[str, ...]
    """The targets of the scores that it needs."""
    label: str
    also: tuple[str, ...] = ()
    """The targets of the scores that it uses too if there are any."""


FEATURES = {
    "forward": Feature(("y|x",), "log P(y|x), forward model"),
    "forward_mean": Feature(("y|x",), "log P(y|x) per token"),
    "forward_numbers": Feature(("y|x",), "log P(y|x) over the numbers of the solution"),
    "forward_min_digit_logprob": Feature(
        ("y|x",), "log P(y|x) of the solution's least likely digit"
    ),
    "reverse": Feature(("x|y",), "log P(x|y), reverse model"),
    "reverse_mean": Feature(("x|y",), "log P(x|y) per token"),
    "question_numbers": Feature(("x|y",), "log P(x|y) over the numbers of the question"),
    "question_min_digit_logprob": Feature(
        ("x|y",), "log P(x|y) of the question's least likely digit"
    ),
    "worst_step": Feature(
        ("y",),
        "log P of the least likely token of the least likely step, both models",
        also=("y|x",),
    ),
    "contrast": Feature(
        ("x|y", "x'|y"), "log P(x|y) minus that of copies of x with a number changed"
    ),
    "overlap": Feature(("x~|y",), "log overlap of x with questions written backwards from y"),
    "prior": Feature(("y",), "log P(y), reverse model"),
    "prior_mean": Feature(("y",), "log P(y) per token, reverse model"),
    "prior_numbers": Feature(("y",), "log P(y) over the numbers of the solution, reverse model"),
    "prior_min_digit_logprob": Feature(
        ("y",), "log P(y) of the solution's least likely digit, reverse model"
    ),
}
"""Features by name; `candidate_features` computes them. External scores are features too, under
their own names."""

EXTERNAL_LABELS = {
    SELF_CERTAINTY: "self-certainty",
    **{name: f"{name.partition('_')[2]} confidence" for name in CONFIDENCE},
}
"""Labels of the external scores that sampling writes; any other's label is its field's name."""

TOKEN_FEATURES = {
    "y|x": ("forward", "forward_mean", "forward_numbers", "forward_min_digit_logprob"),
    "x|y": ("reverse", "reverse_mean", "question_numbers", "question_min_digit_logprob"),
    "y": ("prior", "prior_mean", "prior_numbers", "prior_min_digit_logprob"),
}
"""The features computed from the tokens of each target's score: their sum, their mean, the sum over
the numbers, and the least likely digit."""

_DIGIT = re.compile(r"\d")
_STEP = re.compile(r"[^\n]*\S[^\n]*")


def computable(targets: Collection[str]) -> list[str]:
    """The features that can be computed from scores of these targets.

    >>> computable({"y|x"})
    ['forward', 'forward_mean', 'forward_numbers', 'forward_min_digit_logprob']
    """
    return [name for name, feature in FEATURES.items() if {*feature.targets} <= {*targets}]


def candidate_features(
    scores: Mapping[str, Score | None], problem: Problem, candidate: Candidate
) -> dict[str, float]:
    """Compute a candidate's `FEATURES` from its scores by target.

    Raises `InputError` for a score that is None.

    >>> candidate = Candidate(problem_id="p", index=0, text="4")
    >>> score = Score(problem_id="p", index=0, model="m", direction="forward", target="y|x",
    ...               logprob=-1.5, num_tokens=2, token_logprobs=[-0.5, -1.0],
    ...               token_spans=[[0, 1], [1, 1]])  # the 4, then the document's end
    >>> found = candidate_features({"y|x": score}, Problem(id="p", question="2 + 2?"), candidate)
    >>> found["forward"], found["forward_mean"], found["forward_numbers"]
    (-1.5, -0.75, -0.5)
    """
    values: dict[str, float] = {}
    for target, score in scores.items():
        if score is None:
            raise InputError(
                f"candidate {candidate.index} of problem {problem.id!r} has no score for {target}; "
                "score the candidates again"
            )
        if target in TOKEN_FEATURES:
            text = problem.question if target == "x|y" else score.solution(candidate.text)
            tokens = score.tokens() or []
            digits = [value for value, (start, end) in tokens if _DIGIT.search(text, start, end)]
            mean = score.logprob / max(1, score.num_tokens)
            numbers = (score.logprob, mean, sum(digits), min(digits, default=0.0))
            values |= zip(TOKEN_FEATURES[target], numbers, strict=True)
    given, changed = scores.get("x|y"), scores.get("x'|y")
    if given and changed:
        values["contrast"] = given.logprob - changed.logprob
    if written := scores.get("x~|y"):
        values["overlap"] = written.logprob
    if prior := scores.get("y"):
        values["worst_step"] = worst_step(prior, scores.get("y|x"), candidate.text)
    return values


def split_steps(score: Score, text: str) -> list[list[float]]:
    """The log-probabilities of each step's tokens, from a score of the solution `text` (y or y|x).

    A step is a line. A token belongs to the step of its last character; line ends and the
    document-end token belong to no step. Empty without token scores.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> split_steps(score, "1+1\\n#2")
    [[-1.0], [-2.0]]
    """
    if (tokens := score.tokens()) is None:
        return []
    return [
        [
            value
            for value, (start, end) in tokens
            if end > start and line.start() < end <= line.end()
        ]
        for line in _STEP.finditer(text)
    ]


def worst_step(reverse: Score, forward: Score | None, text: str) -> float:
    """The log-probability of the least likely token of a solution's least likely step, in nats.

    `reverse` is a score of `y`, `forward` one of `y|x`. If both scored the same text, each step
    gets the mean of the two; otherwise `forward` is ignored. 0 without token scores.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> worst_step(score, None, "1+1\\n#2")
    -2.0
    """
    readings = [_least_by_step(reverse, text)]
    if forward is not None and forward.text == reverse.text:
        readings.append(_least_by_step(forward, text))
    steps = [sum(step) / len(step) for step in zip(*filter(None, readings), strict=True)]
    # An empty text has only its end token. Without that, it would beat every step.
    ends = [value for score in (reverse, forward) if score for value in score.token_logprobs or ()]
    return min(steps or ends, default=0.0)


def _least_by_step(score: Score, text: str) -> list[float]:
    return [min(step, default=0.0) for step in split_steps(score, score.solution(text))]
