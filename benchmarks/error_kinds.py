"""What is wrong with a wrong solution, judged by its own equations.

A solution in the `equations` style is a chain: each equation uses numbers from the question and
earlier results. The kind of error is the first of these that applies:

    no equations        there is nothing to check
    false equation      an equation's sides differ
    wrong final line    the stated answer is not the last result
    number left out     a number from the question is in no equation
    number misread      an equation uses a number that is neither in the question nor a result
    wrong step          none of the above, but the answer is wrong

The AUC of a score on one kind of error shows whether the score can detect such errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from ledom.data.problems import value_of
from ledom.data.question_numbers import numbers_in_words
from ledom.text.answers import equal_answers, extract_answer
from ledom.text.math.notation import normalize_numbers
from ledom.text.pair_format import ANSWER_MARK, STYLES

__all__ = ["ERROR_KINDS", "error_kind"]

ERROR_KINDS = (
    "no equations",
    "false equation",
    "wrong final line",
    "number left out",
    "number misread",
    "wrong step",
)

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_IN_QUESTION = re.compile(r"(?<![\w.:])\d+(?:\.\d+)?(?![\w:]|\.\d)")


def error_kind(question: str, solution: str) -> str:
    """Classify a solution that is known to be wrong as one of `ERROR_KINDS`.

    Numbers are compared by value, rounded results to their own decimals. Percentages and numbers in
    words (a dozen, twice, a week) count as numbers of the question.

    >>> question = "Ava has 3 boxes of 4 pens and finds 5 more. How many pens has she?"
    >>> [error_kind(question, text) for text in (
    ...     "3 * 4 = 13, 13 + 5 = 18\\n#### 18", "3 * 4 = 12\\n#### 12",
    ...     "3 * 4 = 12, 12 - 5 = 7\\n#### 7")]
    ['false equation', 'number left out', 'wrong step']
    """
    lines = STYLES["equations"](solution, None).splitlines()
    equations = [line.split(" = ") for line in lines if " = " in line and ANSWER_MARK not in line]
    if not equations:
        return "no equations"
    if not all(map(_holds, equations)):
        return "false equation"
    results = [value_of(sides[-1].rstrip("%")) for sides in equations]
    answer = extract_answer(solution)
    if answer is None or not equal_answers(str(results[-1]), answer):
        return "wrong final line"
    asked = [Fraction(number) for number in _IN_QUESTION.findall(normalize_numbers(question))]
    taken = [number for sides in equations for number in _NUMBER.findall(sides[0])]
    values = {Fraction(number) for number in taken}
    if any(not values & _forms(number) for number in asked):
        return "number left out"
    known = {form for number in [*asked, *results] for form in _forms(number)}
    known |= {Fraction(number) for number in numbers_in_words(question)}
    if not values <= known:
        return "number misread"
    return "wrong step"


def _forms(value: Fraction) -> set[Fraction]:
    """Values that a number may stand for, also as a percentage, 100% minus it or an increase."""
    return {value, value / 100, value * 100, 100 - value, 1 - value / 100, 1 + value / 100}


def _holds(sides: Sequence[str]) -> bool:
    """Whether all sides are equal, rounded to the decimals of the last one.

    A result with a percent sign may be the percentage itself: 12 / 20 * 100 = 60%.
    """
    *others, result = sides
    plain = result.rstrip("%")
    decimals = len(plain.partition(".")[2])
    rounding = Fraction(1, 2 * 10**decimals) if decimals else Fraction(0)
    try:
        values = [value_of(side) for side in others]
        return any(
            all(abs(value - meant) <= rounding for value in values)
            for meant in {value_of(result), value_of(plain)}
        )
    except (ValueError, ZeroDivisionError):
        return False
