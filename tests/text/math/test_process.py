"""Answers compared by value: mathematics in a worker that nothing can hold up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ledom.text.answers import is_correct
from ledom.text.math.process import MathChecker


def test_a_nested_box_is_read_out_of_a_solution() -> None:
    assert is_correct(r"so \boxed{\frac{\sqrt{2}}{\sqrt{4}}}, as \(3 > 2\)", r"\frac{1}{\sqrt 2}")
    assert not is_correct(r"so \boxed{\frac{\sqrt{2}}{2}}", r"\frac{\sqrt{3}}{2}")
    assert not is_correct("I cannot tell.", r"\frac{1}{2}")


@pytest.fixture
def checker() -> Iterator[MathChecker]:
    checker = MathChecker(seconds=1.0)
    assert checker.equal(r"\frac{1}{2}", "0.5")  # sympy is loaded
    yield checker
    checker.close()


@pytest.mark.parametrize(
    "hostile",
    [
        r"(x+y+z+1)^{9999}",
        r"(\sqrt{2}+\pi)^{9999999999}",
        r"x^{x^{x^{x^{x}}}}",
        r"\sqrt{2}^{\sqrt{3}^{\sqrt{5}^{\sqrt{7}^{999}}}}",
        r"\sqrt{x}!!",
        "(" * 250,
        "\\frac{" * 40,
    ],
)
def test_a_hostile_expression_is_not_equal_and_not_in_the_way(
    checker: MathChecker, hostile: str
) -> None:
    started = time.monotonic()
    assert not checker.equal(hostile, r"1+\sqrt{3}")
    assert time.monotonic() - started < 10
    assert checker.equal(r"\sqrt{8}", r"2\sqrt{2}")  # a new worker, where the old one was killed


def test_a_worker_that_dies_is_replaced(checker: MathChecker) -> None:
    assert checker._worker is not None
    checker._worker.kill()
    assert checker.equal(r"\sqrt{4}", "2") in (True, False)
    assert checker.equal(r"\sqrt{4}", "2")
