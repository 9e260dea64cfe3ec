"""Formats numbers and intervals, alike on every page, in every table and on the terminal.

An unknown number becomes a dash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ledom.report.results import Interval

__all__ = [
    "MISSING",
    "accuracy",
    "byte_count",
    "count",
    "difference",
    "interval",
    "number",
    "percent",
]

MISSING = "\N{EN DASH}"
"""Stands for an unknown number."""
_ROUNDING = 1e-9  # by which a sum of shares may leave 0 to 1


def number(value: float | None, digits: int = 2, sign: str = "-") -> str:
    """A number with `digits` decimals and a true minus sign; `sign="+"` marks positive ones too.

    Unknown and infinite numbers become a dash.

    >>> number(1.5), number(0.256, 1, "+"), number(-0.04, 1)
    ('1.50', '+0.3', '0.0')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    value = round(value, digits) or 0.0  # not -0.0
    return f"{value:{sign if value else '-'}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None) -> str:
    """A share in percent.

    >>> percent(0.4734)
    '47.3'
    """
    return number(None if share is None else 100 * share, 1)


def accuracy(found: Interval | None) -> str:
    """A share in percent, with the wider side of its interval.

    Both bounds are shown where that side would leave 0 to 100, and for a share that is itself one
    of the bounds, such as 0 of 79.

    >>> accuracy(Interval(0.473, 0.451, 0.49)), accuracy(Interval(0.0, 0.0, 0.046))
    ('47.3 ± 2.2', '0.0 [0.0, 4.6]')
    >>> accuracy(Interval(0.033, 0.0, 0.1))  # not 3.3 ± 6.7
    '3.3 [0.0, 10.0]'
    """
    if found is None:
        return MISSING
    least, most = found.mean - found.margin, found.mean + found.margin
    outside = least < -_ROUNDING or most > 1 + _ROUNDING
    if found.low < found.high and (outside or found.mean in (found.low, found.high)):
        return interval(Interval(100 * found.mean, 100 * found.low, 100 * found.high), 1)
    return f"{percent(found.mean)} ± {percent(found.margin)}"


def difference(found: Interval | None) -> str:
    """A difference of two shares in percentage points, with its interval.

    >>> difference(Interval(0.061, 0.011, 0.1))
    '+6.1 [+1.1, +10.0]'
    """
    if found is None:
        return MISSING
    return interval(Interval(100 * found.mean, 100 * found.low, 100 * found.high), 1, "+")


def interval(found: Interval, digits: int = 3, sign: str = "-") -> str:
    """A mean with its bounds.

    >>> interval(Interval(0.642, 0.631, 0.653))
    '0.642 [0.631, 0.653]'
    """
    mean, low, high = (number(v, digits, sign) for v in (found.mean, found.low, found.high))
    return mean if MISSING in (low, high) else f"{mean} [{low}, {high}]"


def count(value: float | None) -> str:
    """A count: exact below 10,000, else with three digits and a unit.

    >>> count(2346), count(20_000), count(7.79e9), count(999_600)
    ('2,346', '20k', '7.79B', '1M')
    """
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value < 1e4 else _scaled(value, ("", "k", "M", "B", "T"))


def byte_count(value: float) -> str:
    """A number of bytes, in units of 1000.

    >>> byte_count(15.6e9)
    '15.6 GB'
    """
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    place = min(int(math.log10(max(value, 1))) // 3, len(units) - 1)
    if place + 1 < len(units) and value >= 999.5 * 1000**place:
        place += 1  # three digits round up to the next unit
    return f"{value / 1000**place:.3g}{units[place]}"
