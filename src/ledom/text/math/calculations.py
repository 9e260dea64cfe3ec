"""Writes the numbers and brackets of a solution's calculations in one form, for its styles.

"(12 500 + .50)" --normalize_numbers--> "(12500 + 0.50)" --with_few_brackets--> "12500 + 0.50"
"""

from __future__ import annotations

import re

from ledom.text.math.notation import GROUPED, SPACED_GROUPS

__all__ = ["join_groups", "normalize_numbers", "with_few_brackets"]

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Texts that group digits by spaces (12 500 + 500 = 13 000); no other number begins with 0.
_HAS_SPACED_GROUPS = re.compile(r"\d(?:[\xa0\u2009\u202f]\d{3}| 0\d\d)(?!\d)")
_TRAILING_ZEROS = re.compile(r"(\d)\.0+(?!\d)")
_LEADING_POINT = re.compile(r"(?<![\w.)])\.(?=\d)")
_SYMBOLS = str.maketrans({"÷": "/", "•": "- "})
_BRACKETED = re.compile(r"([-+*/^]?) ?\(([^()]*)\)(?= ?([-+*/^]?))")


def normalize_numbers(text: str) -> str:
    """Write all numbers the same way: 350,000 -> 350000, 38.0 -> 38, .5 -> 0.5.

    >>> normalize_numbers("350,000 and 38.0 * .5")
    '350000 and 38 * 0.5'
    """
    if _HAS_SPACED_GROUPS.search(text) or GROUPED.fullmatch(text):
        text = join_groups(text)
    text = _LEADING_POINT.sub("0.", _THOUSANDS.sub("", text))
    return _TRAILING_ZEROS.sub(r"\1", text).translate(_SYMBOLS)


def join_groups(text: str) -> str:
    """Join all digits that spaces may group.

    >>> join_groups("12 500 + 1 500")
    '12500 + 1500'
    """
    return SPACED_GROUPS.sub("", text)


def with_few_brackets(side: str) -> str:
    """Drop the brackets in a side of an equation that do not affect its value.

    >>> with_few_brackets("(3 * 4) - (5 + 6)")
    '3 * 4 - (5 + 6)'
    """

    def smaller(group: re.Match[str]) -> str:
        before, inside, after = group.groups()
        outside = inside
        while "⟨" in outside:
            outside = re.sub("⟨[^⟨⟩]*⟩", "0", outside)
        operators = {*re.findall(r" ([-+*/^]) ", outside)}
        is_sum = bool(operators & {"+", "-"})
        is_needed = (
            (is_sum and (before in ("-", "*", "/") or after in ("*", "/")))
            or (operators & {"*", "/"} and before == "/")
            or ((operators or inside[:1] == "-") and "^" in (before, after))
        )
        space = " " if before else ""
        return f"{before}{space}⟨{inside}⟩" if is_needed else f"{before}{space}{inside}"

    while (shorter := _BRACKETED.sub(smaller, side)) != side:
        side = shorter
    return re.sub("[()]", "", side).replace("⟨", "(").replace("⟩", ")")
