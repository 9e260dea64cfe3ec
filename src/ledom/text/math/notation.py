r"""Converts an answer to one notation, with one spelling per sign, and splits it into tokens.

    "$\dfrac{3}{4}$" --plain_text--> "\frac{3}{4}" --tokens--> \frac { 3 } { 4 }

`tokens` covers the whole text or raises `NotUnderstood`: it skips only white space and LaTeX
commands for spacing and size. The meaning of tokens is left to `expressions`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import partial

from ledom.text.math.in_text import GROUP_SPACE

__all__ = [
    "FUNCTIONS",
    "GREEK",
    "MAX_CHARS",
    "NotUnderstood",
    "Token",
    "bare",
    "fold_case",
    "join_groups",
    "keyboard",
    "normalize_numbers",
    "plain_text",
    "text_key",
    "tokens",
    "with_few_brackets",
    "words",
]

MAX_CHARS = 400
"""Longer answers are not parsed, so that parsing and exact arithmetic stay cheap."""

_QUOTES = "\u2018\u2019\u201c\u201d\u201e\u201f\xab\xbb\u2039\u203a\u300c\u300d\u300e\u300f"
MARKUP = " \t\r\n*_`\"'" + _QUOTES
"""Characters that may surround an answer."""


class NotUnderstood(Exception):  # noqa: N818  (no error: such a text is compared as text)
    """Raised if part of a text cannot be parsed or has no value."""


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set.

    >>> sorted(words("b a b"))
    ['a', 'b']
    """
    return frozenset(text.split())


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


_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_INVISIBLE = [0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F)]
_INVISIBLE += [*range(0x2060, 0x2070), 0xFEFF]  # zero-width characters and writing direction marks
_KEYBOARD = str.maketrans(
    {
        **dict.fromkeys(map(chr, _INVISIBLE)),
        **{chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)},  # full width
        **{
            chr(code): " " + unicodedata.normalize("NFKC", chr(code)).replace("\u2044", "/")
            for code in [0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F)]  # one half, two thirds, ...
        },
        **dict(zip("\u066a\u066b\u066c\u2236\u3000\xb5", "%.,: \u03bc", strict=True)),
        "\u3001": ", ",  # Chinese and Japanese
        "\u3002": ". ",
    }
)
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_SIGNS = "×·⋅∙∗≤≥≠≈π∞∪∩∈∅±∓√"
_SIGN_NAMES = "times cdot cdot cdot cdot leq geq neq approx pi infty cup cap in emptyset pm mp sqrt"
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63", "-"),  # minus and dashes
        **{chr(code): " " for code in [*range(0x20), 0x7F]},
        **dict.fromkeys("\u202f\u2009\xa0", r"\,"),  # thin spaces group digits
        **{sign: rf"\{name} " for sign, name in zip(_SIGNS, _SIGN_NAMES.split(), strict=True)},
        **dict.fromkeys("÷∕\u2044", "/"),
        **dict.fromkeys("°º", "^\\circ "),
    }
)
_SUPERSCRIPT_RUN = re.compile(rf"[{''.join(_SUPERSCRIPTS)}]+")
_SUBSCRIPT_RUN = re.compile(rf"[{''.join(_SUBSCRIPTS)}]+")
_SPELLINGS = (
    (re.compile(r"\A~\s?(?=[$\\.\d-])"), r"\\approx "),  # elsewhere it is LaTeX's space
    (re.compile(r"\\[dtc](frac|binom)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\(?:ge|geqslant)(?![A-Za-z])"), r"\\geq"),
    (re.compile(r"\\(?:le|leqslant)(?![A-Za-z])"), r"\\leq"),
    (re.compile(r"\\ne(?![A-Za-z])"), r"\\neq"),
    (re.compile(r"(?<![A-Za-z])(?:[Oo]ption|[Cc]hoice)\s(?=\(?[A-J](?:\W|\Z))"), ""),
    (re.compile(r"\\mathbb\s?([A-Z])(?![A-Za-z])"), r"\\mathbb{\1}"),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s{0,9}\\\}"), r"\\emptyset"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\^\s?(?:\\degree(?![A-Za-z])|\{\s?(?:\\circ|\\degree)\s?\}|\\circ)"), "°"),
    (re.compile(r"\\degree(?![A-Za-z])"), "°"),
    (re.compile(r",\\!\s?|\{,\}"), "\N{SINGLE LOW-9 QUOTATION MARK}"),  # a comma in a number
    (re.compile(r"(?<=\d)(?:\\[,;:]|~)(?=\d{3}(?!\d))"), "\N{SINGLE LOW-9 QUOTATION MARK}"),
    (re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"(\d)\^\s?\{?\s?(?:\\(?:text|mathrm)\{)?\s?(st|nd|rd|th)\s?\}{0,2}"), r"\1\2"),
    (re.compile(r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])"), " th"),
    (re.compile(r"(?<![A-Za-z])([aApP])\.\s?([mM])\.?(?![A-Za-z])"), r" \1\2"),
    (re.compile(r"(?<![A-Za-z\\])[Ii]nfinity(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?<=\d) per cent(?![A-Za-z])"), " percent"),
    (re.compile(r"(?<=[)\]])\s?U\s?(?=[(\[])"), r"\\cup "),
    (re.compile(r"[(\[]\s?\\begin\{array\}\{\w+\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{array\}\s?[)\]]"), r"\\end{pmatrix}"),
    (re.compile(r"\A([A-Ja-j])\)\Z"), r"\1"),  # the letter of a choice
    # a set in plain text; the comma of {1,000} groups digits
    (re.compile(r"(?:\A|(?<==)|(?<== ))\{(?=[^{}]*,(?!\d{3}(?!\d)))([^{}]*)\}\Z"), r"\{\1\}"),
)
# An answer that is one number with digits grouped by spaces: 12 000; not 1 100/200 or two lines.
_GROUPED = re.compile(
    rf"(?:[\s*_`$€£¥+-]|\\[($])*[1-9]\d{{0,2}}(?:\\?{GROUP_SPACE}\d{{3}})+(?:\.\d+)?"
    r"(?:[^\d/\\^_=+({\[-]|\\\))*"
)
_GROUPED_FRACTION = re.compile(  # 12 000/5 and 1 000 1/2; 12 345/500 may be a mixed number
    rf"[\s-]*[1-9]\d{{0,2}}(?:(?:{GROUP_SPACE}\d{{3}})*{GROUP_SPACE}0\d\d/[1-9]\d*"
    rf"|(?:{GROUP_SPACE}\d{{3}})+ \d{{1,2}}/[1-9]\d*)\s*"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Texts that group digits by spaces (12 500 + 500 = 13 000); no other number begins with 0.
_HAS_SPACED_GROUPS = re.compile(r"\d(?:[\xa0\u2009\u202f]\d{3}| 0\d\d)(?!\d)")
_SPACED_GROUPS = re.compile(rf"(?<=\d)(?<!\d{{4}})\\?{GROUP_SPACE}(?=\d{{3}}(?!\d))")
_TRAILING_ZEROS = re.compile(r"(\d)\.0+(?!\d)")
_LEADING_POINT = re.compile(r"(?<![\w.)])\.(?=\d)")
_SYMBOLS = str.maketrans({"÷": "/", "•": "- "})
_BRACKETED = re.compile(r"([-+*/^]?) ?\(([^()]*)\)(?= ?([-+*/^]?))")
_CLOSING_DOLLAR = re.compile(r"(?<![\s\\$])\$(?![A-Za-z0-9])")
_DOLLAR = re.compile(r"(?<!\\)\$")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
# 5', f'', z* are not quotes
_PRIMED = re.compile(r"[^'\"\u2018\u2019*]+(['\"\u2019\u2032\u2033]{1,3}|\*)")
_PRIMES = str.maketrans({"\u2019": "'", "\u2032": "'", "\u2033": "''", '"': "''"})
_BOX = re.compile(r"\\boxed\s?\{(.*)\}")
_DELIMITER_COMMAND = re.compile(r"\\[()\[\]]")
_QUOTED = re.compile(
    r"\\(text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s?\{([^{}]*)\}"
)

# 5 m is 5m, x dx is xdx
_IDLE_SPACE = re.compile(
    r"(?<![^\W_])(?<!\d,) | (?![^\W_])|(?<=\d) (?=[^\W\d_])| (?=d[a-z](?![^\W\d_]))"
)
_CASED = r"[mM](?:[WVAJN]|Hz|Pa|eV|Wh)|M[gmsLl]|[KMGT]b(?:ps)?|[MGSH]"  # mega is not milli
_CASED_UNIT = re.compile(_CASED)
# Letters whose case is irrelevant: not in a command (\Delta is not \delta) or such a unit.
_LETTERS = re.compile(rf"(?<![A-Za-z\\])(?!(?:(?<=\d)|(?<=\d ))(?:{_CASED})(?![^\W\d_]))[^\W\d_]+")

# ---- tokens ----

_DIGITS = (
    r"(?:[0-9]{1,3}(?:[,‚][0-9]{3}){1,99}(?![,‚]?[0-9])"  # 1,234,567
    r"|[0-9]{1,2}(?:[,‚][0-9]{2}){1,99}[,‚][0-9]{3}(?![,‚]?[0-9])"  # 12,34,567
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
_CURRENCY = re.compile(r"\\\$|US\$|Rs\.?(?![A-Za-z])|[$€£¥₹₱₩]")
_HYPHEN = r"(?:(?<=[^\W\d_]{3})-|-(?=[^\W\d_]{3}))"  # T-shirt; elsewhere it subtracts: x-y
_WORD = re.compile(rf"[^\W\d_]+(?:(?:['’.]|{_HYPHEN})[^\W\d_]+)*['’]?\.?")
_SIGN = re.compile(r"\\\\|\\[{}|%]|\*\*|<=|>=|!=|[-+*/^_(){}\[\]|,;:=<>!%°&.¢]")
GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega"
)
FUNCTIONS = words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp sqrt max min gcd lcm"
    " cis"
)
"""Functions that are recognized with and without a backslash."""
_UNIT_FUNCTIONS = words("min sec")  # minutes and seconds if no argument follows
_NO_ARGUMENT = re.compile(r"\s?(?:\Z|[,;/)}\]=]|(?:and|or|per|a|an|each)\b)")
_GREEK_LETTER = re.compile(r"(?<![^\W\d_])[α-ρσ-ωΓΔΘΛΣΦΨΩ](?![^\W\d_])")
_LETTER_NAMES = {"π": r"\pi", "pi": r"\pi"}


def bare(answer: str) -> str:
    """Strip the quotes, emphasis, math delimiters and period around an answer.

    >>> bare("**$5$**.")
    '5'
    """
    answer = answer.strip(MARKUP).removesuffix(".").strip(MARKUP)
    for opening, closing in _DELIMITERS:
        inner = answer.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(answer) - len(opening) - len(closing):
            # "$5$, $6$" is not one formula
            return answer if opening[-1] in "$" and "$" in inner else inner.strip(MARKUP)
    return answer


def keyboard(text: str) -> str:
    """Convert a text to keyboard characters: ASCII digits and signs, nothing invisible.

    >>> keyboard("５０％ of 3½"), keyboard("\\u202b٥\\u202c")
    ('50% of 3 1/2', '5')
    """
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text)
    text = _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    return text.translate(_KEYBOARD)


def _raised(sign: str, plain: dict[str, str], run: re.Match[str]) -> str:
    """Convert superscript or subscript digits to LaTeX."""
    return f"{sign}{{{''.join(plain[character] for character in run[0])}}}"


def _greek_name(letter: re.Match[str]) -> str:
    r"""The command of a Greek letter, such as \alpha; omicron, which LaTeX lacks, is unchanged."""
    name = unicodedata.name(letter[0]).rpartition(" ")[2].replace("LAMDA", "LAMBDA")
    name = name.capitalize() if letter[0].isupper() else name.lower()
    return rf"\{name} " if name in GREEK else letter[0]


def plain_text(answer: str) -> str:
    """Convert an answer to one spelling: ASCII signs, one command each, no math delimiters.

    >>> plain_text("$½$"), plain_text("７ %")
    ('1/2', '7 %')
    """
    if _GROUPED.fullmatch(answer):
        answer = _SPACED_GROUPS.sub(",", answer)
    elif _GROUPED_FRACTION.fullmatch(answer):
        answer = _SPACED_GROUPS.sub("", answer)
    text = bare(keyboard(answer).translate(_CHARACTERS))
    for run, sign, plain in (
        (_SUPERSCRIPT_RUN, "^", _SUPERSCRIPTS),
        (_SUBSCRIPT_RUN, "_", _SUBSCRIPTS),
    ):
        text = run.sub(partial(_raised, sign, plain), text)
    text = _GREEK_LETTER.sub(_greek_name, text)
    if _CLOSING_DOLLAR.search(text) and len(_DOLLAR.findall(text)) % 2 == 0:
        text = _DOLLAR.sub(" ", text)
    text = _DELIMITER_COMMAND.sub(" ", text)
    if box := _BOX.fullmatch(text):
        text = box[1]
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    primed = _PRIMED.fullmatch(answer.strip())
    return bare(text) + (primed[1].translate(_PRIMES) if primed else "")


def fold_case(unit: str) -> str:
    """Convert a word after a number to lower case, unless its case distinguishes units.

    >>> fold_case("mW"), fold_case("MW"), fold_case("KM"), fold_case("Mb"), fold_case("MB")
    ('mW', 'MW', 'km', 'Mb', 'mb')
    """
    return unit if _CASED_UNIT.fullmatch(unit) else unit.lower()


def normalize_numbers(text: str) -> str:
    """Write all numbers the same way: 350,000 -> 350000, 38.0 -> 38, .5 -> 0.5.

    >>> normalize_numbers("350,000 and 38.0 * .5")
    '350000 and 38 * 0.5'
    """
    if _HAS_SPACED_GROUPS.search(text) or _GROUPED.fullmatch(text):
        text = join_groups(text)
    text = _LEADING_POINT.sub("0.", _THOUSANDS.sub("", text))
    return _TRAILING_ZEROS.sub(r"\1", text).translate(_SYMBOLS)


def join_groups(text: str) -> str:
    """Join all digits that spaces may group.

    >>> join_groups("12 500 + 1 500")
    '12500 + 1500'
    """
    return _SPACED_GROUPS.sub("", text)


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


def text_key(answer: str) -> str:
    """A key for comparing texts; case, white space and LaTeX fonts make no difference.

    >>> text_key("Twelve  Apples")
    'twelve apples'
    """
    text = _QUOTED.sub(r" \2 ", plain_text(answer)) if len(answer) <= MAX_CHARS else bare(answer)
    text = _LETTERS.sub(lambda run: run[0].lower(), " ".join(text.split()))
    return _IDLE_SPACE.sub("", text)


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
        if (match := _QUOTED.match(text, place)) is not None:
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
        return "currency", match[0].lstrip("\\").rstrip("."), match.end()
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
