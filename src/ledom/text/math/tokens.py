r"""Splits a `plain_text` into tokens.

    "\frac{3}{4}" --tokens--> \frac { 3 } { 4 }

The tokens cover the whole text: only white space and LaTeX's commands for spacing and size are
skipped. Their meaning is left to `expressions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ledom.text.math.spelling import GREEK, QUOTED, NotUnderstood, words

__all__ = ["FUNCTIONS", "Token", "refuse_dashes", "tokens"]


@dataclass(frozen=True, slots=True)
class Token:
    r"""A piece of an answer.

    >>> [(token.kind, token.text) for token in tokens(r"\frac12")]
    [('command', '\\frac'), ('number', '12')]
    """

    kind: str
    r"""number, name (one letter or a Greek one), word, command ("\frac", "sin") or sign."""
    text: str
    spaced: bool = False
    """Whether it follows white space."""
    quoted: bool = False
    r"""Whether it is inside \text{...}."""


_DIGITS = (
    r"(?:[1-9][0-9]{0,2}(?:[,‚][0-9]{3}){1,99}(?![,‚]?[0-9])"  # 1,234,567
    r"|[1-9][0-9]?(?:[,‚][0-9]{2}){1,99}[,‚][0-9]{3}(?![,‚]?[0-9])"  # 12,34,567
    r"|[0-9]+)"
)
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(
    rf"(?:{_DIGITS}(?:\.(?:[0-9]+|(?=\\overline|\\bar|\([0-9]+\)))|\.(?![\w(\\]))?"
    r"|\.(?:[0-9]+|(?=\\overline|\\bar)))"
    r"(?:(?<=[.0-9])\\(?:overline|bar)\s?\{[0-9]+\}|(?<=\.)\([0-9]+\)|(?<=\.[0-9])\([0-9]+\))?"
    r"(?:[eE][+-]?[0-9]{1,4}(?![\w.]))?"
    r"(?:\s?_\s?(?:\{\s?[0-9]{1,2}\s?\}|[0-9]{1,2}))?"
)
_PLAIN_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")  # if a comma separates numbers
_BASED = re.compile(r"(?=[0-9A-F]{2})[0-9A-F]*[A-F][0-9A-F]*\s?_\s?\{?\s?(?:1[1-6])\s?\}?")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CURRENCY = re.compile(
    r"(?:US)?\\\$|US\$|R\\?\$(?=\s?[0-9])|Rs\.?(?![A-Za-z])"
    r"|(?:USD|EUR|GBP|JPY|INR|KRW)(?=\s?-?[0-9.])|[$€£¥₹₱₩₽₺₦₪₴฿₫]"
)
_HYPHEN = r"(?:(?<=[^\W\d_]{3})-|-(?=[^\W\d_]{3}))"  # T-shirt; elsewhere it subtracts: x-y
_WORD = re.compile(rf"[^\W\d_]+(?:(?:['’.]|{_HYPHEN})[^\W\d_]+)*['’]?\.?")
_SIGN = re.compile(r"\\\\|\\[{}|%]|\*\*|<=|>=|!=|[-+*/^_(){}\[\]|,;:=<>!%°&.¢]")
FUNCTIONS = words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp sqrt max min gcd lcm"
    " cis"
)
"""Functions that are recognized with and without a backslash."""
_UNIT_FUNCTIONS = words("min sec")  # minutes and seconds if no argument follows
_NO_ARGUMENT = re.compile(r"\s?(?:\Z|[,;/)}\]=]|(?:and|or|per|a|an|each)\b)")
_LETTER_NAMES = {"π": r"\pi", "pi": r"\pi"}


def tokens(text: str) -> list[Token]:
    """The tokens of a `plain_text`; raises `NotUnderstood` unless they cover it.

    >>> [token.text for token in tokens("3 + x")]
    ['3', '+', 'x']
    """
    found: list[Token] = []
    commas_are_spaced = ", " in text
    depth = place = 0
    spaced = False
    quoted_until = -1
    while place < len(text):
        if match := _SPACE.match(text, place):
            place, spaced = match.end(), True
            continue
        if (match := QUOTED.match(text, place)) is not None:
            place, spaced, quoted_until = match.start(2), True, match.end(2)
            continue
        if place == quoted_until:
            place, quoted_until = place + 1, -1  # its closing brace
            continue
        grouped = depth == 0 or commas_are_spaced
        kind, piece, end = _piece(text, place, grouped=grouped)
        token = Token(kind, piece, spaced, quoted=place < quoted_until)
        place, spaced = end, False
        depth += token.text in ("(", "[", r"\{")
        depth -= token.text in (")", "]", r"\}")
        found.append(token)
    return found


def _piece(text: str, place: int, *, grouped: bool) -> tuple[str, str, int]:
    """The kind, text and end of the token at a position."""
    if match := _BASED.match(text, place):
        return "number", match[0], match.end()
    if match := _NUMBER.match(text, place):
        if not grouped and "," in match[0]:
            match = _PLAIN_NUMBER.match(text, place) or match
        return "number", match[0], match.end()
    if match := _CURRENCY.match(text, place):
        return "currency", match[0].replace("\\", "").rstrip("."), match.end()
    if match := _COMMAND.match(text, place):
        name = match[0][1:]
        is_plain = name in GREEK or name in FUNCTIONS
        return "name" if name in GREEK else "command", name if is_plain else match[0], match.end()
    if match := _WORD.match(text, place):
        word = match[0].rstrip(".") or match[0]
        is_unit = word in _UNIT_FUNCTIONS and _NO_ARGUMENT.match(text, match.end())
        if word in _LETTER_NAMES or (word in FUNCTIONS and not is_unit):
            return "command", _LETTER_NAMES.get(word, word), match.end()
        is_name = len(word) == 1 and not "\u2e80" <= word <= "\uffff"  # not Chinese
        return "name" if is_name else "word", word, match.end()
    if match := _SIGN.match(text, place):
        sign = match[0] if len(match[0]) == 1 else match[0].replace(r"\%", "%").replace("**", "^")
        return "sign", sign, match.end()
    raise NotUnderstood(text[place])


def refuse_dashes(item: list[Token]) -> None:
    """Raise `NotUnderstood` for numbers joined by dashes: a range, a date, a phone number, 1-1/2.

    >>> refuse_dashes(tokens("10 - 12"))
    """
    if any(token.spaced for token in item[1:]):
        return
    is_chain = all(token.kind == "number" or token.text == "-" for token in item)
    if len(item) > 2 and item[0].kind == "number" and is_chain:
        raise NotUnderstood("numbers joined by dashes")
    texts = [token.text for token in (item[1:] if item[0].text == "-" else item)]
    is_number = len(texts) == 5 and all(map(str.isdigit, texts[::2]))
    if is_number and texts[1::2] == ["-", "/"] and int(texts[2]) < int(texts[4]):
        raise NotUnderstood("a difference or a mixed number")
