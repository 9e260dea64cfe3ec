"""Arithmetic written out in steps that a small model can take one at a time.

`57 + 48 = 105` becomes `57 + 48 = 97 + 8 = 105`: every step changes few digits, with at most one
carry to look ahead for. A model of a few million parameters learns such steps from tens of
thousands of equations, the bare results not from ten times as many (docs/log.md).
Only what is exactly true is written out; everything else is left as it is.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["is_true", "show_work", "value_of"]

_TERM = re.compile(r"(\d+(?:\.\d+)?)(%?)")
_OPERATOR = re.compile(r" ?([-+*/]) ?")


def is_true(equation: str) -> bool:
    """Whether all sides of `a + b = c + d = e` have the same value, exactly.

    >>> is_true("2 + 3 = 5"), is_true("2 + 3 = 6")
    (True, False)
    """
    try:
        first, *others = (value_of(side) for side in equation.split("="))
    except (ValueError, ZeroDivisionError):
        return False
    return all(side == first for side in others)


def show_work(expression: str, result: str) -> str:
    """`expression = result` with its steps in between, each with a single operation to do.

    An expression with products and others is divided: `2 * 14 - 5` into `2 * 14 = 28, 28 - 5 = 23`.
    What is false, negative on the way, a percentage or no finite decimal stays as it is.

    >>> show_work("57 + 48", "105")
    '57 + 48 = 97 + 8 = 105'
    """
    plain = f"{expression} = {result}"
    if "%" in plain or not is_true(plain):
        return plain
    parts = _OPERATOR.split(expression)
    texts, operators = parts[::2], parts[1::2]
    numbers = [Fraction(text) for text in texts]
    steps: list[str] = []
    while any(operator in "*/" for operator in operators):
        at = next(i for i, operator in enumerate(operators) if operator in "*/")
        first, second = numbers[at : at + 2]
        product = operators[at] == "*"
        value = first * second if product else first / second
        sides = _products(first, second) if product else _quotients(first, second)
        steps.append(_join([f"{texts[at]} {operators[at]} {texts[at + 1]}", *sides]))
        numbers[at : at + 2], texts[at : at + 2] = [value], [_text(value)]
        del operators[at]
    if operators:
        steps.append(_join([_chain(texts, operators), *_sums(numbers, operators)]))
    work = ", ".join(steps)
    if "-" in work.replace(" - ", "") or not all(
        len(number.partition(".")[2]) <= 3 for number in re.findall(r"[\d.]+", work)
    ):
        return plain
    return work if work.endswith(f" {result}") else plain


def _sums(numbers: list[Fraction], operators: list[str]) -> list[str]:
    """The sides that follow `a + b - c`: one place of one number is added at a time."""
    total, rest = numbers[0], list(zip(operators, numbers[1:], strict=True))
    sides = []
    while rest:
        operator, number = rest[0]
        head = number if _easy(total, operator, number) else _places(number)[0]
        total = total + head if operator == "+" else total - head
        rest[:1] = [(operator, number - head)] if number > head else []
        terms = [total, *(term for _, term in rest)]
        sides.append(_chain([_text(term) for term in terms], [sign for sign, _ in rest]))
    return sides


def _easy(total: Fraction, operator: str, number: Fraction) -> bool:
    """Whether a sum is easy: digits of both numbers share at most one place."""
    places = _places(number)
    if operator == "-" or len(places) < 2:
        return len(places) < 2
    return len({_place(part) for part in places} & {_place(part) for part in _places(total)}) < 2


def _products(first: Fraction, second: Fraction) -> list[str]:
    """The sides that follow `57 * 34`: every digit times every digit, then their running sum."""
    parts = [a * b for b in _places(second) for a in _places(first)]
    if len(parts) < 2:
        return [_text(first * second)]
    signs = ["+"] * (len(parts) - 1)
    return [_chain([_text(part) for part in parts], signs), *_sums(parts, signs)]


def _quotients(first: Fraction, second: Fraction) -> list[str]:
    """The sides that follow `136 / 2`: `120 / 2 + 16 / 2`, `60 + 8`, `68`."""
    places = _places(first / second)
    if len(places) < 2:
        return [_text(first / second)]
    shares = [f"{_text(place * second)} / {_text(second)}" for place in places]
    return [" + ".join(shares), " + ".join(map(_text, places)), _text(first / second)]


def _places(number: Fraction) -> list[Fraction]:
    """1705 -> 1000, 700, 5. A number that is not a short decimal has no places."""
    digits, _, decimals = _text(number).partition(".")
    scale = 10 ** len(decimals)
    written = digits + decimals
    return [
        Fraction(int(digit) * 10 ** (len(written) - 1 - i), scale)
        for i, digit in enumerate(written)
        if digit in "123456789"
    ] or [number]


def _place(part: Fraction) -> int:
    """The power of ten of the single non-zero digit."""
    return len(str(int(part * 1000))) - 4


def _text(number: Fraction) -> str:
    """A decimal, exactly, or a fraction where there is no short one (refused by `show_work`)."""
    if number.denominator == 1:
        return str(number.numerator)
    scaled = number * 1000
    if scaled.denominator != 1:
        return f"{float(number):.9f}"
    return f"{float(number):.3f}".rstrip("0")


def _chain(terms: list[str], operators: list[str]) -> str:
    return terms[0] + "".join(f" {o} {t}" for o, t in zip(operators, terms[1:], strict=True))


def _join(sides: list[str]) -> str:
    return " = ".join(sides)


def value_of(side: str) -> Fraction:
    """A sum of products, * and / from left to right, before + and -.

    Raises `ValueError` for anything but a sum of numbers, and `ZeroDivisionError`.

    >>> value_of("2 * 3 + 1 / 2")
    Fraction(13, 2)
    """
    total, product, sign = Fraction(0), Fraction(1), 1
    operator = "+"
    for index, part in enumerate(_OPERATOR.split(side.strip())):
        if index % 2:
            operator = part
            continue
        match = _TERM.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a number")
        number = Fraction(match[1]) / (100 if match[2] else 1)
        if operator == "*":
            product *= number
        elif operator == "/":
            product /= number
        else:
            total += sign * product if index else 0
            product, sign = number, 1 if operator == "+" else -1
    return total + sign * product
