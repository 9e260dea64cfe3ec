"""Reports of a selection and of training runs as dataclasses; pages and JSON are made from them.

Accuracies are shares from 0 to 1. Log-probabilities are in nats, losses in nats per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Case",
    "CaseCandidate",
    "ChosenAnswer",
    "Cost",
    "DirectionResult",
    "Interval",
    "ModelInfo",
    "QuestionToken",
    "RunComparison",
    "SelectionReport",
]


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How many candidates a stopped vote needed, per problem."""

    candidates: Interval
    of: float
    """The mean number of candidates without stopping."""
    saved: Interval
    """The share of the candidates that were not needed."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a strategy costs per problem; see `ledom.rerank.cost`."""

    generated_tokens: float
    scored_tokens: float
    flops: float | None
    """None if a model's size is unknown."""
    seconds: float | None = None
    """None if the time of a stage was not recorded."""


@dataclass(frozen=True, kw_only=True)
class StrategyResult:
    """A strategy's accuracy."""

    id: str
    label: str
    """Its display name."""
    kind: str
    """`baseline`, `pick`, `vote` or `bound`."""
    description: str
    formula: str
    accuracy: Interval
    versus: Mapping[str, Interval] = field(default_factory=dict)
    """Paired differences, by the id of the other strategy."""
    needed: Needed | None = None
    cost: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A claim that one strategy is better than another, and the paired difference."""

    claim: str
    difference: Interval
    main: bool = False
    """Whether the report opens with this claim, which was stated before any problem was seen."""


@dataclass(frozen=True, kw_only=True)
class AccuracyByN:
    """Accuracy by number of candidates: a list with a value for each n, by strategy id."""

    n: Sequence[int]
    strategies: Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class AccuracyByLambda:
    """Accuracy of Reverse Reward by lambda, with its interval; `chosen` is the lambda in use."""

    lambda_: Sequence[float]
    accuracy: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    chosen: float


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Problems with about the same score."""

    mean_score: float
    accuracy: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Accuracy by score: are choices with a higher score right more often?"""

    score: str
    """The score's display name."""
    bins: Sequence[Bin]


@dataclass(frozen=True, kw_only=True)
class AucResult:
    """How often a score puts a right candidate above a wrong one of the same problem."""

    score: str
    auc: Interval
    term: str | None = None
    """The feature, if the score is a single one."""


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """Accuracy on one group of problems."""

    group: str
    num_problems: int
    accuracy: Mapping[str, float]
    """By strategy id."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything measured about a selection; empty if no problem is labeled."""

    num_labeled: int | None = None
    """Problems with a known right answer: the accuracies cover these. None if not counted."""
    settings: Mapping[str, str | float] = field(default_factory=dict)
    strategies: Sequence[StrategyResult] = field(default_factory=list)
    headline: Sequence[Difference] = field(default_factory=list)
    accuracy_by_n: AccuracyByN | None = None
    accuracy_by_lambda: AccuracyByLambda | None = None
    reliability: Reliability | None = None
    auc: Sequence[AucResult] = field(default_factory=list)
    by_group: Sequence[GroupResult] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model's name, and its number of parameters if known."""

    name: str
    parameters: int | None


@dataclass(frozen=True, kw_only=True)
class QuestionToken:
    """log P(token | rest of the question after it, answer) for the token question[start:end]."""

    start: int
    end: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class CaseCandidate:
    """A candidate of a case, with its scores."""

    index: int
    text: str
    answer: str | None
    correct: bool | None
    """None if the right answer is unknown."""
    rank: int
    role: str | None
    """`picked`, `rejected` or None."""
    count: int
    """How many candidates have this text."""
    scores: Mapping[str, float]
    """In nats: `forward` (y|x), `reverse` (x|y) and `prior` (y), where known."""
    question_tokens: Sequence[QuestionToken]
    """Those of x|y; empty without `reverse`."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem with candidates by rank, the best first."""

    problem_id: str
    question: str
    answer: str | None
    candidates: Sequence[CaseCandidate]


@dataclass(frozen=True, kw_only=True)
class ChosenAnswer:
    """The answer chosen for a problem, and its share of the votes."""

    problem_id: str
    question: str
    answer: str | None
    share: float


@dataclass(frozen=True, kw_only=True)
class SelectionReport(Measurement):
    """The report of a selection."""

    title: str
    command: str = ""
    ledom_version: str = ""
    num_problems: int = 0
    num_candidates: int = 0
    """The largest number per problem."""
    fewest_candidates: int = 0
    chosen: str = ""
    """The id of the strategy that chose the answers, fixed before any result was known."""
    warning: str | None
    """Why the results cannot be trusted; None if no reason is known."""
    notes: Sequence[str] = field(default_factory=list)
    models: Mapping[str, ModelInfo] = field(default_factory=dict)
    cases: Sequence[Case] = field(default_factory=list)
    answers: Sequence[ChosenAnswer] = field(default_factory=list)


# ---- training runs ----


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """Training loss by tokens seen."""

    tokens: Sequence[int]
    loss: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class ValidationCurve:
    """Validation loss by step and by tokens seen; None for a part that a validation lacks."""

    step: Sequence[int]
    tokens: Sequence[int]
    loss: Sequence[float]
    by_position: Mapping[str, Sequence[float | None]]
    by_source: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class DirectionResult:
    """The training of one direction of a run."""

    steps: int
    tokens: int
    tokens_per_second: float | None
    training: LossCurve
    validation: ValidationCurve
    final_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Reverse minus forward validation loss; without bounds for unknown or few windows."""

    step: int
    tokens: int
    mean: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> Interval | None:
        """The gap with its bounds."""
        if self.low is None or self.high is None:
            return None
        return Interval(self.mean, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class FinalGap(Gap):
    """The gap at the last validation of both directions, with the two losses."""

    forward: float
    reverse: float
    relative: float | None
    """The gap as a share of the forward loss; None if that is 0."""
    num_tokens: int | None
    num_windows: int | None


@dataclass(frozen=True, kw_only=True)
class PartGap:
    """The gap on the tokens of one source, or of one range of positions."""

    name: str
    num_tokens: int | None
    forward: float
    reverse: float
    gap: float


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """A run: each direction's training, and the gap between them if there are two."""

    name: str
    directions: Mapping[str, DirectionResult]
    settings: Mapping[str, Any]
    gap: Sequence[Gap] = field(default_factory=list)
    final_gap: FinalGap | None = None
    gap_by_position: Sequence[PartGap] = field(default_factory=list)
    gap_by_source: Sequence[PartGap] = field(default_factory=list)
    differing: Sequence[str] = ()
    """What differs between the two trainings besides direction, as `key: forward, reverse`."""


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Runs that differ only in name and seed, and the spread of their final gaps."""

    runs: Sequence[str]
    mean: float
    deviation: float
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """How many tokens one model needs to reach the final loss of another."""

    run: str
    direction: str
    other_run: str
    other_direction: str
    loss: float
    other_tokens: int
    tokens: float | None
    """None if it never does."""
    at_first_validation: bool
    """Whether it had already done so at its first validation: `tokens` is then an upper bound."""
    share: float | None
    """`tokens` as a share of `other_tokens`."""
    lowest: float
    """The lowest validation loss that it reached."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The report of one or more training runs."""

    title: str
    command: str = ""
    ledom_version: str = ""
    runs: Sequence[RunComparison]
    seeds: Sequence[SeedGroup] = field(default_factory=list)
    crossings: Sequence[Crossing] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)
