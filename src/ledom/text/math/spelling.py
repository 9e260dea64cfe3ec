r"""Converts an answer to one spelling: one command per sign, one form of dates, bases and times.

"$\dfrac{3}{4}$" --plain_text--> "\frac{3}{4}"
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from ledom.text.math.in_text import (
    GROUP_SPACE,
    SPELLED_FRACTION,
    SPELLED_OUT,
    spelled,
    spelled_fraction,
)
from ledom.text.math.notation import GROUPED, SPACED_GROUPS, bare, keyboard

__all__ = [
    "GREEK",
    "MAX_CHARS",
    "QUOTED",
    "NotUnderstood",
    "fold_case",
    "plain_text",
    "text_key",
    "words",
]

MAX_CHARS = 400
"""Longer answers are not parsed, so that parsing and exact arithmetic stay cheap."""


class NotUnderstood(Exception):  # noqa: N818  (no error: such a text is compared as text)
    """Raised if part of a text cannot be parsed or has no value."""


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set.

    >>> sorted(words("b a b"))
    ['a', 'b']
    """
    return frozenset(text.split())


_SUPERSCRIPTS, _SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉"
_LEVELED = str.maketrans(_SUPERSCRIPTS + _SUBSCRIPTS, "0123456789+-ni0123456789")
_SIGNS = "×·⋅∙∗≤≥≠≈π∞∪∩∈∅±∓√∛∠△≡ℝ"
_SIGN_NAMES = (
    "times cdot cdot cdot cdot leq geq neq approx pi infty cup cap in emptyset pm mp sqrt sqrt[3] "
    "angle triangle equiv mathbb{R}"
)
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013", "-"),  # minus and dash
        **{chr(code): " " for code in [*range(0x20), 0x7F]},
        **dict.fromkeys("\u202f\u2009\xa0", r"\,"),  # thin spaces group digits
        **{sign: rf"\{name} " for sign, name in zip(_SIGNS, _SIGN_NAMES.split(), strict=True)},
        "÷": "/",
        **dict.fromkeys("°º˚", "^\\circ "),
    }
)
_SUPERSCRIPT_RUN = re.compile(f"[{_SUPERSCRIPTS}]+")
_SUBSCRIPT_RUN = re.compile(f"[{_SUBSCRIPTS}]+")
_ONE_SPELLING = {
    **dict.fromkeys(["ge", "geqslant"], r"\geq"),
    **dict.fromkeys(["le", "leqslant"], r"\leq"),
    **dict.fromkeys(["langle", "lparen"], "("),
    **dict.fromkeys(["rangle", "rparen"], ")"),
    **dict.fromkeys(words("left right displaystyle textstyle scriptstyle rm bf it sf tt"), ""),
    **dict.fromkeys(words("small normalsize large Large LARGE huge Huge"), ""),
    **dict.fromkeys(words("boldsymbol bm pmb mathit underline checkmark"), ""),
    **dict.fromkeys(["thinspace", "enspace"], " "),
    **dict.fromkeys(["degree", "textdegree"], "°"),
    **dict.fromkeys(["dfrac", "tfrac", "cfrac", "nicefrac", "sfrac", "flatfrac"], r"\frac"),
    "bigcup": r"\cup",
    "colon": ":",
    "ell": "l",
    "ne": r"\neq",
    "varnothing": r"\emptyset",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lbrack": "[",
    "rbrack": "]",
    "vert": "|",
}
_FONT = r"\\(?:rm|bf|it|sf|tt)"
_BASES = {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16, "b": 2, "o": 8, "x": 16}
_SPELLINGS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (  # elsewhere "~" is LaTeX's space
        re.compile(
            r"\A(?:~|(?:\\text\{)?(?:approximately|about|around|roughly)(?:\s?\}|\s))\s?"
            r"(?=[$\\.\d-])"
        ),
        r"\\approx ",
    ),
    (re.compile(r"\u00ac\s?|(?<![^\s(])(?<![0-9]\s)~(?=[A-Za-z(])"), r"\\neg "),
    (  # 0x1F
        re.compile(r"(?<![\w.])0([box])([0-9A-Fa-f]{1,16})(?![\w.^])"),
        lambda found: f"0{found[2].upper()}_{_BASES[found[1]]}",
    ),
    (re.compile(r"(?<![\\A-Za-z])log(2|10)(?=\()"), r"\\log_{\1}"),
    (re.compile(r"(?<![A-Za-z])m\s?(?=\\angle)"), ""),  # the measure of an angle
    (re.compile(r"(?<![A-Za-z])(sq|cu)\.\s?(?=[A-Za-z])"), r"\1 "),
    (re.compile(r"\A(?:\\text\{)?[Aa]ll real numbers\}?\Z"), r"\\mathbb{R}"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\{([^{}\\]{1,40})\\choose(?![A-Za-z])([^{}\\]{1,40})\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\{([^{}\\]{1,40})\\over(?![A-Za-z])([^{}\\]{1,40})\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?:text)?color\s?\{\w{1,40}\}|\\[hv]?phantom\{[^{}]*\}"), ""),
    (re.compile(rf"\{{\s?{_FONT}\s([^{{}}]*)\}}|{_FONT}\s?\{{([^{{}}]*)\}}"), r"\\text{\1\2}"),
    (re.compile(r"\\mathbf\s?\{([A-Za-z])\}"), r" \1"),  # a vector: 2i - 3j
    (re.compile(r"\\\\\s?\[-?[\d.]+(?:pt|em|ex|mm|cm)\]"), r"\\\\"),  # space between rows
    (
        re.compile(rf"\\({'|'.join(_ONE_SPELLING)})(?![A-Za-z])"),
        lambda command: _ONE_SPELLING[command[1]],
    ),
    (re.compile(r"(?<![A-Za-z])(?:[Oo]ption|[Cc]hoice)\s(?=\([A-Ja-j]\)|[A-J](?:\W|\Z))"), ""),
    (re.compile(r"\\overline\s?\{([A-Z]{2})\}"), r"\1"),  # a segment
    (re.compile(r"\\[cl]?dots[bcimo]?(?![A-Za-z])|\.{2,}"), "…"),
    (
        re.compile(
            r"\(?\s?(?<![A-Za-z])\\?[pb]?mod(?:ulo)?(?![A-Za-z])\s?\{?\s?(\d+|[a-z])\s?\}?\s?\)?"
        ),
        r" mod \1",
    ),
    (re.compile(r"(?<=\d)x(?=10\^)"), r"\\times "),
    (re.compile(r"\A(\d+) to (\d+)(?: to (\d+))?\Z"), lambda m: ":".join(filter(None, m.groups()))),
    (re.compile(r"\\mathbb\s?([A-Z])(?![A-Za-z])"), r"\\mathbb{\1}"),
    (re.compile(r"\\\{\s{0,9}\\\}"), r"\\emptyset"),
    (re.compile(r"\\[bB]igg?[lr]?(?![A-Za-z])"), ""),
    (re.compile(r"(?:\{\s?\})?\s?\^\s?(?:\{\s?(?:\\circ|°)\s?\}|\\circ|°)"), "°"),
    (re.compile(r"°\s(?=[CF](?![A-Za-z]))"), "°"),
    # a comma in a number
    (re.compile(r"(?<!\\),\\!\s?|\{,\}|\\text\{,\}"), "\N{SINGLE LOW-9 QUOTATION MARK}"),
    (re.compile(r"(?<=\d)(?:\\[,;:]|~)(?=\d{3}(?!\d))"), "\N{SINGLE LOW-9 QUOTATION MARK}"),
    (re.compile(r"(?<!\\)\\(?:[,;:!> ]|hspace\*?\{[^{}]*\}|\Z)|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"(?:\s|\\\\)+\Z"), ""),  # a line break at the end
    (re.compile(r"\\text\{[.,]\}\Z|(?<=[a-z])\.(?=\}\Z)"), ""),
    # repeating digits: 0.\dot{1}2\dot{3}, with a line or dots above, \overline3
    (
        re.compile(r"(?<=\.)(\d*)\\dot\s?\{?(\d)\}?(?:(\d*)\\dot\s?\{?(\d)\}?)?(?![\d\\])"),
        r"\1\\overline{\2\3\4}",
    ),
    (
        re.compile(r"(?:\d\u0305)+|\d\u0307(?:\d*\d\u0307)?"),
        lambda digits: rf"\overline{{{re.sub(r'[^0-9]', '', digits[0])}}}",
    ),
    (re.compile(r"(?<=[.\d])\\(overline|bar)\s?(\d)"), r"\\\1{\2}"),
    (SPELLED_FRACTION, spelled_fraction),
    (SPELLED_OUT, lambda number: str(spelled(number[1]))),
    (
        re.compile(r"(?<=\d) (?:in )?(binary|octal|decimal|hexadecimal)\Z"),
        lambda word: f"_{_BASES[word[1]]}",
    ),
    # bases: 101 in base 2, (101)_2, \text{1F}_{16}, 101_{(2)}, 101_{\text{base 2}}
    (re.compile(r"(?<=\d) (?:in )?\(?base (\d{1,2})\)?(?!\d)"), r"_{\1}"),
    (re.compile(r"(?:\\(?:text|mathrm)\s?\{|\()([\dA-F]+)[)}]\s?(?=_\s?\{?\s?\(?\d)"), r"\1"),
    (re.compile(r"_\{(?:\\(?:text|mathrm)\{\s?(?:base\s?)?\}?|\()(\d{1,2})[)}]?\}"), r"_{\1}"),
    (re.compile(r"(\d)\^\s?\{?\s?(?:\\(?:text|mathrm)\{)?\s?(st|nd|rd|th)\s?\}{0,2}"), r"\1\2"),
    (re.compile(r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])"), " th"),
    (re.compile(r"(?<![A-Za-z])([aApP])\.\s?([mM])\.?(?![A-Za-z])"), r" \1\2"),
    (re.compile(r"(?<![\d:])(\d{1,2})\s?o['\u2019]?\s?clock(?![A-Za-z])"), r"\1:00"),
    (re.compile(r"(?<![A-Za-z\\])(?:[Ii]nfinity|inf|oo)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?<=\d) per cent(?![A-Za-z])"), " percent"),
    (re.compile(r"(?<=\d) out of (?=\d)"), "/"),
    (re.compile(r"(?<=[\d{])\s?([cdkm]?m|ft|in|yd)([23])(?![\w.^])"), r" \1^\2"),  # 5 m2
    (re.compile(r"(?<![A-Za-z])(light|nautical|fluid) (?=year|mile|ounce)"), r"\1-"),  # no years
    (re.compile(r"(?<=[Nn]o )((?:real )?solution)s(?![A-Za-z])"), r"\1"),
    (re.compile(r"(?<=[)\]])\s?U\s?(?=[(\[])"), r"\\cup "),
    (re.compile(r"[(\[]\s?\\begin\{array\}\{[\w|]+\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{array\}\s?[)\]]"), r"\\end{pmatrix}"),
    (re.compile(r"\A\(?([A-Ja-j])\)\Z"), r"\1"),  # the letter of a choice
    # the set of all x in an interval: {x | x > 3}
    (
        re.compile(
            r"\A\\?\{\s?([a-z])(?:\s?\\in\s?\\mathbb\{R\})?\s?(?:\\mid(?![A-Za-z])|[|:])"
            r"\s?(?=\1|[-0-9.\\])(.*?)\\?\}\Z"
        ),
        r"\2",
    ),
    # intervals without their ends, as in France: ]0, 1[
    (
        re.compile(r"([\[\]])([^\[\](),;]{1,99}[,;][^\[\](),;]{1,99})([\[\]])"),
        lambda ends: "[("[ends[1] == "]"] + ends[2] + "])"[ends[3] == "["],
    ),
    # a set in plain text; the comma of {1,000} groups digits
    (re.compile(r"(?:\A|(?<==)|(?<== ))\{(?=[^{}]*,(?!\d{3}(?!\d)))([^{}]*)\}\Z"), r"\{\1\}"),
    (re.compile(r"(?:\A|(?<=[=(,])\s?)(?:[Nn]egative|[Mm]inus)\s(?=[$\u20ac\xa3\d.\\(])"), "-"),
)
_GROUPED_FRACTION = re.compile(  # 12 000/5 and 1 000 1/2; 12 345/500 may be a mixed number
    rf"[\s-]*[1-9]\d{{0,2}}(?:(?:{GROUP_SPACE}\d{{3}})*{GROUP_SPACE}0\d\d/[1-9]\d*"
    rf"|(?:{GROUP_SPACE}\d{{3}})+ \d{{1,2}}/[1-9]\d*)\s*"
)
_CLOSING_DOLLAR = re.compile(r"(?<![\s\\$])\$(?![A-Za-z0-9])")
_DOLLAR = re.compile(r"(?<!\\)\$")
# 5', f'', z* are not quotes
_PRIMED = re.compile(r"[^'\"\u2018\u2019*]+(['\"\u2019\u2032\u2033]{1,3}|\*)")
_PRIMES = str.maketrans({"\u2019": "'", "\u2032": "'", "\u2033": "''", '"': "''"})
_BOX = re.compile(
    r"\\(?:boxed|fbox|underline|boldsymbol|bm|pmb|mathit|(?:text)?color\s?\{\w+\})\s?\{(.*)\}"
)
_DELIMITER_COMMAND = re.compile(r"(?<!\\)\\[()\[\]]")
QUOTED = re.compile(
    r"\\(text[a-z]{0,6}|[mh]box|emph|ce|math(?:rm|bf|sf|tt)|operatorname)\s?"
    r"\{((?:[^{}]|\{[^{}]*\})*)\}"
)

# 5 m is 5m, x dx is xdx
_IDLE_SPACE = re.compile(
    r"(?<![^\W_])(?<!\d,) | (?![^\W_])|(?<=\d) (?=[^\W\d_])| (?=d[a-z](?![^\W\d_]))"
)
_COMMAND_SPACE = re.compile(r"(\\[A-Za-z]+) (?![A-Za-z])")
_BRACED_CHARACTER = re.compile(r"([_^])\{(\w)\}")
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z)]) ?_ ?(?:(\d+)|\{(\d+)\})")  # H_2O is H2O
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"([1-9]\d?)(?: th)?"
_DATE = re.compile(rf"(?:the )?(?:{_DAY}(?: of)? {_MONTH}|{_MONTH} {_DAY})(?:,? (\d{{4}}))?")
_CASED = r"[mM](?:[WVAJN]|Hz|Pa|eV|Wh)|M[gmsLl]|[KMGT]b(?:ps)?|[MGSH]"  # mega is not milli
_GENES = r"(?:([A-LN-Za-ln-z])(?i:\1))+"  # Rr is not rr
_CASED_UNIT = re.compile(rf"{_CASED}|{_GENES}")
# Letters whose case is irrelevant: not in a command (\Delta is not \delta) or such a unit.
_LETTERS = re.compile(
    rf"(?<![A-Za-z\\])(?!(?:(?<=\d)|(?<=\d ))(?:{_CASED})(?![^\W\d_]))"
    rf"(?!{_GENES}(?![^\W\d_]))[^\W\d_]+"
)
GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega"
)
_GREEK_LETTER = re.compile(r"(?<![^\W\d_])[α-ρσ-ωΓΔΘΛΣΦΨΩ](?![^\W\d_])")


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
    if GROUPED.fullmatch(answer):
        answer = SPACED_GROUPS.sub(",", answer)
    elif _GROUPED_FRACTION.fullmatch(answer):
        answer = SPACED_GROUPS.sub("", answer)
    text = bare(keyboard(answer).translate(_CHARACTERS))
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run[0].translate(_LEVELED)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: f"_{{{run[0].translate(_LEVELED)}}}", text)
    text = _GREEK_LETTER.sub(_greek_name, text)
    if _CLOSING_DOLLAR.search(text) and len(_DOLLAR.findall(text)) % 2 == 0:
        text = _DOLLAR.sub(" ", text)
    text = _DELIMITER_COMMAND.sub(" ", text)
    while box := _BOX.fullmatch(text):
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


@lru_cache(maxsize=2**12)  # votes compare every two answers to a problem
def text_key(answer: str) -> str:
    """A key for comparing texts; case, white space and LaTeX fonts make no difference.

    >>> text_key("Red  Apples"), text_key("H_2O"), text_key("March 5th, 2020")
    ('red apples', 'h2o', '5 mar 2020')
    """
    text = plain_text(answer) if len(answer) <= MAX_CHARS else bare(answer)
    while (inner := QUOTED.sub(r" \2 ", text)) != text:
        text = inner
    text = _COMMAND_SPACE.sub(r"\1", text)
    text = _BRACED_CHARACTER.sub(r"\1\2", " ".join(text.split()))
    if "\\" not in text:
        text = _SUBSCRIPT.sub(r"\1\2", text)
    text = _LETTERS.sub(lambda run: run[0].lower(), text)
    if date := _DATE.fullmatch(text):
        return f"{date[1] or date[4]} {(date[2] or date[3])[:3]} {date[5] or ''}"
    return _IDLE_SPACE.sub("", text)
