"""Numbers as a report writes them: percent, points, and intervals with what they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["MISSING", "Bounds", "accuracy", "difference", "interval", "number", "percent"]

MISSING = "\N{EN DASH}"
"""What stands for a number that is not there."""


@dataclass(frozen=True)
class Bounds:
    """A mean with the bounds of its 95 % interval; None where a number is not known."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, value: Any) -> Bounds:
        """From the JSON object of an interval; anything else has no bounds."""
        if isinstance(value, Bounds):
            return value
        found = value if isinstance(value, dict) else {}
        return cls(*(_number_or_none(found.get(key)) for key in ("mean", "low", "high")))

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes 0, else `open`."""
        if self.mean is None or self.low is None or self.high is None:
            return "open"
        if self.low > 0 and self.mean > 0:
            return "better"
        return "worse" if self.high < 0 and self.mean < 0 else "open"


def _number_or_none(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def number(value: Any, digits: int = 2, sign: str = "-") -> str:
    """`1.50`, with a true minus sign; a dash for what is not a number."""
    if not isinstance(value, int | float):
        return MISSING
    value = round(value, digits) or 0.0  # not -0.0
    return f"{value:{sign if value else '-'}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: Any) -> str:
    """`47.3` for 0.473."""
    return f"{100 * share:.1f}" if isinstance(share, int | float) else MISSING


def accuracy(value: Any) -> str:
    """`47.3 ± 2.2`: percent, and the wider side of the interval."""
    bounds = Bounds.read(value)
    if bounds.mean is None or bounds.low is None or bounds.high is None:
        return percent(bounds.mean)
    wider = max(bounds.high - bounds.mean, bounds.mean - bounds.low)
    return f"{percent(bounds.mean)} ± {percent(wider)}"


def difference(value: Any) -> str:
    """`+3.2 [+1.1, +5.3]`: percentage points."""
    bounds = Bounds.read(value)
    points = [
        number(None if bound is None else 100 * bound, 1, "+")
        for bound in (bounds.mean, bounds.low, bounds.high)
    ]
    return points[0] if MISSING in points else f"{points[0]} [{points[1]}, {points[2]}]"


def interval(value: Any, digits: int = 3) -> str:
    """`0.642 [0.631, 0.653]`."""
    bounds = Bounds.read(value)
    mean, low, high = (number(b, digits) for b in (bounds.mean, bounds.low, bounds.high))
    return mean if MISSING in (low, high) else f"{mean} [{low}, {high}]"
