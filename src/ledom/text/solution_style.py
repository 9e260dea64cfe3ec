r"""Converts worked solutions to one style, whoever wrote them.

Templates and models state the same step in many ways: "$57/hour * 7 hours = $399",
"57 x 7 = $<<57*7=399>>399", "\(57 \times 7 = 399\)". A small model that has to explain a question
by its solution should see only one of them. `restyle` is applied to training texts and candidates
alike; a checkpoint records which style its model reads (see `PairFormat`).

Arithmetic is written out in small steps: `57 + 48 = 105` becomes `57 + 48 = 97 + 8 = 105`. Every
step changes few digits, with at most one carry. A model of a few million parameters learns such
steps from tens of thousands of equations, but does not learn the bare results from ten times as
many (docs/log.md). Only equations that are exactly true are written out. This module knows nothing
of tokens, models or records.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from ledom.text.answers import extract_answer

__all__ = [
    "ANSWER_MARK",
    "STYLES",
    "Style",
    "equations",
    "is_true",
    "normalize_numbers",
    "normalize_solution",
    "restyle",
    "show_work",
    "value_of",
]

Style = Literal["as written", "plain", "numbers", "equations"]

ANSWER_MARK = "####"
"""Precedes a solution's final answer."""

_STATED = re.compile(
    r"(?<![\w.%)(])(?<![-+*/=] )(\d{1,15}(?:\.\d{1,9})?(?: [-+*/] \d{1,15}(?:\.\d{1,9})?){1,20}) = "
    r"(\d{1,15}(?:\.\d{1,9})?)"
    r"(?!\.?\d|[%/]| [-+*/=])"
)
_DIVIDED_BY_FRACTION = re.compile(r"÷ ?(\d+)/(\d+)")
_STEP = re.compile(
    r"(?<![\d.])\d{1,15}(?:\.\d{1,9})?%?(?: [-+*/] \d{1,15}(?:\.\d{1,9})?%?){1,20}"
    r"(?: = [-+*/\d. %]*\d%?)+"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRAILING_ZEROS = re.compile(r"(\d)\.0+(?!\d)")
_TIMES = re.compile(r"(?<=[\d%]) ?[x×] ?(?=[$€£]?\d)|(?<=\w) x (?=[$€£]?\d)|×")
_SYMBOLS = str.maketrans({"÷": "/", "•": "-"})
_NUMBER = r"[$€£]?\d{1,15}(?:\.\d{1,9})?%?"
_UNIT = r"(?:[ /][A-Za-z][A-Za-z'/]*(?:[ -][A-Za-z][A-Za-z'/]*){0,5})?"
_EQUATION = re.compile(  # of bounded length, so that any text takes linear time
    rf"(?<![\d.]){_NUMBER}{_UNIT}(?: ?[-+*/] ?{_NUMBER}{_UNIT}){{1,20}} ?= ?{_NUMBER}"
)
_EQUATION_PART = re.compile(rf"({_NUMBER}){_UNIT}( ?[-+*/=] ?|$)")
_TERM = re.compile(r"(\d+(?:\.\d+)?)(%?)")
_OPERATOR = re.compile(r" ?([-+*/]) ?")
_SIGNS = re.compile(r"\d+(?:\.\d+)?%?|(?<= )[-+*/=](?= )")
_EXPRESSION = re.compile(  # in the `numbers` style: an expression, with its result if there is one
    r"(?<![\d.])\d+(?:\.\d+)?%?(?: [-+*/] \d+(?:\.\d+)?%?)+"
    r"(?: = \d+(?:\.\d+)?%?(?: [-+*/] \d+(?:\.\d+)?%?)*)*"
)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_LATEX = (
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\\div\b"), "/"),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[()\[\],!;$%]|\*\*|[()`]"), ""),
)
_ANSWER_LINE = re.compile(
    r"(?:^|(?<=[.!?] ))(?:A:|Answer:|####|[^.\n]{0,60}\banswer is\b)[^\n]*\Z",
    re.MULTILINE | re.IGNORECASE,
)


def normalize_numbers(text: str) -> str:
    """Write all numbers in one way: 350,000 -> 350000, 38.0 -> 38.

    >>> normalize_numbers("350,000 and 38.0")
    '350000 and 38'
    """
    return _TRAILING_ZEROS.sub(r"\1", _THOUSANDS.sub("", text)).translate(_SYMBOLS)


def _bare_steps(solution: str) -> str:
    """One step per line, with bare equations and without bullets and blank lines."""
    solution = _DIVIDED_BY_FRACTION.sub(r"*\2/\1", solution)  # 12÷2/3 is 12 divided by 2/3
    text = re.sub(r" +", " ", _TIMES.sub(" * ", normalize_numbers(solution)))
    lines = (re.sub(r"^ ?(?:- |\d+\. )", "", line).strip() for line in text.splitlines())
    return "\n".join(_EQUATION.sub(_bare_equation, line) for line in lines if line)


def normalize_solution(solution: str) -> str:
    """A generated solution with one step per line, and bare equations with their steps.

    "$57/hour * 7 hours = $399" becomes "57 * 7 = 350 + 49 = 399". All templates then write
    arithmetic in the same way, so a small model learns it from all of them.

    >>> normalize_solution("$57/hour * 7 hours = $399")
    '57 * 7 = 350 + 49 = 399'
    """
    return _STATED.sub(lambda match: show_work(match[1], match[2]), _bare_steps(solution))


def equations(solution: str) -> list[str]:
    """The bare equations of a normalized solution, in order.

    >>> equations("2 + 3 = 5, so 5 * 2 = 10")
    ['2 + 3 = 5', '5 * 2 = 10']
    """
    return _STEP.findall(solution)


def restyle(solution: str, style: Style, answer: str | None = None) -> str:
    """Convert a solution to one of `STYLES`; `answer` replaces the one that the text states.

    >>> print(restyle("He has 2 + 3 = 5 apples.", "equations", "5"))
    2 + 3 = 5
    #### 5
    """
    return STYLES[style](solution, answer)


def _as_written(solution: str, answer: str | None) -> str:
    return solution


def _plain(solution: str, answer: str | None) -> str:
    """Words and bare equations, the answer on a line of its own."""
    return _ended(_plain_steps(solution), solution, answer)


def _numbers(solution: str, answer: str | None) -> str:
    """Each line's numbers and the operators between them, and the answer."""
    lines = (" ".join(_SIGNS.findall(line)) for line in _plain_steps(solution).splitlines())
    return _ended("\n".join(line for line in lines if line), solution, answer)


def _equations(solution: str, answer: str | None) -> str:
    """The equations alone, one per line, and the answer; all numbers if there are no equations."""
    numbers = _numbers(solution, answer)
    steps, mark, final = numbers.rpartition(ANSWER_MARK)
    found = _EXPRESSION.findall(steps if mark else numbers)
    return "\n".join([*found, f"{mark}{final}"] if mark else found) if found else numbers


STYLES: dict[str, Callable[[str, str | None], str]] = {
    "as written": _as_written,
    "plain": _plain,
    "numbers": _numbers,
    "equations": _equations,
}
"""What a model reads of a solution: the text as written, the text with bare equations, its numbers
and operators, or its equations. A number that is merely repeated from the question is in none of
the equations, so it explains nothing."""


def _plain_steps(solution: str) -> str:
    return _bare_steps(_without_markup(_ANSWER_LINE.sub("", solution.strip())))


def _without_markup(text: str) -> str:
    text = _CALCULATOR.sub("", text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _ended(steps: str, solution: str, answer: str | None) -> str:
    final = answer if answer is not None else extract_answer(solution)
    if final is None:
        return steps
    final = normalize_numbers(_without_markup(final)).strip().lstrip("$€£").rstrip(". ")
    return f"{steps}\n{ANSWER_MARK} {final}".lstrip()


def _bare_equation(match: re.Match[str]) -> str:
    """An equation without its units and currency signs, operators between single spaces."""
    parts = _EQUATION_PART.findall(match.group())
    return "".join(
        number.lstrip("$€£") + (f" {operator.strip()} " if operator.strip() else "")
        for number, operator in parts
    )


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
    """`expression = result` with the steps in between, one operation each.

    A mixed expression is split: `2 * 14 - 5` into `2 * 14 = 28, 28 - 5 = 23`. The equation is
    returned unchanged if it is false, has percentages or negative steps, or needs more than three
    decimals.

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
    """The sides that follow `a + b - c`: each adds or subtracts one digit of one number."""
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
    """Whether to add or subtract `number` in one step.

    It must have one non-zero digit, or be added and share at most one digit place with `total`.
    """
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
    """The non-zero digits of a number at their places: 1705 -> 1000, 700, 5."""
    digits, _, decimals = _text(number).partition(".")
    scale = 10 ** len(decimals)
    written = digits + decimals
    return [
        Fraction(int(digit) * 10 ** (len(written) - 1 - i), scale)
        for i, digit in enumerate(written)
        if digit in "123456789"
    ] or [number]


def _place(part: Fraction) -> int:
    """The power of ten of a number's first digit."""
    return len(str(int(part * 1000))) - 4


def _text(number: Fraction) -> str:
    """A number as an exact decimal; if it needs over three decimals, nine (too many to show)."""
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
    """The exact value of numbers joined by + - * /, with * and / first, from left to right.

    Raises `ValueError` for anything else, and `ZeroDivisionError`.

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
