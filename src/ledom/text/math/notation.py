r"""Writes the signs and numbers of a text in one way.

"２ * 38.0 + .5" --keyboard--> "2 * 38.0 + .5" --normalize_numbers--> "2 * 38 + 0.5"
"""

from __future__ import annotations

import re
import unicodedata

from ledom.text.math.in_text import GROUP_SPACE

__all__ = [
    "GROUPED",
    "MARKUP",
    "SPACED_GROUPS",
    "bare",
    "has_content",
    "join_groups",
    "keyboard",
    "normalize_numbers",
    "with_few_brackets",
    "within_braces",
]

_QUOTES = "\u2018\u2019\u201c\u201d\u201e\u201f\xab\xbb\u2039\u203a\u300c\u300d\u300e\u300f"
_CHECK_MARKS = "\u2705\u2713\u2714\u2611\ufe0f"
MARKUP = " \t\r\n*_`\"'" + _QUOTES + _CHECK_MARKS
"""Characters that may surround an answer."""
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
        "\u2103": "°C",
        "\u2109": "°F",
        **dict.fromkeys("\u2010\u2011\u2012\ufe63", "-"),  # hyphens, as of -5
        **dict.fromkeys("\u2044\u2215", "/"),
    }
)
_SPACED_FRACTION = re.compile(r"(?<=\d)[ \xa0\u2009\u202f](?=[\xbc-\xbe\u2150-\u215e])")  # 3 ½
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_MAY_HAVE_GROUPS = re.compile(r"[0-9](?:['’_.][0-9]{3}|,[0-9]{2}(?![0-9]))")  # for speed
_OTHER_GROUPS = (
    re.compile(  # 1'000, 1_000 and 1.000.000
        r"(?=[1-9])(?<![\w.,'’])([1-9][0-9]{0,2}"
        r"(?:(?:['’][0-9]{3})+|(?:_[0-9]{3})+|(?:\.[0-9]{3}){2,}(?!\.[0-9])))"
        r"(?:,([0-9]{1,2}))?(?![\w'’]|,[0-9])"
    ),
    re.compile(  # €42,50 and 1.234,56
        r"(?=[0-9])(?<![\w.,(\[{])(?:(?<=€)|(?<=€ )|(?<=R\$)|(?<=R\$ )|(?=[0-9]{1,3}\.[0-9]{3}[.,])"
        r"|(?=[0-9]+,[0-9]{2}\s?(?:[€₽₺]|EUR\b|[Ee]uros?\b|reais\b|руб|zł|Kč|kr\b|TL\b)))"
        r"([0-9]+(?:\.[0-9]{3})*),([0-9]{2})(?![0-9,.]*[0-9])"
    ),
)
"""Numbers whose digits are not grouped by commas."""
# An answer that is one number with digits grouped by spaces: 12 000; not 1 100/200 or two lines.
GROUPED = re.compile(
    rf"(?:[\s*_`$€£¥+-]|\\[($])*[1-9]\d{{0,2}}(?:\\?{GROUP_SPACE}\d{{3}})+(?:\.\d+)?"
    r"(?:[^\d/\\^_=+({\[-]|\\\))*"
)
SPACED_GROUPS = re.compile(rf"(?<=\d)(?<!\d{{4}})\\?{GROUP_SPACE}(?=\d{{3}}(?!\d))")
_CONTENT = re.compile(r"[^\W_]|[^\x00-\x7f]|\\\{")
_WRAPPER = re.compile(r"\\(?:boxed|fbox|framebox|text[a-z]*|mbox|math[a-z]+|q?quad)(?![A-Za-z])")
_LAST_SIGN = re.compile(r"(?<!\\)[.,;]\Z")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Texts that group digits by spaces (12 500 + 500 = 13 000); no other number begins with 0.
_HAS_SPACED_GROUPS = re.compile(r"\d(?:[\xa0\u2009\u202f]\d{3}| 0\d\d)(?!\d)")
_TRAILING_ZEROS = re.compile(r"(\d)\.0+(?!\d)")
_LEADING_POINT = re.compile(r"(?<![\w.)])\.(?=\d)")
_SYMBOLS = str.maketrans({"÷": "/", "•": "- "})
_BRACKETED = re.compile(r"([-+*/^]?) ?\(([^()]*)\)(?= ?([-+*/^]?))")


def has_content(answer: str) -> bool:
    r"""Whether an answer has more than punctuation and LaTeX around nothing.

    >>> has_content("..."), has_content(r"\boxed{}"), has_content("x.")
    (False, False, True)
    """
    return bool(_CONTENT.search(_WRAPPER.sub("", answer)))


def bare(answer: str) -> str:
    """Strip the quotes, emphasis, math delimiters and the last sign of a sentence.

    >>> bare("**$5$**.")
    '5'
    """
    answer = _LAST_SIGN.sub("", answer.strip(MARKUP)).strip(MARKUP)
    for opening, closing in _DELIMITERS:
        inner = answer.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(answer) - len(opening) - len(closing):
            # "$5$, $6$" is not one formula
            return answer if opening[-1] in "$" and "$" in inner else inner.strip(MARKUP)
    return answer


def within_braces(line: str) -> str:
    r"""The line without a brace that ends a group, and what follows the end of a second one.

    >>> within_braces("} 5"), within_braces(r"\frac{1}{2}} of it")
    ('5', '\\frac{1}{2}')
    """
    rest = line.lstrip("} ")
    if len(rest) < len(line) and rest.count("$") % 2:  # $\text{Answer: } 5$
        rest = rest.removesuffix("$")
    depth = 0
    for brace in re.finditer("[{}]", rest):
        depth += 1 if brace[0] == "{" else -1
        if depth < 0:
            return rest[: brace.start()]
    return rest


def keyboard(text: str) -> str:
    """Convert a text to keyboard characters: ASCII digits and signs, nothing invisible.

    >>> keyboard("５０％ of 3½"), keyboard("\\u202b٥\\u202c"), keyboard("1.000.000,50")
    ('50% of 3 1/2', '5', '1,000,000.50')
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        text = _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
        text = _SPACED_FRACTION.sub("", text).translate(_KEYBOARD)
    for pattern in _OTHER_GROUPS if _MAY_HAVE_GROUPS.search(text) else ():
        text = pattern.sub(_with_commas, text)
    return text


def _with_commas(grouped: re.Match[str]) -> str:
    """A number with commas between its groups of digits, and a point before its decimals."""
    return re.sub("[^0-9]", ",", grouped[1]) + (f".{grouped[2]}" if grouped[2] else "")


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
