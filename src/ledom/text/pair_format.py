r"""Renders a question x and a solution y as one text, and says which tokens belong to which.

A pair is rendered as one text and encoded once, in reading order. Character offsets then say which
tokens are x and which are y. A token that straddles a boundary belongs to the later field. The
template's literals belong to neither field; both directions condition on them.

A step may be written in many ways: "$57/hour * 7 hours = $399", "57 x 7 = $<<57*7=399>>399",
"\(57 \times 7 = 399\)". A small model should see only one of them, so there are solution styles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from itertools import accumulate
from typing import Literal

from ledom.core.errors import InputError
from ledom.text.answers import extract_answer
from ledom.text.math import in_text
from ledom.text.math.expressions import read
from ledom.text.math.notation import join_groups, keyboard, normalize_numbers, with_few_brackets
from ledom.text.math.units import is_unit
from ledom.text.tokenizer import Encoding, Tokenizer

__all__ = ["ANSWER_MARK", "STYLES", "EncodedPair", "PairFormat", "Style", "bare_steps"]

Style = Literal["as written", "plain", "numbers", "equations"]

ANSWER_MARK = "####"
"""Precedes a solution's final answer."""

_DIVIDED_BY_FRACTION = re.compile(r"(?:÷ ?|/ )(\d+)/(\d+)")
_TIMES = re.compile(r"(?<=[\d%)]) ?[x×] ?(?=\(?[$€£]?\d)|(?<=\w) x (?=\(?[$€£]?\d)|×")
_FRACTION = re.compile(r"\$?\d+ ?/ ?\d+ [A-Za-z]")  # perhaps after a formula's delimiter
_DEPTHS = {"(": 1, "[": 1, ")": -1, "]": -1}
_TWO_EXPONENTS = re.compile(r"\^ ?\d+ ?\^")
_MIXED = re.compile(r"(\d+) (\d+) / (\d+)")
_REMARK = re.compile(r"(?<= )\(([^\W\d_]{2}[^()\d\\+*/^=]*)\)")
_ONE_TERM = re.compile(r"-?(?:[\d.]+|[A-Za-z]|\\[A-Za-z]+)")
_ARGUMENT = r"(?:\{([^{}]*)\}|(\d))"
_Rewrite = Callable[[re.Match[str]], str]


def _fraction(match: re.Match[str]) -> str:
    is_mixed = match.string[: match.start()][-1:].isdigit()  # 2\frac{3}{4}
    terms = (group for group in match.groups() if group is not None)
    parts = (term if _ONE_TERM.fullmatch(term) else f"({term})" for term in terms)
    return f"{' ' if is_mixed else ''}{'/'.join(parts)}"


_MARKUP: tuple[tuple[re.Pattern[str], str | _Rewrite], ...] = (
    (re.compile(r"<<[^<>\n]*>>"), ""),  # calculator annotations
    (re.compile(r"(?<=\d),\\!\s?(?=\d{3})"), ""),  # 11,\! 111
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "÷"),
    (re.compile(rf"\\[dt]?frac *{_ARGUMENT} *{_ARGUMENT}"), _fraction),
    (re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\boxed\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\u2212|(?<=[\d)%] )\u2013(?= [$(\d])"), "-"),
    (re.compile(r"[\xbc-\xbe\u2150-\u215e]"), lambda match: keyboard(match[0])),  # one half
    (re.compile(r"(?<=[\d)])\*\*(?=[\d(])"), "^"),
    (re.compile(r"\\[()\[\],!;$]|\*\*|`"), ""),
)
_COEFFICIENT = re.compile(  # \frac{1}{2}x is (1/2)x, as 1/2x may be 1/(2x)
    rf"(?<!\d)(?<!\d )(\\[dt]?frac *{_ARGUMENT} *{_ARGUMENT})"
    r"(?= ?(?:[A-Za-z](?![A-Za-z])|\(|\\(?:left|pi|sqrt|sin|cos|tan|ln|log|theta)(?![A-Za-z])))"
)
_CURRENCY = re.compile(r"[$€£]")
_PRICE = re.compile(r"(?:\A|(?<=\A-))[$€£]+")
_LIST = re.compile(r"[(\[{][^()\[\]{}]*,")
_ANSWER_LINE = re.compile(
    r"(?:^|(?<=[.!?] ))(?:A:|Answer:|####|[^.\n]{0,60}\banswer is\b)[^\n]*\Z",
    re.MULTILINE | re.IGNORECASE,
)


def bare_steps(solution: str) -> str:
    """Rewrite a solution with one step per line and bare equations, without bullets.

    >>> bare_steps("- $57/hour * 7 hours = $399")
    '57 * 7 = 399'
    """
    return _rewritten(solution, in_text.EQUATION, _bare_calculation)


def _rewritten(solution: str, pattern: re.Pattern[str], rewrite: _Rewrite) -> str:
    """Put one step per line, and replace each match of the pattern by `rewrite`."""
    solution = _DIVIDED_BY_FRACTION.sub(r"*\2/\1", solution)  # 12÷2/3 is 12 divided by 2/3
    text = re.sub(r" +", " ", _TIMES.sub(" * ", normalize_numbers(solution)))
    lines = [re.sub(r"^ ?(?:- |\d+\. )", "", line).strip() for line in text.splitlines()]
    joined = list(map(join_groups, lines))
    pairs = zip(lines, joined, strict=True)
    if any(line != one and _is_true(one) and not _is_true(line) for line, one in pairs):
        lines = joined  # 12 500 + 300 = 12 800
    return "\n".join(pattern.sub(rewrite, line) for line in lines if line)


def _is_true(line: str) -> bool:
    """Whether all of a line's calculations are true; False if it has none."""
    equations = list(map(_bare_calculation, in_text.CALCULATION.finditer(line)))
    return bool(equations) and all(map(_holds, equations))


def _holds(equation: str) -> bool:
    """Whether the sides of a bare equation that can be read are equal, up to rounding."""
    nodes = map(read, equation.split(" = "))
    first, *others = [n.value for n in nodes if n and n.value is not None] or [Fraction(0)]
    return all(abs(value - first) * 50 <= abs(first) for value in others)


def _style(of_steps: Callable[[str], str]) -> Callable[[str, str | None], str]:
    """A style: `of_steps` of the plain steps, then the answer on its own line."""
    return lambda solution, answer: _ended(of_steps(_plain_steps(solution)), solution, answer)


def _numbers(steps: str) -> str:
    """Each line's numbers and expressions."""
    lines = map(in_text.EXPRESSION_OR_NUMBER.findall, steps.splitlines())
    numbers = partial(re.findall, in_text.SIGNED)
    whole = ([p if _is_whole(p) else " ".join(numbers(p)) for p in line] for line in lines)
    return "\n".join(" ".join(line) for line in whole if line)


def _equations(steps: str) -> str:
    """Only the equations, one per line; all numbers if there are no equations."""
    return "\n".join(filter(_is_whole, in_text.EXPRESSION.findall(steps))) or _numbers(steps)


STYLES: dict[str, Callable[[str, str | None], str]] = {
    "as written": lambda solution, answer: solution,
    "plain": _style(str),
    "numbers": _style(_numbers),
    "equations": _style(_equations),
}
"""The solution styles: the text as written, the text with bare equations, only its numbers and
operators, or only its equations. A number that is merely repeated from the question is not in the
equations, so it explains nothing."""


def _plain_steps(solution: str) -> str:
    text = _REMARK.sub(r"\1", _without_markup(_ANSWER_LINE.sub("", solution.strip())))
    return re.sub(" +", " ", _rewritten(text, in_text.CALCULATION, _understood))


def _is_whole(calculation: str) -> bool:
    """Whether brackets close and no power has two exponents (2^43^4 is 2^4 * 3^4 in LaTeX)."""
    opened = sum(_DEPTHS.get(character, 0) for character in calculation)
    calculation = calculation.removeprefix("(" * opened)  # from a remark: (3 + 4 = 7 pens)
    depths = [*accumulate(_DEPTHS.get(character, 0) for character in calculation)]
    inside = depths[: len(calculation.rstrip(")]"))]
    return depths[-1] <= 0 <= min(inside, default=0) and not _TWO_EXPONENTS.search(calculation)


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def _ended(steps: str, solution: str, answer: str | None) -> str:
    final = answer if answer is not None else extract_answer(solution)
    if final is None:
        return steps
    final = _without_markup(_COEFFICIENT.sub(r"(\1)", final))
    if not _LIST.search(final):  # (3,400) is a pair
        final = normalize_numbers(final)
    final = _PRICE.sub("", final.strip()).rstrip(". ")
    return f"{steps}\n{ANSWER_MARK} {final}".lstrip()


def _understood(match: re.Match[str]) -> str:
    """The bare calculation, or the text as written if it is not complete.

    It also stays as written if it is false without its units and these are mixed, may be variables
    (3m, 2ab), or belong to a fraction (1/2 cup = 4 ounces).
    """
    calculation, after = match[0], match.string[match.end() :]
    if not _is_whole(calculation):
        return calculation
    units = {unit for _, _, unit, *_ in in_text.CALCULATION_PART.findall(calculation)}
    if attached := re.match("[A-Za-z]{1,9}", after):
        units.add(attached[0])
    if not any(len(u.strip(" /")) == 1 or (u[:1].isalpha() and not is_unit(u)) for u in units):
        units.discard("")
    equation = _bare_calculation(match)
    if (len(units) > 1 or (units and _FRACTION.match(calculation))) and not _holds(equation):
        return calculation
    return equation + " " * bool(attached)


def _bare_calculation(match: re.Match[str]) -> str:
    """Drop units, currency signs and brackets that do not affect the value."""
    text = ""
    for opened, amount, _, closed, operator in in_text.CALCULATION_PART.findall(match[0]):
        text += "(" * len(opened) + _CURRENCY.sub("", amount) + ")" * len(closed)
        text += f" {operator.strip() or '*'} "  # 5(4) multiplies
    text = _MIXED.sub(
        lambda m: f"({int(m[1]) * int(m[3]) + int(m[2])} / {m[3]})", text.removesuffix(" * ")
    )
    return " = ".join(map(with_few_brackets, text.split(" = ")))


_LITERAL = r"(?:(?!\{question\}|\{solution\})[\s\S])*"
_TEMPLATE = rf"{_LITERAL}\{{question\}}{_LITERAL}\{{solution\}}{_LITERAL}"


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a rendered pair and the special tokens around it, in reading order.

    `question` and `solution` are the [start, end) token spans of the fields; `offsets` are each
    token's characters within its own field (empty for special tokens and literals).
    """

    ids: list[int]
    question: tuple[int, int]
    solution: tuple[int, int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class PairFormat:
    """A template with the fields {question} and {solution}, in that order.

    >>> prompted = PairFormat("Q: {question} A: {solution}.")
    >>> prompted.render("2 + 2?", "4"), prompted.literals
    ('Q: 2 + 2? A: 4.', ('Q: ', ' A: ', '.'))
    >>> prompted.before_solution("2 + 2?"), prompted.after_question("4")
    ('Q: 2 + 2? A: ', ' A: 4.')
    """

    template: str = "{question}\n\n{solution}"
    style: Style = "as written"
    """The style that solutions are converted to before they are rendered: see `STYLES`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(_TEMPLATE, self.template):
            raise InputError(
                f"pair format {self.template!r} needs {{question}} and then {{solution}}, each once"
            )
        if self.style not in STYLES:
            raise InputError(f"solution style {self.style!r}; the styles are {', '.join(STYLES)}")

    @cached_property
    def literals(self) -> tuple[str, str, str]:
        """The text before the question, between the fields, and after the solution."""
        before, between, after = re.split(r"\{question\}|\{solution\}", self.template)
        return before, between, after

    def restyle(self, solution: str, answer: str | None = None) -> str:
        """Convert a solution to the style that the model reads; `answer` replaces its own answer.

        >>> print(PairFormat(style="equations").restyle("She has 3 + 4 = 7 pens."))
        3 + 4 = 7
        #### 7
        """
        return STYLES[self.style](solution, answer)

    def render(self, question: str, solution: str) -> str:
        """Render the pair as one text."""
        before, between, after = self.literals
        return f"{before}{question}{between}{solution}{after}"

    def before_solution(self, question: str) -> str:
        """The text that a forward model reads before it writes a solution."""
        before, between, _ = self.literals
        return f"{before}{question}{between}"

    def after_question(self, solution: str) -> str:
        """The text that a reverse model reads before it writes a question backwards."""
        _, between, after = self.literals
        return f"{between}{solution}{after}"

    def written_solution(self, text: str) -> str:
        """Extract the solution from a text that a forward model wrote after `before_solution`.

        >>> PairFormat("Q: {question} A: {solution}.").written_solution("4.")
        '4'
        """
        return text.removesuffix(self.literals[2])

    def written_question(self, text: str) -> str:
        """Extract the question from a text that a reverse model wrote before `after_question`.

        >>> PairFormat("Q: {question} A: {solution}.").written_question("Q: 2 + 2?")
        '2 + 2?'
        """
        return text.removeprefix(self.literals[0])

    def encode(
        self,
        tokenizer: Tokenizer,
        pairs: Sequence[tuple[str, str]],
        before: Sequence[int],
        after: Sequence[int],
    ) -> list[EncodedPair]:
        """Encode pairs, each between the special tokens `before` and `after`.

        >>> from ledom.text.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["2 + 2?"], 257)  # a token per byte, and EOS
        >>> eos = [tokenizer.eos_id]
        >>> (pair,) = PairFormat().encode(tokenizer, [("2 + 2?", "4")], eos, eos)
        >>> pair.question, pair.solution, len(pair.ids)  # EOS, 6 bytes, two line ends, 1 byte, EOS
        ((1, 7), (9, 10), 11)
        """
        encodings = tokenizer.encode_batch([self.render(q, s) for q, s in pairs])
        return [
            self._split(encoding, q, s, list(before), list(after))
            for encoding, (q, s) in zip(encodings, pairs, strict=True)
        ]

    def fit(
        self,
        tokenizer: Tokenizer,
        pairs: Sequence[tuple[str, str]],
        before: Sequence[int],
        after: Sequence[int],
        *,
        room: int,
    ) -> list[tuple[EncodedPair, str]]:
        """Like `encode`, but the end of a solution that does not fit is cut off.

        A pair fits if a model reads at most `room` tokens of it, which are all except the last.
        Returns each pair with the part of its solution that was kept; the pair is encoded as if
        that were the whole solution. Raises `InputError` for a question that leaves no room.

        >>> from ledom.text.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["2 + 2?"], 257)  # a token per byte, and EOS
        >>> eos, pairs = [tokenizer.eos_id], [("2 + 2?", "4"), ("2 + 2?", "2 + 2 = 4")]
        >>> [text for _, text in PairFormat().fit(tokenizer, pairs, eos, eos, room=12)]
        ['4', '2 +']
        """

        def fitted(pair: EncodedPair, question: str, solution: str) -> tuple[EncodedPair, str]:
            # A cut text may be encoded to more tokens than were kept.
            while (excess := len(pair.ids) - 1 - room) > 0:
                start, end = pair.solution
                if end - excess <= start:
                    raise InputError(
                        f"the question {question[:60]!r} has "
                        f"{pair.question[1] - pair.question[0]} tokens, which leave no room for a "
                        f"solution in the {room} tokens of the model's context; remove it"
                    )
                # Cut at the end of the last kept token: some tokenizers' offsets leave out the
                # space before a token, so the next token may start later.
                (_, kept_end), (cut_start, _) = pair.offsets[end - excess - 1 : end - excess + 1]
                solution = solution[: min(kept_end, cut_start, len(solution) - 1)]
                (pair,) = self.encode(tokenizer, [(question, solution)], before, after)
            return pair, solution

        encoded = self.encode(tokenizer, pairs, before, after)
        return [fitted(pair, *texts) for pair, texts in zip(encoded, pairs, strict=True)]

    def _split(
        self, encoding: Encoding, question: str, solution: str, before: list[int], after: list[int]
    ) -> EncodedPair:
        opening, between, _ = self.literals
        offsets = [(0, 0)] * len(encoding.ids)
        spans: list[tuple[int, int]] = []
        after_question = len(opening) + len(question) + len(between)
        for start, field in ((len(opening), question), (after_question, solution)):
            end = start + len(field)
            # A token belongs to the field of its last character, so a straddling one to the later.
            first, last = (sum(done <= at for _, done in encoding.offsets) for at in (start, end))
            for i in range(first, last):
                token_start, token_end = encoding.offsets[i]
                offsets[i] = (max(token_start, start) - start, min(token_end, end) - start)
            spans.append((len(before) + first, len(before) + last))
        return EncodedPair(
            before + encoding.ids + after,
            question=spans[0],
            solution=spans[1],
            offsets=[(0, 0)] * len(before) + offsets + [(0, 0)] * len(after),
        )
