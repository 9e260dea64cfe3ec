"""The report of `ledom compare` on training runs, as dataclasses; see `ledom.report.results`.

Losses are in nats per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledom.report.results import Interval

__all__ = [
    "Comparison",
    "Crossing",
    "DirectionResult",
    "FinalGap",
    "Gap",
    "LossCurve",
    "PartGap",
    "RunComparison",
    "SeedGroup",
    "ValidationCurve",
]


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
    """Reverse minus forward validation loss; without bounds if losses by window are unknown."""

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
