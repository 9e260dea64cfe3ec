"""Formatting of numbers, verdicts and results as JSON."""

from __future__ import annotations

import pytest

from ledom.report.formatting import MISSING, count, difference, interval, number, to_json, verdict
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
        (1.4e-17, 0.6, "open"),  # a sum of 0.1, 0.2 and -0.3
        (-0.4, -1.5e-17, "open"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(low: float, high: float, shown: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high)) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.0004, 0.0733, "[+0.04, +7.3]"),
        (-0.0733, -0.0004, "[\u22127.3, \u22120.04]"),
        (0.0000149, 0.07, "[+0.001, +7.0]"),
        (0.0, 0.07, "[0.0, +7.0]"),
        (1e-17, 0.07, "[0.0, +7.0]"),
    ],
)
def test_a_bound_that_is_not_zero_is_not_shown_as_zero(low: float, high: float, shown: str) -> None:
    assert difference(Interval((low + high) / 2, low, high)).endswith(f" {shown}")
    assert interval(Interval(float("nan"), 0.0, 0.0)) == f"{MISSING} [0.000, 0.000]"


def test_a_missing_number_is_shown_as_a_dash() -> None:
    for value in (None, float("nan"), float("inf")):
        assert number(value) == count(value) == MISSING


def test_results_are_converted_to_json() -> None:
    assert to_json(Interval(0.5, 0.25, 0.75)) == {"mean": 0.5, "low": 0.25, "high": 0.75}
