"""Answers compared by value: mathematics in a worker that nothing can hold up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ledom.evaluate.answers import equal_answers, is_correct
from ledom.evaluate.maths import MathChecker

EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac12", "1/2"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    (r"\frac{3}{4}", "0.75"),
    (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"12\pi", r"12 \pi"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})"),
    ("(1, 2)", "(1,2)"),
    (r"\{1,2,3\}", r"\{3,2,1\}"),
    (r"(-\infty,2]\cup[3,\infty)", r"(-\infty, 2] \cup [3, \infty)"),
    ("[2,5)", "[2, 5)"),
    (r"x \in [2,5)", "[2,5)"),
    ("x = 5", "5"),
    (r"\text{Monday}", "Monday"),
    (r"3\text{ cm}", "3"),
    (r"90^\circ", "90"),
    (r"\$18.90", "18.90"),
    (r"50\%", "50%"),
    ("1,234", "1234"),
    (r"10{,}000", "10000"),
    ("350,000", "350000 dollars"),
    ("3 1/2", "3.5"),
    (r"2^{10}", "1024"),
    (r"\boxed{5}", "5"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"6 - 5i", "6-5i"),
    (r"\frac{14}{3}", "14/3"),
    ("p - q", "p-q"),
]
DIFFERENT = [
    (r"\frac{1}{2}", "0.51"),
    (r"\frac{1}{3}", "0.33"),
    (r"\sqrt{8}", r"\sqrt{2}"),
    (r"12\pi", "12"),
    ("x^2+2x+1", "(x-1)^2"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "(1,2,3)"),
    ("[2,5)", "[2,5]"),
    ("(2,5)", "[2,5)"),
    (r"\{1,2,3\}", r"\{1,2\}"),
    (r"(-\infty,2]", r"(-\infty,3]"),
    ("x = 5", "6"),
    ("Monday", "Tuesday"),
    (r"\text{Monday}", r"\text{Friday}"),
    ("18.90", "18.9001"),
    ("1,234", "1.234"),
    ("10000", "1000"),
    ("3 1/2", "31/2"),
    (r"2^{10}", "210"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"6 - 5i", "6+5i"),
    ("p - q", "q - p"),
    ("-5", "5"),
    (r"\frac{14}{3}", r"\frac{3}{14}"),
    ("1e999999999", "1"),
    ("", "0"),
    (r"\frac{1}{0}", "0"),
    ("0.1", "0.10001"),
    (r"\log 2", "2"),
    ("2:00", "2"),
]


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_equal(first: str, second: str) -> None:
    assert equal_answers(first, second)
    assert equal_answers(second, first)


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different(first: str, second: str) -> None:
    assert not equal_answers(first, second)
    assert not equal_answers(second, first)


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


@pytest.mark.parametrize("hostile", ["9^{9^{9^{9}}}", "10^{10^{10}}!", "(" * 250, "\\frac{" * 40])
def test_a_hostile_expression_is_not_equal_and_not_in_the_way(
    checker: MathChecker, hostile: str
) -> None:
    started = time.monotonic()
    assert not checker.equal(hostile, "1")
    assert time.monotonic() - started < 10
    assert checker.equal(r"\frac{1}{2}", "0.5")  # a new worker, where the old one was killed


def test_a_worker_that_dies_is_replaced(checker: MathChecker) -> None:
    assert checker._worker is not None
    checker._worker.kill()
    assert checker.equal(r"\sqrt{4}", "2") in (True, False)
    assert checker.equal(r"\sqrt{4}", "2")


def test_a_long_answer_is_not_compared(checker: MathChecker) -> None:
    assert not checker.equal("1+" * 500 + "1", "501")
