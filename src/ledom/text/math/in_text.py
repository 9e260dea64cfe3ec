r"""Patterns for numbers and formulas inside a text, surrounded by words.

    "The sum is x + 3, or 1,250 in all." holds the formula "x + 3" and the number "1,250"

They find candidate answers, which `expressions` parses, and the calculations of a solution.
"""

from __future__ import annotations

import re

__all__ = [
    "ANSWER_MARK",
    "CALCULATION",
    "CALCULATION_PART",
    "DENOMINATORS",
    "EQUATION",
    "EXPRESSION",
    "EXPRESSION_OR_NUMBER",
    "FORMULA",
    "GROUP_SPACE",
    "NUMBER",
    "ORDINALS",
    "PART",
    "SIGNED",
    "SPELLED",
    "SPELLED_FRACTION",
    "SPELLED_OUT",
    "WORKED_SOLUTION",
    "spelled",
    "spelled_fraction",
]

ANSWER_MARK = re.compile(
    r"(?i:(?:(?<!/)\b|_)(?:answers?(?: (?:here|option|choice|letter))?|ans"
    r"|(?:correct|right|best) (?:option|choice|response|statement|letter)s?)\b"
    r"(?: (?:to|of) (?:the|this|your|our) (?:\w+ ){0,3}?(?:question|problem)\b)?[\\*_\"'`}\s]{0,8}"
    r"(?:(?:is|are|was|(?:would|must|should|will|has to|turns out to) be|equals)\b|[:=])"
    r"|^(?:\#{1,6} )?(?:(?:final|correct) )?answer[ \t]*$"  # a heading
    r"|(?=[答正정aroо])(?:(?:答案|答え|正解|正确选项|정답|antwort|respuesta|réponse|risposta|resposta|ответ)"
    r"(?: (?:correcta|correcte|corretta|correta|final|finale))?"
    r"|(?:opción|opção|opzione|alternativa) (?:correcta|correta|corretta))[\s*]{0,3}"
    r"(?:[:=】选是为은は]|(?:ist|es|est|è|é|lautet)\b))"
    r"|^[ \t*]{0,8}A:(?=\s)",
    re.MULTILINE,
)
WORKED_SOLUTION = re.compile(  # what "Answer:" begins, if it is not the answer itself
    r"(?s:[\s:*]*(?:Step )?1[.:)]\s.*?\n[ \t]*(?:Step )?2[.:)]\s)"
    r"|(?=[^\n=0-9]*[0-9])[^\n=]*=[^\n]*\n(?!\s*(?:[Cc]heck|[Vv]erif))(?=[^\n=0-9]*[0-9])[^\n=]*="
)

GROUP_SPACE = r"[ \xa0\u2009\u202f]"
"""A space that may group digits: 12 000."""

_CURRENCY = r"(?:US\$|Rs\.?|[$€£¥₹₱₩])"
_COMMA = rf"(?:,(?:\\!\s?)?|\{{,\}}|\\[, ]|{GROUP_SPACE})"  # 12,000 or 12 000
_UNSIGNED = (
    rf"(?:[0-9]{{1,3}}(?:{_COMMA}[0-9]{{3}}){{1,9}}(?!{_COMMA}?[0-9])(?:\.[0-9]+)?"
    r"|[0-9]{1,2}(?:,[0-9]{2}){1,9},[0-9]{3}(?!,?[0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)

_PI = r"(?:π|\\pi\b)"
_RAISED = "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"
_REPEATING = r"\\overline\s?\{[0-9]+\}|(?<=\.)\([0-9]+\)|(?<=\.[0-9])\([0-9]+\)"
_TIME = r"(?:(?::[0-9]+)+|(?:\s:\s[0-9]+)+)?(?:\s?[aApP]\.?[mM]\b)?"
_POWER = rf"(?:(?:\^|\*\*)(?:\{{?[-\u2212]?[0-9]+\}}?|\([-\u2212]?[0-9]+\))|{_RAISED})"
_MINUTES = r"\s(?:hours?|hrs?),?(?:\sand)?\s[0-9]+\s(?:minutes?|mins?)\b"  # of 2 hours 30 minutes
_SHARE = r"\sand\s(?:an?|one)[\s-](?:half|third|quarter|fourth|fifth|sixth|eighth|tenth)\b"
NUMBER = re.compile(
    r"(?=[-\u2212\u2013±\\$€£¥₹₱₩UR.0-9])"  # a faster search: few characters begin a number
    # not the 2 of m^2, m^(-2), m**2, H_{2}O or mod 2
    r"(?<![A-Za-z0-9_.^])(?<!\^[-\u2212{(])(?<!\^[{(][-\u2212])(?<![\w)]\*\*)(?<!_\{)"
    r"(?<!mod )(?<!mod\{)"
    # "5 - 3" subtracts; a dash before a number is a minus sign
    r"(?:(?<![)\]])(?<![0-9)\]]\s)(?:[-\u2212\u2013]|(?:±|\\pm)\s?)|(?<=[=:]\s)[-\u2212]\s)?"
    rf"(?:{_CURRENCY} ?[-\u2212]?)?(?:[0-9]{{1,9}}[\s-](?=[0-9]{{1,9}}/))?{_UNSIGNED}"
    rf"(?:\.?(?:{_REPEATING})|_(?:[0-9]{{1,2}}|\{{[0-9]{{1,2}}\}})|[₀-₉]{{1,2}}"
    rf"|(?:/[0-9]+)+|(?:[-\u2013][0-9]+)+"  # 5/6/2020 and 10-12 are each one answer
    rf"|\sout of\s{_UNSIGNED}|{_TIME})"
    r"(?:[eE][-+]?[0-9]{1,4}(?![\w.]\w)"
    rf"|(?:\s?(?:[x*×·⋅∙]|\\times|\\cdot)\s?10)?{_POWER}"
    rf"|\s?\\?%|\s?{_PI}(?:/[0-9]+)?)?"
    rf"(?:\s?(?:hundred|thousand|million|billion|trillion|quadrillion)\b|{_SHARE}|{_MINUTES})?"
)
_GROUP = r"\{(?:[^{}]|\{[^{}]{0,99}\}){1,99}\}"
_VALUE = rf"[-\u2212]?{_UNSIGNED}(?:/[0-9]+)?"
_ROOT = r"[A-Za-z]\s?=\s?[-\u2212]?[0-9./]+"
_RELATION = r"\s?(?:[<>]=?|[≤≥]|\\(?:[lg](?:eq?|t))(?![A-Za-z]))\s?"
_LATEX = (
    r"(?:\\(?:(?:[dtcs]|nice)?frac|sqrt|[dt]?binom)"
    rf"(?:\[[0-9]\])?\s?(?:{_GROUP}|[0-9]){{1,2}}"
    rf"|√\s?(?:[0-9]+|\([^()\n]{{1,99}}\))|(?<![^\W\d_\\])sqrt\([^()\n]{{1,99}}\)|{_PI}"
    rf"|\\(?:ln|log|sin|cos|tan)(?![A-Za-z])(?:_(?:[0-9]+|{_GROUP}))?\s?)"
)
_MEMBER = rf"[-\u2212]?(?:∞|\\infty|[0-9]{{0,9}}{_LATEX}(?:/[0-9]+)?|{_UNSIGNED}(?:/[0-9]+)?)"
_BRACKETED = (
    rf"(?:[(\[\]]|\\\{{|(?<![\w^_}}\\])\{{){_MEMBER}(?:,\s?{_MEMBER}){{1,20}}(?:[)\]\[]|\\?\}})"
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
    r"(?<!\\)(?:\$\$((?:[^$\\]|\\[^$]){1,400})\${1,2}|\$((?:[^$\n\\]|\\[^\n]){1,400})\$)"
    r"|\\[(\[]((?:[^\\]|\\(?![()\[\]])){1,400})\\[)\]]"
    rf"|({_BRACKETED}(?:\s?(?:∪|U|\\cup)\s?{_BRACKETED}){{0,9}})"
    rf"|({_ROOT}(?:(?:,|,?\s(?:or|and))\s{_ROOT}){{1,20}}|{_ROOT}\sor\s{_VALUE}(?!\w))"
    rf"|(?<![\w.])((?:{_VALUE}{_RELATION})?[A-Za-z]{_RELATION}{_VALUE})"
    rf"|(?P<sum>{_SUM})"
)
PART = re.compile(rf"-?[0-9]{{0,20}}{_LATEX}(?:/[0-9]+)?")

# ---- numbers in words ----

_ONES = """
zero one two three four five six seven eight nine ten
eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SPELLED = {
    **dict(zip(_ONES.split(), range(20), strict=True)),
    **dict(zip(_TENS.split(), range(20, 100, 10), strict=True)),
}
"""The numbers that one word spells."""
_ONE = "|".join(_ONES.split())
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS.split())})(?:[- ](?:{_ONE}))?|{_ONE})"
SPELLED_OUT = re.compile(  # all of a text, or followed by a word: twenty-one apples
    r"(?:\A|(?<=\{)|(?<=\Anegative )|(?<=\Aminus ))"
    rf"((?:(?:{_ONE}|a) hundred(?: and)?(?: {_BELOW_100})?|{_BELOW_100}))"
    r"(?=\s[^\W\d_]|\s?[%}]|\Z)",
    re.IGNORECASE,
)


def spelled(words: str) -> int:
    """The number below 1,000 that words spell.

    >>> spelled("a hundred and twenty-one")
    121
    """
    hundreds, found, rest = words.lower().rpartition("hundred")
    many, few = (sum(SPELLED.get(w, 0) for w in re.split("[- ]", p)) for p in (hundreds, rest))
    return few + bool(found) * 100 * (many or 1)


_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
ORDINALS = dict(zip(_ORDINALS.split(), range(3, 13), strict=True))
"""The numbers of ordinals that name parts of a whole too."""
DENOMINATORS = {
    "half": 2,
    "halve": 2,
    "quarter": 4,
    **ORDINALS,
    **{f"{word}th": SPELLED[word] for word in _ONES.split()[13:]},
    **{f"{word[:-1]}ieth": SPELLED[word] for word in _TENS.split()},
    "hundredth": 100,
    "thousandth": 1000,
    "millionth": 10**6,
}
"""The parts of a whole that words name, without the s of the plural."""
_DENOMINATOR = "|".join(DENOMINATORS)
SPELLED_FRACTION = re.compile(  # a half, two thirds, 3 and a half hours; not the ordinal "third"
    rf"(?:\A|(?<=\{{))(?:(?:({_BELOW_100}|[0-9]{{1,9}}) and )?({_ONE}|an?)[- ](?={_DENOMINATOR})"
    rf"|(?=half))({_DENOMINATOR})s?(?(1)(?=\W|\Z)|(?=\}}|\Z|\sof\b))",
    re.IGNORECASE,
)


def spelled_fraction(found: re.Match[str]) -> str:
    """The fraction in a match of `SPELLED_FRACTION`, in digits.

    >>> spelled_fraction(SPELLED_FRACTION.match("Three and a half"))
    '3 1/2'
    """
    whole = found[1] or ""
    whole = f"{whole if whole[:1].isdigit() else spelled(whole)} " if whole else ""
    over = SPELLED.get((found[2] or "").lower(), 1)
    return f"{whole}{over}/{DENOMINATORS[found[3].lower()]}"


# ---- calculations, for the styles of solutions ----

_PRICED = r"[$€£]?\d{1,15}(?:\.\d{1,9})?%?"
_VARIABLE = r"(?![aghlLms])[^\W\d_](?![^\W\d_])"  # one letter, unless it is a unit or "a"
_WORD = rf"(?!{_VARIABLE})[A-Za-z][A-Za-z'/]*(?:\^\d)?"
_UNIT = rf"(?:[ /]{_WORD}(?:[ -]{_WORD}){{0,5}}|(?<=\d){_WORD})?"
EQUATION = re.compile(  # of bounded length, so that any text takes linear time
    rf"(?<![\d.]){_PRICED}{_UNIT}(?: ?[-+*/] ?{_PRICED}{_UNIT}){{1,20}} ?= ?-?{_PRICED}"
)
# A calculation: as an equation, and with brackets, signs, powers, fractions, and sides in between.
_AMOUNT = rf"(?:[$€£]?\d{{1,9}} (?=\d{{1,2}}/\d))?{_PRICED}"  # 2 1/2
_QUANTITY = rf"[(\[]{{0,9}}-?{_AMOUNT}{_UNIT}(?:[)\]]{{1,9}}{_UNIT})?"
_QUANTITIES = rf"{_QUANTITY}(?:(?: ?[-+*/^] ?|(?=[(\[])){_QUANTITY})"
# Not part of a longer expression: the 3 + 4 of x + 3 + 4, 3 + 4x, 2 * -(3 + 4), (3 + 4)^n,
# 40 + 30 of 6:40 + 30, 3 + 4 = 5 of 3 + 4 = 5!, and 9 / 4 = 2 of 9 / 4 = 2 remainder 1.
_AFTER_FUNCTION = (  # the 8 + 1 of \log_2 8 + 1, \sqrt 8 + 1, \cdots 8 + 1
    r"(?<!_\d )(?<!_\d\d )(?<!_\{\d\} )(?<!_\{\d\d\} )(?<!\bln )(?<!\b(?:log|sin|cos|tan|mod) )"
    r"(?<!\\(?:cot|sec|csc|exp|gcd|lcm|max|min|sum) )(?<!\b(?:sqrt|sinh|cosh|tanh|bmod|prod) )"
    r"(?<!\\dots )(?<!\\[clv]dots )(?<!\\dots[a-z] )"
)
_BEGINS = rf"(?<![\w.\\+*/^)(}}{{\]\[-])(?<![-+*/^(}}{{\[] )(?!(?<=\d:)\d\d(?!\d)){_AFTER_FUNCTION}"
_FACTOR_BEFORE = (  # the brackets of 5 (3 + 4) and f (3 + 4), but not of "that's (3 + 4)"
    r"(?:(?<=[\d)!] )|(?<=\b[b-zB-HJ-Z] )(?<!['\u2019]\w ))[(\[][^()\n=]{0,99}[)\]]"
)
_CONTINUES = (
    r"(?: ?[+*^\\]| ?/(?![^\W\d_]{2})| - |-[^\W\d]|-[\\({\[]|-[$\d.]+ ?[-+*/^=\\]|! ?[-+*/=])"
)
_ENDS = rf"(?![\d_({{\[]|{_VARIABLE}|\.[\d\\]|:\d| remainder| ?R ?\d|[A-Za-z]{{0,9}}{_CONTINUES})"
_LAST = rf"[(\[]{{0,9}}-?{_AMOUNT}[)\]]{{0,9}}"
CALCULATION = re.compile(
    rf"{_BEGINS}(?!{_FACTOR_BEFORE}){_QUANTITIES}{{1,20}} ?= ?(?:{_QUANTITIES}{{0,20}} ?= ?){{0,9}}"
    rf"(?:{_QUANTITY}(?: ?[+*/^] ?| - |(?=[(\[]))){{0,20}}{_LAST}{_ENDS}"
)
CALCULATION_PART = re.compile(
    rf"([(\[]*)(-?{_AMOUNT})({_UNIT})(?:([)\]]+){_UNIT})?( ?[-+*/^=] ?|(?=[(\[])|$)"
)
SIGNED = r"(?:(?:(?<=[-+*/^=\d%)] )|(?<=[=*/(])|(?<![^\n]))-)?\d+(?:\.\d+)?%?"  # 5 - 8 = -3
_TERM = rf"\({{0,9}}{SIGNED}\){{0,9}}"
EXPRESSION = re.compile(  # an expression, with its result if there is one, or 17 (11 + 6)
    rf"{_BEGINS}(?!{_FACTOR_BEFORE} ?[-+*/^=]){_TERM}(?: [-+*/^] {_TERM})+"
    rf"(?: = {_TERM}(?: [-+*/^] {_TERM})*)*"
    rf"(?![A-Za-z]){_ENDS}"
)
EXPRESSION_OR_NUMBER = re.compile(rf"{EXPRESSION.pattern}|{SIGNED}")
