r"""The styles of a solution, to which training texts and candidates alike are converted.

Templates and models state the same step in many ways: "$57/hour * 7 hours = $399",
"57 x 7 = $<<57*7=399>>399", "\(57 \times 7 = 399\)". A small model that has to explain a question
by its solution should see only one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from ledom.text.answers import extract_answer
from ledom.text.math.notation import keyboard

__all__ = ["ANSWER_MARK", "STYLES", "Style", "bare_steps", "normalize_numbers", "restyle"]

Style = Literal["as written", "plain", "numbers", "equations"]

ANSWER_MARK = "####"
"""Precedes a solution's final answer."""

_DIVIDED_BY_FRACTION = re.compile(r"÷ ?(\d+)/(\d+)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRAILING_ZEROS = re.compile(r"(\d)\.0+(?!\d)")
_LEADING_POINT = re.compile(r"(?<![\w.)])\.(?=\d)")
_TIMES = re.compile(r"(?<=[\d%)]) ?[x×] ?(?=\(?[$€£]?\d)|(?<=\w) x (?=\(?[$€£]?\d)|×")
_SYMBOLS = str.maketrans({"÷": "/", "•": "- "})
_NUMBER = r"[$€£]?\d{1,15}(?:\.\d{1,9})?%?"
_UNIT = r"(?:[ /][A-Za-z][A-Za-z'/]*(?:[ -][A-Za-z][A-Za-z'/]*){0,5})?"
_EQUATION = re.compile(  # of bounded length, so that any text takes linear time
    rf"(?<![\d.]){_NUMBER}{_UNIT}(?: ?[-+*/] ?{_NUMBER}{_UNIT}){{1,20}} ?= ?-?{_NUMBER}"
)
_EQUATION_PART = re.compile(rf"(-?{_NUMBER}){_UNIT}( ?[-+*/=] ?|$)")
# A calculation: as an equation, and with brackets, signs, powers, fractions, and sides in between.
_AMOUNT = rf"(?:[$€£]?\d{{1,9}} (?=\d{{1,9}}/\d))?{_NUMBER}"  # 2 1/2
_FACTOR = rf"[(\[]{{0,9}}-?{_AMOUNT}{_UNIT}(?:[)\]]{{1,9}}{_UNIT})?"
_SUM = rf"{_FACTOR}(?:(?: ?[-+*/^] ?|(?=[(\[])){_FACTOR})"
_CALCULATION = re.compile(
    rf"(?<![\d.]){_SUM}{{1,20}} ?= ?(?:{_SUM}{{0,20}} ?= ?){{0,9}}"
    rf"(?:{_FACTOR}(?: ?[+*/^] ?| - |(?=[(\[]))){{0,20}}[(\[]{{0,9}}-?{_AMOUNT}[)\]]{{0,9}}"
    r"|[()]"  # of no equation
)
_CALCULATION_PART = re.compile(
    rf"([(\[]*)(-?{_AMOUNT}){_UNIT}(?:([)\]]+)(?:{_UNIT}))?( ?[-+*/^=] ?|(?=[(\[])|$)"
)
_MIXED = re.compile(r"(\d+) (\d+) / (\d+)")
_GROUP = re.compile(r"([-+*/^]?) ?\(([^()]*)\)(?= ?([-+*/^]?))")
_INNERMOST = re.compile("⟨[^⟨⟩]*⟩")
_KEPT = str.maketrans("⟨⟩", "()")
_SIGNED = r"(?:(?:(?<=[-+*/^=] )|(?<=[=*/(])|(?<![^\n]))-)?\d+(?:\.\d+)?%?"  # 5 - 8 = -3
_SIGNS = re.compile(rf"{_SIGNED}|(?<= )[-+*/^=](?= )|[()]")
_TERM = rf"\({{0,9}}{_SIGNED}\){{0,9}}"
_EXPRESSION = re.compile(  # in the `numbers` style: an expression, with its result if there is one
    rf"(?<![\d.]){_TERM}(?: [-+*/^] {_TERM})+(?: = {_TERM}(?: [-+*/^] {_TERM})*)*"
)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_REMARK = re.compile(r"\(([^()\d]*)\)")
_ONE_TERM = re.compile(r"-?(?:[\d.]+|[A-Za-z]|\\[A-Za-z]+)")
_LATEX: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), lambda match: _fraction(match)),
    (re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"[\xbc-\xbe\u2150-\u215e]"), lambda match: keyboard(match[0])),  # one half
    (re.compile(r"(?<=[\d)])\*\*(?=[\d(])"), "^"),
    (re.compile(r"\\[()\[\],!;$]|\*\*|`"), ""),
)
_CURRENCY = re.compile(r"[$€£]")
_PRICE = re.compile(r"(?:\A|(?<=\A-))[$€£]+")
_LIST = re.compile(r"[(\[{][^()\[\]{}]*,")
_ANSWER_LINE = re.compile(
    r"(?:^|(?<=[.!?] ))(?:A:|Answer:|####|[^.\n]{0,60}\banswer is\b)[^\n]*\Z",
    re.MULTILINE | re.IGNORECASE,
)


def restyle(solution: str, style: Style, answer: str | None = None) -> str:
    """Convert a solution to one of `STYLES`; `answer` replaces the one that the text states.

    >>> print(restyle("He has 2 + 3 = 5 apples.", "equations", "5"))
    2 + 3 = 5
    #### 5
    """
    return STYLES[style](solution, answer)


def normalize_numbers(text: str) -> str:
    """Write all numbers in one way: 350,000 -> 350000, 38.0 -> 38, .5 -> 0.5.

    >>> normalize_numbers("350,000 and 38.0 * .5")
    '350000 and 38 * 0.5'
    """
    text = _LEADING_POINT.sub("0.", _THOUSANDS.sub("", text))
    return _TRAILING_ZEROS.sub(r"\1", text).translate(_SYMBOLS)


def bare_steps(solution: str) -> str:
    """A solution with one step per line and bare equations, without bullets and blank lines.

    >>> bare_steps("- $57/hour * 7 hours = $399")
    '57 * 7 = 399'
    """
    return _rewritten(solution, _EQUATION, _bare_equation)


def _rewritten(
    solution: str, pattern: re.Pattern[str], rewrite: Callable[[re.Match[str]], str]
) -> str:
    """A solution with one step per line, in which `rewrite` replaces what the pattern matches."""
    solution = _DIVIDED_BY_FRACTION.sub(r"*\2/\1", solution)  # 12÷2/3 is 12 divided by 2/3
    text = re.sub(r" +", " ", _TIMES.sub(" * ", normalize_numbers(solution)))
    lines = (re.sub(r"^ ?(?:- |\d+\. )", "", line).strip() for line in text.splitlines())
    return "\n".join(pattern.sub(rewrite, line) for line in lines if line)


def _plain(solution: str, answer: str | None) -> str:
    """Words and bare equations, the answer on a line of its own."""
    return _ended(_plain_steps(solution), solution, answer)


def _numbers(solution: str, answer: str | None) -> str:
    """Each line's numbers and the operators between them, and the answer."""
    found = (" ".join(_SIGNS.findall(line)) for line in _plain_steps(solution).splitlines())
    lines = (line.replace("( ", "(").replace(" )", ")") for line in found)
    return _ended("\n".join(line for line in lines if line), solution, answer)


def _equations(solution: str, answer: str | None) -> str:
    """The equations alone, one per line, and the answer; all numbers if there are no equations."""
    numbers = _numbers(solution, answer)
    steps, mark, final = numbers.rpartition(ANSWER_MARK)
    found = _EXPRESSION.findall(steps if mark else numbers)
    return "\n".join([*found, f"{mark}{final}"] if mark else found) if found else numbers


STYLES: dict[str, Callable[[str, str | None], str]] = {
    "as written": lambda solution, answer: solution,
    "plain": _plain,
    "numbers": _numbers,
    "equations": _equations,
}
"""What a model reads of a solution: the text as written, the text with bare equations, its numbers
and operators, or its equations. A number that is merely repeated from the question is in none of
the equations, so it explains nothing."""


def _plain_steps(solution: str) -> str:
    text = _REMARK.sub(r"\1", _without_markup(_ANSWER_LINE.sub("", solution.strip())))
    return re.sub(" +", " ", _rewritten(text, _CALCULATION, _bare_calculation))


def _without_markup(text: str) -> str:
    text = _CALCULATOR.sub("", text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _fraction(match: re.Match[str]) -> str:
    is_mixed = match.string[: match.start()][-1:].isdigit()  # 2\frac{3}{4}
    parts = (part if _ONE_TERM.fullmatch(part) else f"({part})" for part in match.groups())
    return f"{' ' if is_mixed else ''}{'/'.join(parts)}"


def _ended(steps: str, solution: str, answer: str | None) -> str:
    final = answer if answer is not None else extract_answer(solution)
    if final is None:
        return steps
    final = _without_markup(final)
    if not _LIST.search(final):  # (3,400) is a pair
        final = normalize_numbers(final)
    final = _PRICE.sub("", final.strip()).rstrip(". ")
    return f"{steps}\n{ANSWER_MARK} {final}".lstrip()


def _bare_equation(match: re.Match[str]) -> str:
    """An equation without its units and currency signs, operators between single spaces."""
    parts = _EQUATION_PART.findall(match.group())
    return "".join(
        _CURRENCY.sub("", number) + (f" {operator.strip()} " if operator.strip() else "")
        for number, operator in parts
    )


def _bare_calculation(match: re.Match[str]) -> str:
    """As `_bare_equation`; only the brackets that its value depends on are left."""
    if match[0] in "()":
        around = match.string[max(0, match.start() - 1) : match.end() + 1]
        return " " if re.fullmatch(r"\d.\d", around) else ""  # 5(4) is not 54
    text = ""
    for opened, amount, closed, operator in _CALCULATION_PART.findall(match[0]):
        text += "(" * len(opened) + _CURRENCY.sub("", amount) + ")" * len(closed)
        text += f" {operator.strip() or '*'} "  # 5(4) multiplies
    text = text.removesuffix(" * ")
    text = _MIXED.sub(lambda m: f"({int(m[1]) * int(m[3]) + int(m[2])} / {m[3]})", text)
    return " = ".join(map(_with_few_brackets, text.split(" = ")))


def _with_few_brackets(side: str) -> str:
    """A side of an equation without the brackets that its value does not depend on."""

    def smaller(group: re.Match[str]) -> str:
        before, inside, after = group.groups()
        outside = inside
        while "⟨" in outside:
            outside = _INNERMOST.sub("0", outside)
        operators = {*re.findall(r" ([-+*/^]) ", outside)}
        is_sum = bool(operators & {"+", "-"})
        is_needed = (
            (is_sum and (before in ("-", "*", "/") or after in ("*", "/")))
            or (operators & {"*", "/"} and before == "/")
            or ((operators or inside[:1] == "-") and "^" in (before, after))
        )
        space = " " if before else ""
        return f"{before}{space}⟨{inside}⟩" if is_needed else f"{before}{space}{inside}"

    while (shorter := _GROUP.sub(smaller, side)) != side:
        side = shorter
    return re.sub("[()]", "", side).translate(_KEPT)
