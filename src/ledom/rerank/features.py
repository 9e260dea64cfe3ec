"""Features of a candidate: the numbers that strategies weigh, computed from its scores.

The steps of a solution are its lines. A forward model gives the likelihood of a step given the
earlier steps, a reverse model given the later ones: the token log-probabilities of the solution,
grouped by line (after BiPRM, 2025, which reads steps in both directions). This module only does
arithmetic on scores; it loads no model.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from ledom.core.errors import InputError
from ledom.core.records import CONFIDENCE, SELF_CERTAINTY, Candidate, Problem, Score

__all__ = [
    "EXTERNAL_LABELS",
    "FEATURES",
    "Step",
    "available_features",
    "candidate_features",
    "split_steps",
    "worst_step",
]

FEATURES: dict[str, tuple[str, str]] = {
    "forward": ("y|x", "log P(y|x), forward model"),
    "forward_mean": ("y|x", "log P(y|x) per token"),
    "forward_numbers": ("y|x", "log P(y|x) over the numbers of the solution"),
    "forward_min_digit_logprob": ("y|x", "log P(y|x) of the solution's least likely digit"),
    "reverse": ("x|y", "log P(x|y), reverse model"),
    "reverse_mean": ("x|y", "log P(x|y) per token"),
    "question_numbers": ("x|y", "log P(x|y) over the numbers of the question"),
    "question_min_digit_logprob": ("x|y", "log P(x|y) of the question's least likely digit"),
    "worst_step": ("y", "log P of the least likely token of the least likely step, both models"),
    "contrast": ("x'|y", "log P(x|y) minus that of copies of x with a number changed"),
    "overlap": ("x~|y", "log overlap of x with questions written backwards from y"),
    "prior": ("y", "log P(y), reverse model"),
    "prior_mean": ("y", "log P(y) per token, reverse model"),
    "prior_numbers": ("y", "log P(y) over the numbers of the solution, reverse model"),
    "prior_min_digit_logprob": (
        "y",
        "log P(y) of the solution's least likely digit, reverse model",
    ),
}
"""Features by name: (target of the score that it is computed from, label). All are in nats, and
larger for better candidates. External scores are features too, under their own names."""

EXTERNAL_LABELS = {
    SELF_CERTAINTY: "self-certainty",
    **{name: f"{name.partition('_')[2]} confidence" for name in CONFIDENCE},
}
"""Labels of the external scores that sampling writes; the label of others is the field's name."""

_PREFIXES = {"y|x": "forward", "x|y": "reverse", "y": "prior"}
_DIGIT = re.compile(r"\d")
_STEP = re.compile(r"[^\n]*\S[^\n]*")


def available_features(targets: Container[str]) -> list[str]:
    """The features that can be computed from scores of these targets.

    >>> available_features({"x~|y", "x'|y"})
    ['contrast', 'overlap']
    """
    return [name for name, (target, _) in FEATURES.items() if target in targets]


def candidate_features(
    scores: Mapping[str, Score | None], problem: Problem, candidate: Candidate
) -> dict[str, float]:
    """A candidate's `FEATURES`, from its scores by target.

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
        if target in ("x'|y", "x~|y"):
            continue
        prefix = _PREFIXES[target]
        text = problem.question if target == "x|y" else score.solution(candidate.text)
        digits = _digit_logprobs(score, text)
        values[prefix] = score.logprob
        values[f"{prefix}_mean"] = score.logprob / max(1, score.num_tokens)
        numbers = "question_numbers" if target == "x|y" else f"{prefix}_numbers"
        values[numbers] = sum(digits)
        values[f"{numbers.removesuffix('_numbers')}_min_digit_logprob"] = min(digits, default=0.0)
    given, changed = scores.get("x|y"), scores.get("x'|y")
    if given and changed:
        values["contrast"] = given.logprob - changed.logprob
    if written := scores.get("x~|y"):
        values["overlap"] = written.logprob
    if prior := scores.get("y"):
        values["worst_step"] = worst_step(prior, scores.get("y|x"), candidate.text)
    return values


def _digit_logprobs(score: Score, text: str) -> list[float]:
    """The log-probabilities of the tokens that contain a digit; empty without token scores."""
    tokens = score.tokens() or []
    return [value for value, (start, end) in tokens if _DIGIT.search(text, start, end)]


@dataclass(frozen=True)
class Step:
    """A line of a solution, text[start:end], with the log-probability of its tokens in nats."""

    start: int
    end: int
    logprob: float
    """The sum over the step's tokens."""
    least: float
    """The log-probability of its least likely token; 0 for a step without tokens."""
    num_tokens: int


def split_steps(score: Score, text: str) -> list[Step]:
    """The steps of a solution `text`, from a score of `y` or `y|x`; empty without token scores.

    A token belongs to the step of its last character. Line ends and the document-end token belong
    to no step.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> [(step.logprob, step.num_tokens) for step in split_steps(score, "1+1\\n#2")]
    [(-1.0, 1), (-2.0, 1)]
    """
    tokens = score.tokens()
    if tokens is None:
        return []
    steps = []
    for line in _STEP.finditer(text):
        inside = [
            value
            for value, (start, end) in tokens
            if end > start and line.start() < end <= line.end()
        ]
        steps.append(
            Step(*line.span(), sum(inside), min(inside, default=0.0), num_tokens=len(inside))
        )
    return steps


def worst_step(reverse: Score, forward: Score | None, text: str) -> float:
    """The log-probability of the least likely token of a solution's least likely step, in nats.

    `reverse` is a score of `y`, `forward` one of `y|x`. If both are of the same text, each step
    counts with the mean of the two; else `forward` is ignored. 0 without token scores.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> worst_step(score, None, "1+1\\n#2")
    -2.0
    """
    readings = [_least_by_step(reverse, text)]
    if forward is not None and forward.text == reverse.text:
        readings.append(_least_by_step(forward, text))
    known = [reading for reading in readings if reading]
    return min((sum(step) / len(step) for step in zip(*known, strict=True)), default=0.0)


def _least_by_step(score: Score, text: str) -> list[float]:
    return [step.least for step in split_steps(score, score.solution(text))]
