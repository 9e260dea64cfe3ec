r"""Final answers out of solutions, and their comparison by value.

    solution text --extract_answer--> answer --canonical_answer--> key

Two answers are equal when their keys are: "$1,200.00", "1200 dollars" and "1200" share one. Numbers
are compared exactly (as a `Fraction`; never a float, never `eval`), anything else as text.
`equal_answers` also takes LaTeX for what it means, by math-verify (see `maths`).

Texts come from models: nothing here raises on any string, and all but math-verify, which has a time
limit, takes time linear in its length. This module knows nothing of models, records or files, nor
of what is done with a verdict.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import deque
from collections.abc import Callable
from fractions import Fraction

from ledom.evaluate.maths import same_value

__all__ = ["canonical_answer", "equal_answers", "extract_answer", "is_correct"]

MAX_NUMBER_CHARS = 200
"""A longer answer is not read as a number, so that exact arithmetic stays cheap."""

MAX_EXPONENT = 50
"""A larger power of ten ("1e999999999") is left as text."""

# ---- numbers ----

_CURRENCY = r"(?:US\$|Rs\.?|[$€£¥₹₱₩])"
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}(?!,?[0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<currency>{_CURRENCY}?)\s*(?P<inner_sign>[+-]?)\s*"
    rf"(?P<number>{_UNSIGNED})(?:\.(?!\s?[^\W\d_]))?(?:e(?P<exponent>[+-]?[0-9]{{1,9}}))?"
    rf"(?:\s*/\s*(?P<over>{_UNSIGNED})|\s+(?P<numerator>[0-9]+)/(?P<denominator>[0-9]+))?"
    r"(?P<unit>(?:[^0-9]*[a-z]\^[23])?[^0-9]*)",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(r"[A-Za-z][A-Za-z_ ]*=([^=]+)")
_UNIT_WORD = re.compile(
    r"[^\W\d_][^\W\d_'\u2019.-]*['\u2019.-]*[^\W\d_'\u2019.-]*(?:[.²³]|\^[23])*"
)
_ONE_LETTER_UNITS = frozenset("ghlms")  # any other single letter is taken for a variable: 4x, 2n
_NOT_UNITS = frozenset(  # words after which a number is not the whole value
    re.findall(
        "[a-z]+",
        "am pm pi sqrt sin cos tan log ln exp mod and or to plus minus times over squared cubed "
        "factorial half halves third thirds fourths fifths tenths hundredths",
    )
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MONEY_SCALES = {"k": 3, "m": 6, "b": 9}
_LATEX_NOISE = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}|\\([$%])|\\[!,;]|\{(,)\}")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),  # minus and dashes
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff"),  # zero width: removed
        **{chr(code): " " for code in [*range(0x20), 0x7F]},
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},  # full width
        **{
            chr(code): " " + unicodedata.normalize("NFKC", chr(code)).replace("\u2044", "/")
            for code in [0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F)]  # one half, two thirds, ...
        },
    }
)

# ---- where a text states its answer ----

_MARKUP = " \t\r\n*_`\"'"
_BOXED_OR_BRACE = re.compile(r"\\boxed\s{0,4}\{|\\[\\{}]|[{}]")
_ANSWER_MARK = re.compile(
    r"(?i:\banswers?\b[\\*_\"'`\s]{0,8}(?:(?:is|are|was|would be)\b|[:=]))|^[ \t*]{0,8}A:(?=\s)",
    re.MULTILINE,
)
_NUMBER_IN_TEXT = re.compile(
    r"(?<![A-Za-z0-9_.])"
    r"(?:(?<![)\]])(?<![0-9)\]]\s)[-\u2212]|(?<=[=:]\s)[-\u2212]\s)?"  # "5 - 3" subtracts
    rf"(?:{_CURRENCY}\s?[-\u2212]?)?{_UNSIGNED}(?:/[0-9]+)?"
    r"(?:\s?(?:hundred|thousand|million|billion|trillion)\b)?"
)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_SENTENCE_END = re.compile(r"[.!?](?=[\s*\"'`)]|$)")
_JSON_ESCAPE = re.compile(r"\\(?:n(?![a-z])|(\"))")
_JSON_VALUE = re.compile(r"\s*(?:\"([^\"\n]*)|([^\",}\n]*))")
_NOT_SPACE = re.compile(r"\S")
_FENCE = re.compile(r"```(?:json)?")
_CLAUSE = re.compile(r"(?:[,;]\s|\s\(|\s(?=because\b|since\b))(?!and\b|or\b)(?=[^\W\d_]{2})")
_VARIABLE = re.compile(
    r"(?<![^\W\d_])(?!\A.\s?=|(?<=\s)x\s)[b-zB-Z](?![^\W\d_])|[\\^;]"  # "3 x 4" multiplies
    r"|,\s[^\W\d_]+\s?\Z"  # "width = 3, height = 5" has two answers
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_FORMULA = re.compile(r"[\\^=+*/(){}\[\]-]")
_CONTENT = re.compile(r"[^\W_]|[^\x00-\x7f]")


def extract_answer(text: str) -> str | None:
    r"""The final answer that a solution text states, or None where there is none.

    The first of these that the text has, each time the last one in it:

    1. `#### answer`, to the end of the line (a `####` heading in mid-text does not count);
    2. `\boxed{answer}`, braces nested;
    3. the key "answer" of a JSON text, "answer is", "Answer:", or a last line "A: answer"; of a
       sentence there the last number, of a chain of sums what follows the last "=";
    4. the last number.
    """
    for find in (_after_hashes, _in_box, _in_json, _after_mark, _last_number):
        answer = find(text)
        if answer is not None:
            return answer
    return None


def canonical_answer(answer: str | None) -> str | None:
    """A key that two answers share when they are equal by value; None for an empty answer.

    A number's key is its exact fraction in lowest terms: "38.0", "$38" and "38 apples" give "38",
    "0.5" and "2/4" give "1/2", "3 million" gives "3000000", "x = 5" gives "5". Currency signs,
    thousands separators and unit words do not count; neither does "%": "25%" equals "25", not
    "0.25". Everything else, as "2:00 pm", "4x" or "9**9", is compared as lower-case text with its
    white space collapsed.
    """
    if answer is None or not _CONTENT.search(answer):
        return None
    for read in _READERS:
        key = read(answer)
        if key is not None:
            return key
    return None


def equal_answers(first: str | None, second: str | None) -> bool:
    r"""Whether two answers are equal by value; False where either is missing.

    Numbers are compared exactly and need no more; where one of them is a formula, math-verify is
    asked: "\frac{\pi}{2}" equals "\pi/2", "(x+1)^2" equals "x^2+2x+1".
    """
    keys = canonical_answer(first), canonical_answer(second)
    if first is None or second is None or None in keys:
        return False
    if keys[0] == keys[1]:
        return True
    if all(_number_key(answer) is not None for answer in (first, second)):
        return False
    if not any(_FORMULA.search(answer) for answer in (first, second)):
        return False
    return same_value(_bare(first), _bare(second))


def is_correct(candidate_text: str, answer: str) -> bool:
    """Whether a solution text ends in an answer that equals `answer` by value."""
    return equal_answers(extract_answer(candidate_text), answer)


# ---- readers: answer -> key, or None for an answer of another kind ----


def _number_key(answer: str) -> str | None:
    answer = answer.strip()
    if len(answer) > MAX_NUMBER_CHARS:
        return None
    answer = _LATEX_NOISE.sub(r"\1\2\3", _bare(answer.translate(_CHARACTERS)))
    answer = " ".join(answer.split())
    assignment = _ASSIGNMENT.fullmatch(answer)
    match = _NUMBER.fullmatch(assignment[1].strip() if assignment else answer)
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    if match["numerator"] and not match["number"].isdigit():
        return None
    power = _power_of_unit(match["unit"], is_money=bool(match["currency"]))
    exponent = int(match["exponent"] or 0)
    if power is None or abs(exponent) > MAX_EXPONENT:
        return None
    try:
        value = _fraction(match["number"]) / _fraction(match["over"] or "1")
        value += Fraction(int(match["numerator"] or 0), int(match["denominator"] or 1))
    except ZeroDivisionError:
        return None
    value *= Fraction(10) ** (exponent + power)
    return str(-value if "-" in match["sign"] + match["inner_sign"] else value)


def _fraction(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _power_of_unit(unit: str, *, is_money: bool) -> int | None:
    """The power of ten that the words after a number stand for; None if they are no unit."""
    unit = unit.lstrip().removeprefix("°C").removeprefix("°F").lstrip("%°¢$€£")
    words = unit.replace("/", " ").split()
    power = 0
    if words and is_money and words[0].lower() in _MONEY_SCALES:
        power = _MONEY_SCALES[words.pop(0).lower()]
    while words and words[0].lower() in _SCALES:
        power += _SCALES[words.pop(0).lower()]
    for place, word in enumerate(words):
        name = word.partition("^")[0].rstrip(".²³")
        if not (_UNIT_WORD.fullmatch(word) and name[:1].isalpha()) or name.lower() in _NOT_UNITS:
            return None
        if len(name) == 1 and name not in _ONE_LETTER_UNITS and not (name == "a" and place):
            return None
    return power


def _text_key(answer: str) -> str | None:
    key = " ".join(answer.translate(_CHARACTERS).lower().split())
    return _bare(key).strip() or None


_READERS: tuple[Callable[[str], str | None], ...] = (_number_key, _text_key)
"""Tried in turn by `canonical_answer`; the last one reads anything."""


def _bare(answer: str) -> str:
    """An answer without the quotes, emphasis, maths delimiters and full stop around it."""
    answer = answer.strip(_MARKUP).removesuffix(".").strip(_MARKUP)
    for opening, closing in _DELIMITERS:
        inner = answer.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(answer) - len(opening) - len(closing):
            return inner.strip(_MARKUP)
    return answer


# ---- finders: text -> the answer that it states, or None ----


def _after_hashes(text: str) -> str | None:
    if "####" not in text:
        return None
    is_last_line = True
    for line in reversed(text.split("\n")):
        _, mark, after = line.rpartition("####")
        answer = _bare(after) if mark else ""
        if _CONTENT.search(answer) and (is_last_line or _number_key(answer) is not None):
            return answer
        is_last_line = is_last_line and not _CONTENT.search(line)
    return None


def _in_box(text: str) -> str | None:
    starts: list[int | None] = []  # of the open braces; None for one that opens no box
    span = (0, 0)
    for match in _BOXED_OR_BRACE.finditer(text):
        if match[0] == "}" and starts:
            start = starts.pop()
            if start is not None and _NOT_SPACE.search(text, start, match.start()):
                span = (start, match.start())
        elif match[0] == "{":
            starts.append(None)
        elif match[0].startswith(r"\boxed"):
            starts.append(match.end())
    return text[slice(*span)].strip() or None


def _in_json(text: str) -> str | None:
    text = _FENCE.sub("", text).strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        data = json.loads(text, parse_int=str, parse_float=str, strict=False)
    except (ValueError, RecursionError):
        return None
    answer = data.get("answer")
    return _stated(answer, is_last=True) if isinstance(answer, str) else None


def _after_mark(text: str) -> str | None:
    mark = _last_match(_ANSWER_MARK, text)
    if mark is None:
        return None
    rest = _JSON_ESCAPE.sub(lambda escape: escape[1] or " ", text[mark.end() :])
    if '"' in mark[0] and mark[0].endswith(
        ":"
    ):  # the key of a JSON text that does not parse as a whole
        value = _JSON_VALUE.match(rest)
        return _stated(value[1] or value[2] or "", is_last=True) if value else None
    lines = [line for line in rest.split("\n") if _CONTENT.search(line)]
    if not lines or (mark[0].endswith("A:") and lines[1:] and not lines[1].startswith("Q")):
        return None
    return _stated(lines[0].lstrip(_MARKUP + ":="), is_last=len(lines) == 1)


def _stated(line: str, *, is_last: bool) -> str | None:
    """The answer that a line gives; one that is no number counts only `is_last` in its text."""
    line = _bare(_CALCULATOR.sub("", line))
    before, _, after = line.rpartition("=")
    sums = [] if _VARIABLE.search(before) else [after, _first_sentence(after)]
    sentence = _first_sentence(line)
    clause = _CLAUSE.search(sentence)
    clauses = [sentence[: clause.start()]] if clause else []
    for reading in (line, sentence, *sums, *clauses):
        if _number_key(reading) is not None:
            return _bare(reading)
    if not is_last:
        return None
    number = _last_number(line) if _is_prose(line) else None
    return number or (sentence if _CONTENT.search(sentence) else None)


def _first_sentence(line: str) -> str:
    end = _SENTENCE_END.search(line)
    return _bare(line[: end.start()] if end else line)


def _is_prose(line: str) -> bool:
    """Whether a line is a sentence that mentions numbers, rather than a formula or a list."""
    if not line[:1].isalpha() or "\\" in line or "^" in line:
        return False
    return any(word.lower() not in _NOT_UNITS for word in _WORD.findall(line))


def _last_number(text: str) -> str | None:
    match = _last_match(_NUMBER_IN_TEXT, text)
    return match[0] if match else None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
