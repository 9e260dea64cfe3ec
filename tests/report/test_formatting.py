"""Formatting of numbers, verdicts and results as JSON."""

from __future__ import annotations

import pytest

from ledom.report.formatting import MISSING, count, number, to_json, verdict
from ledom.report.results import Interval


def test_a_number_that_rounds_to_zero_has_no_sign() -> None:
    assert number(-0.04, 1) == number(0.04, 1, "+") == "0.0"
    assert number(-0.06, 1) == "\u22120.1"


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.1, 0.3, "better"),
        (-0.3, -0.1, "worse"),
        (-0.1, 0.1, "open"),
        (0.0, 0.2, "open"),
        (-1, 0, "open"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(low: float, high: float, shown: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high)) == shown


def test_a_missing_number_is_shown_as_a_dash() -> None:
    for value in (None, float("nan"), float("inf")):
        assert number(value) == count(value) == MISSING


def test_results_are_converted_to_json() -> None:
    assert to_json(Interval(0.5, 0.25, 0.75)) == {"mean": 0.5, "low": 0.25, "high": 0.75}
