r"""Patterns of numbers and formulas inside a text, where words surround them.

    "The sum is x + 3, or 1,250 in all." holds the formula "x + 3" and the number "1,250"

They find candidates for an answer; `expressions` reads one that stands alone.
"""

from __future__ import annotations

import re

__all__ = ["FORMULA", "GROUP_SPACE", "NUMBER", "PART"]

GROUP_SPACE = r"[ \xa0\u2009\u202f]"
"""A space that may group digits: 12 000."""

_CURRENCY = r"(?:US\$|Rs\.?|[$€£¥₹₱₩])"
_COMMA = rf"(?:,|\{{,\}}|\\[, ]|{GROUP_SPACE})"  # 12,000 or 12 000
_UNSIGNED = (
    rf"(?:[0-9]{{1,3}}(?:{_COMMA}[0-9]{{3}}){{1,9}}(?!{_COMMA}?[0-9])(?:\.[0-9]+)?"
    r"|[0-9]{1,2}(?:,[0-9]{2}){1,9},[0-9]{3}(?!,?[0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)

_PI = r"(?:π|\\pi\b)"
_RAISED = "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"
_REPEATING = r"\\overline\s?\{[0-9]+\}|(?<=\.)\([0-9]+\)|(?<=\.[0-9])\([0-9]+\)"
_TIME = r"(?:(?::[0-9]+)+|(?:\s:\s[0-9]+)+)?(?:\s?[ap]\.?m\b)?"
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^])(?<!\^[-{])(?<!\^\{-)"  # not the exponent of m^2
    # "5 - 3" subtracts
    r"(?:(?<![)\]])(?<![0-9)\]]\s)(?:[-\u2212]|(?:±|\\pm)\s?)|(?<=[=:]\s)[-\u2212]\s)?"
    rf"(?:{_CURRENCY}\s?[-\u2212]?)?(?:[0-9]{{1,9}}\s(?=[0-9]{{1,9}}/))?{_UNSIGNED}"
    rf"(?:\.?(?:{_REPEATING})|_(?:[0-9]{{1,2}}|\{{[0-9]{{1,2}}\}})|[₀-₉]{{1,2}}"
    rf"|(?:/[0-9]+)+|(?:[-\u2013][0-9]+)+|{_TIME})"  # 5/6/2020 and 10-12 are each one answer
    r"(?:[eE][-+]?[0-9]{1,4}(?![\w.]\w)"
    rf"|(?:\s?(?:[x*×]|\\times|\\cdot)\s?10)?(?:\^\{{?-?[0-9]+\}}?|{_RAISED})"
    rf"|\s?\\?%|\s?{_PI}(?:/[0-9]+)?)?"
    r"(?:\s?(?:hundred|thousand|million|billion|trillion)\b)?"
)
_GROUP = r"\{(?:[^{}]|\{[^{}]{0,99}\}){1,99}\}"
_VALUE = rf"[-\u2212]?{_UNSIGNED}(?:/[0-9]+)?"
_ROOT = r"[A-Za-z]\s?=\s?[-\u2212]?[0-9./]+"
_RELATION = r"\s?(?:[<>]=?|[≤≥]|\\(?:[lg](?:eq?|t))(?![A-Za-z]))\s?"
_LATEX = (
    r"(?:\\(?:[dt]?frac|sqrt|[dt]?binom)"
    rf"(?:\[[0-9]\])?\s?(?:{_GROUP}|[0-9]){{1,2}}"
    rf"|√\s?(?:[0-9]+|\([^()\n]{{1,99}}\))|(?<![^\W\d_\\])sqrt\([^()\n]{{1,99}}\)|{_PI}"
    rf"|\\(?:ln|log|sin|cos|tan)(?![A-Za-z])(?:_(?:[0-9]+|{_GROUP}))?\s?)"
)
_MEMBER = rf"[-\u2212]?(?:∞|\\infty|[0-9]{{0,9}}{_LATEX}(?:/[0-9]+)?|{_UNSIGNED}(?:/[0-9]+)?)"
_BRACKETED = (
    rf"(?:[(\[]|\\\{{|(?<![\w^_}}\\])\{{){_MEMBER}(?:,\s?{_MEMBER}){{1,20}}(?:[)\]]|\\?\}})"
)
_FACTOR = (
    rf"(?:{_UNSIGNED}|{_LATEX}|(?<![^\W\d_])(?<!['\u2019])[a-z](?![^\W\d_])"
    r"|\((?:[^()\n]|\([^()\n]{0,99}\)){1,199}\))"
    rf"(?:\^(?:{_GROUP}|-?[0-9]+|[a-z])|_(?:[0-9]|{_GROUP})|{_RAISED})?"
)
_JOINT = (
    r"(?:\s?(?:[-+\u2212*·×/±]|\\(?:cdot|times|pm|mp)(?![A-Za-z]))\s?|(?<=[0-9])\s(?=\\(?!text))"
    r"|(?<=[0-9])\s(?=[a-z]\^)|)"
)
_SUM = rf"(?<![\w.\\^_{{])[-\u2212±]?{_FACTOR}(?:{_JOINT}{_FACTOR}){{0,40}}"
FORMULA = re.compile(
    r"\$\$?([^$\n]{1,400})\$|\\[(\[]((?:[^\\]|\\(?![()\[\]])){1,400})\\[)\]]"
    rf"|({_BRACKETED}(?:\s?(?:∪|\\cup)\s?{_BRACKETED}){{0,9}})"
    rf"|({_ROOT}(?:(?:,|,?\s(?:or|and))\s{_ROOT}){{1,20}}|{_ROOT}\sor\s{_VALUE}(?!\w))"
    rf"|(?<![\w.])((?:{_VALUE}{_RELATION})?[A-Za-z]{_RELATION}{_VALUE})"
    rf"|(?P<sum>{_SUM})"
)
PART = re.compile(rf"-?[0-9]{{0,20}}{_LATEX}(?:/[0-9]+)?")
