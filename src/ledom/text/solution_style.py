r"""One way to write worked solutions, whoever wrote them.

Templates and models state the same step in many ways: "$57/hour * 7 hours = $399",
"57 x 7 = $<<57*7=399>>399", "\(57 \times 7 = 399\)". A small model that has to explain a question
by its solution should see one. `restyle` is applied to training texts and to candidates alike; a
checkpoint records which style its model reads (see `PairFormat`). This module knows nothing of
tokens, models or records.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from ledom.text.answers import extract_answer
from ledom.text.arithmetic import show_work

__all__ = [
    "ANSWER_MARK",
    "STYLES",
    "Style",
    "equations",
    "normalize_numbers",
    "normalize_solution",
    "restyle",
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
_SIGNS = re.compile(r"\d+(?:\.\d+)?%?|(?<= )[-+*/=](?= )")
_EXPRESSION = re.compile(  # among `numbers`: what is computed, with what it gives where it says so
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
    """One way to write numbers: 350,000 -> 350000, 38.0 -> 38.

    >>> normalize_numbers("350,000 and 38.0")
    '350000 and 38'
    """
    return _TRAILING_ZEROS.sub(r"\1", _THOUSANDS.sub("", text)).translate(_SYMBOLS)


def _bare_steps(solution: str) -> str:
    """One step per line without bullets and blank lines, its equations bare."""
    solution = _DIVIDED_BY_FRACTION.sub(r"*\2/\1", solution)  # 12÷2/3 is 12 divided by 2/3
    text = re.sub(r" +", " ", _TIMES.sub(" * ", normalize_numbers(solution)))
    lines = (re.sub(r"^ ?(?:- |\d+\. )", "", line).strip() for line in text.splitlines())
    return "\n".join(_EQUATION.sub(_bare_equation, line) for line in lines if line)


def normalize_solution(solution: str) -> str:
    """A generated solution: one step per line, bare equations, `#### answer` at the end.

    "$57/hour * 7 hours = $399" becomes "57 * 7 = 350 + 49 = 399": every template then states its
    arithmetic alike, so a small model learns it from all of them.

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
    """A solution in one of `STYLES`; `answer` replaces the one that the text states.

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
    """Its equations alone, one per line, and the answer; without equations, all numbers."""
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
"""What a model may read of a solution: all of it, all in one form, its numbers alone, or only what
it computes: a number that is merely repeated from the question then explains nothing."""


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
