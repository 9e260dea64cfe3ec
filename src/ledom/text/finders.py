r"""Finds the answer that a text states: each finder looks in one kind of place.

    "#### 5", "\boxed{5}", "The answer is 5.", '{"answer": 5}', "Option B is correct.", "so 5"

A finder returns the answer or None. `ledom.text.answers` says which finder comes first.
"""

from __future__ import annotations

import json
import re
from collections import deque

from ledom.text.math.equality import is_number, same_meaning
from ledom.text.math.expressions import read
from ledom.text.math.in_text import ANSWER_MARK, FORMULA, NUMBER, PART, WORKED_SOLUTION
from ledom.text.math.nodes import Node
from ledom.text.math.notation import MARKUP, bare, has_content
from ledom.text.math.units import NOT_UNITS

__all__ = ["FINDERS", "MARKED", "STATING"]

_BOXED_OR_BRACE = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,4}\{|\\[\\{}]|[{}]")
_MOST_BOXES = 20  # that are joined
_BETWEEN_BOXES = re.compile(  # $\boxed{3}$ and $x = \boxed{4}$
    r"[\s$\\().,\]\[]{0,9}(?:\\text\{\s?)?(and|or|,)\s?\}?[\s$\\()\[]{0,9}(?:[A-Za-z]\s?=\s?)?"
)
# A sum of numbers alone is a step of a calculation; 5m and T-5 are not expressions.
_SIGNED = re.compile(r".\s?[-+\u2212]|\)\(")
_TERM = re.compile(r"[0-9)][a-z(]|[a-z][\^(]|(?:\A|\W)[a-z]\s[-+\u2212]\s|\s[-+\u2212]\s[a-z]")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_SENTENCE_END = re.compile(  # not a factorial's sign: 5! = 120, 5! ways
    r"(?<!\b[ie]\.[eg])(?<!\bM[rst])(?<!\b[DS][rt])(?:[.?]|(?<!\\)!(?!\s?[-+*/^=<>a-z]))(?=[\s*\"'`)]|$)"
)
_JSON_ESCAPE = re.compile(r"\\(?:n(?![a-z])|(\"))")
_JSON_VALUE = re.compile(
    r"\s*(?:\"([^\"\n]*)|(?:null|None)\b|([$-]{0,2}[0-9]{1,3}(?:,[0-9]{3})+[^\",}\n]*|[^\",}\n]*))"
)
_NOT_SPACE = re.compile(r"\S")
_REASON = r"(?:because|since|as|rather than|instead of|(?:and |but )?not)\b"
_CLAUSE = re.compile(
    r"(?:[,;]\s|\s\(|\s(?:--?|[\u2013\u2014])\s(?=(?:because|but|note|since|so|that|this|which)\b)"
    rf"|\s(?={_REASON})|\s(?:when|if)\s)"
    r"(?!and (?!not\b)|or\b)(?=[^\W\d_]{2}|i\.e\.)"
    r"|\s\((?=[^()]{1,99}\)\Z)"  # a remark: 7 (3 + 4)
    r"|,?\sor (?:about|around|roughly|approximately)\b"
    r"|\s(?:for|at|when|if)\s[a-z]\s?=|\sto (?:the nearest|\w+ (?:decimal|significant))\b"
)
_NAMED = re.compile(  # New York, because ...; CO2, not O2; a sentence that is only a name
    r"(?!(?:So|Thus|Hence|Therefore|First|Step|Solution|Explanation|No)\b)"
    rf"([A-Z][^\W_]*(?:\s[A-Z][^\W_]*)*)(?:,?\s{_REASON}|\Z)"
)
_ARROW = re.compile(r"=>|\u21d2|\\(?:Rightarrow|implies)(?![A-Za-z])")
_CHOICE = re.compile(r"\([A-Za-z]\)|[A-Z]")
_VERDICT = re.compile(  # no later number could be the answer instead
    r"(?i:yes|no|true|false)(?=(?:[.,;!]|\s[-(–—])\D*\Z|\s*\Z|,?\s(?:because|since)\b)"
)
_CHOSEN = re.compile(  # "our value of b is correct" is about a variable
    r"(?<![\w'])(\([A-Ja-j]\)|[A-J]|(?:(?<!\w\s)|(?<=\b[Ss]o\s)|(?<=(?:tion|oice|swer)\s))[b-hj]"
    r"(?= is (?:the )?\w+(?: answer| option| choice| one)?(?:[.,;!]|\s?\Z| (?:as|because|since)\b))"
    r") is (?:the )?(?:correct|right|best|answer)\b"
)
_LAST_CHOICE = re.compile(
    r"\b(?:(?i:options?|choices?|choose|select|pick)\s\(?([A-J])\)?"
    r"|(?:(?i:so|thus|hence|therefore),?\s)(\([A-J]\)|[A-HJ]))[\s.!*]*\Z"
)
_PREAMBLE = re.compile(  # before the answer itself: option (C), therefore 5, not 4 but 5
    r"(?:therefore|thus|hence|then|simply),?\s|either\s|not\s[^.\n]{1,80}?\sbut\s(?:rather\s)?"
    r"|(?:the )?(?:option|choice)\s(?=\(?[A-J]\b)",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:(?:wait,? no|no,? wait|scratch that|correction)[,:.;!]\s(?=[^\n]{0,200}[0-9])"
    r"|it should (?:be|have been)\s(?=[-$\\(]{0,3}[0-9]))",
    re.IGNORECASE,
)
_SLOT = re.compile(r"\[([^\[\],;]{1,200})\]|<([^<>,;]{1,200})>")  # [5], as in "Answer: [number]"
_TAGGED = re.compile(r"<answer>((?:[^<]|<(?!/?answer>)){1,1000})</answer>", re.IGNORECASE)
_BULLET = re.compile(r"\A[-\u2022]\s+")
_NUMBERED_HEADING = re.compile(r"\d{1,2}[.):]\s+[^\W\d_]")
_LISTED = re.compile(r"\b(?:solutions|roots|zeros|zeroes|values)\b[^.\n=]{0,60}?\bare:?\s")
_NAME = re.compile(r"\([A-Za-z]\)|[A-Za-z]\)|[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
_REMARK = re.compile(r"\s\((?:=\s?)?[^()=]{1,99}\)[.!\s]{0,9}\Z")
_EXCLAIMED = re.compile(r"(?:(?<=[0-9])|(?<=[^\W\d_]{2}))!\Z")
_RAISED_OR_LOWERED = re.compile(r"[\\^]|(?<=[A-Za-z)])_[0-9{]")  # LaTeX; H_2O
_NO_SENTENCE = re.compile(r"(?:between|not|neither)\b|[A-J]\)\s")  # a range, a denial, a choice
_VARIABLE = re.compile(  # "3 x 4" multiplies
    r"(?<![^\W\d_])(?!\A.\s?=|(?<=\s)x\s(?=[0-9(]))[b-zB-Z](?![^\W\d_])|[\\^;]"
    r"|,\s[^\W\d_]+\s?\Z"  # "width = 3, height = 5" has two answers
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_PROSE = re.compile(  # but not "C. Paris"
    r"(?!\(?[A-J]\)\s|[A-J][.:]\s(?:[^\s\d]+\s?){1,5}\Z)(?:[^0-9\\]*?[^\W\d_]{2}|[aAI]\s(?![-+*/<>^]))"
)


def _after_hashes(text: str) -> str | None:
    if "####" not in text:
        return None
    is_last_line = True
    for line in reversed(text.split("\n")):
        _, mark, after = line.rpartition("####")
        whole = bare(after) if mark else ""
        answer: str | None = whole  # 5! is a factorial here
        if not is_number(whole):
            answer = _after_mark(whole) or _stated(whole, is_last=is_last_line)
        is_heading = not is_last_line and _NUMBERED_HEADING.match(whole)
        if answer and (is_last_line or is_number(answer)) and not is_heading:
            return answer
        is_last_line = is_last_line and not has_content(line)
    return None


def _in_box(text: str) -> str | None:
    starts: list[int | None] = []  # where each open box begins; None for a plain open brace
    boxes: list[tuple[int, int]] = []
    for match in _BOXED_OR_BRACE.finditer(text):
        if match[0] == "}" and starts:
            start = starts.pop()
            if start is not None and _NOT_SPACE.search(text, start, match.start()):
                boxes.append((start, match.start()))
        elif match[0] == "{":
            starts.append(None)
        elif len(match[0]) > 2:  # a box
            starts.append(match.end())
    return _joined(text, boxes) if boxes else None


def _joined(text: str, boxes: list[tuple[int, int]]) -> str:
    r"""The content of the last box, and of boxes joined to it: \boxed{3} and \boxed{4}."""
    (start, end), link = boxes.pop(), ""
    parts = [text[start:end].strip()]
    while boxes and len(parts) < _MOST_BOXES:
        first, last = boxes.pop()
        opening = text.rfind("\\", last, start)
        between = _BETWEEN_BOXES.fullmatch(text, last + 1, opening) if opening > last else None
        if between is None:
            break
        link, start = "or" if "or" in (link, between[1]) else "and", first
        parts.insert(0, text[first:last].strip())
    if link == "or" and all(same_meaning(part, parts[-1]) for part in parts):
        return parts[-1]
    return (", " if link == "and" else " or ").join(parts)


def _in_tags(text: str) -> str | None:
    tagged = _last(_TAGGED, text)
    return _stated(tagged[1], is_last=True) if tagged else None


def _in_json(text: str) -> str | None:
    text = re.sub("```(?:json)?", "", text).strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        data = json.loads(text, parse_int=str, parse_float=str, strict=False)  # no file
    except (ValueError, RecursionError):
        return None
    key = next((key for key in ("answer", *data) if key in data and key.endswith("answer")), "")
    answer = data.get(key)
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    return _stated(answer, is_last=True) if isinstance(answer, str) else None


def _after_mark(text: str) -> str | None:
    mark = _last(ANSWER_MARK, text)
    if mark is None:
        return None
    rest = _JSON_ESCAPE.sub(lambda escape: escape[1] or " ", text[mark.end() :])
    if mark[0].endswith(('":', "':")):  # a key in JSON that does not parse as a whole
        value = _JSON_VALUE.match(rest)
        return _stated(value[1] or value[2] or "", is_last=True) if value else None
    if correction := _last(_CORRECTION, rest):
        rest = rest[correction.end() :]
    lines = [line for line in rest.split("\n") if has_content(line)]
    if not lines or WORKED_SOLUTION.match(rest):
        return None
    if mark[0].endswith("A:") and lines[1:] and not lines[1].startswith("Q"):
        return None
    line = lines[0].lstrip(MARKUP + ":=")
    if not rest.startswith(lines[0]):  # a list of one
        line = _BULLET.sub("", line)
    return _stated(line, is_last=len(lines) == 1)


def _stated(line: str, *, is_last: bool) -> str | None:
    """The answer in a line; only in a text's last line may it lack a number."""
    line = _without_slot(bare(_ARROW.split(_CALCULATOR.sub("", line))[-1]))
    while preamble := _PREAMBLE.match(line):
        line = line[preamble.end() :]
    line = _EXCLAIMED.sub("", line)  # "The answer is 5!"
    before, _, after = line.rpartition("=")
    sums = [] if _VARIABLE.search(before) else [after, _first_sentence(after)]
    sentence = _first_sentence(line)
    if verdict := _VERDICT.match(line):
        return verdict[0]
    clause = _CLAUSE.search(sentence)
    clauses = [sentence[: clause.start()]] if clause else []
    if sums and clauses:
        sums.append(clauses[0].rpartition("=")[2])
    for reading in (sentence, *clauses):
        if _CHOICE.fullmatch(reading) or _has_values(reading):
            return reading
    for reading in (line, sentence, *sums, *clauses):
        if is_number(reading):
            return bare(reading)
    if named := _NAMED.match(sentence):
        return named[1]
    if not is_last:
        return None
    number = _last_formula(line) if _PROSE.match(line) and not read(sentence) else None
    if _is_prose(line) and not (number and _has_values(number)):
        number = _last_number(line)
    formula = next((c for c in clauses if _understood(c)), None)  # √2, which is about 1.41
    return number or formula or (sentence if has_content(sentence) else None)


def _without_slot(line: str) -> str:
    """The content of a template's brackets, "[5]"; without the last bracket of "(Answer: 5)"."""
    if line.endswith(")") and line.count(")") == 1 and not re.search(r"[(\[]", line):
        line = bare(line[:-1])
    slot = _SLOT.fullmatch(line)
    return bare(slot[1] or slot[2]) if slot else line


def _first_sentence(line: str) -> str:
    end = _SENTENCE_END.search(line)
    return bare(line[: end.start()] if end else line)


def _is_prose(line: str) -> bool:
    """Whether a line is a sentence that mentions numbers, rather than a formula or a list."""
    if not line[:1].isalpha() or _RAISED_OR_LOWERED.search(line) or _NO_SENTENCE.match(line):
        return False
    return any(word.lower() not in NOT_UNITS for word in _WORD.findall(line))


def _has_values(text: str) -> bool:
    """Whether a whole text is a list of named values, or only tuples, intervals and sets."""
    node = read(text)
    if node is None:
        return False
    values = node.parts if node.kind == "list" else (node,)
    kinds = {value.kind for value in values}
    return kinds <= {"bracket", "set", "union"} or (kinds == {"named"} and len(values) > 1)


def _chosen(text: str) -> str | None:
    """The choice that a text calls right, or ends with: "B is correct", "So I choose (B)."."""
    if chosen := _last(_CHOSEN, text):
        return chosen[1]
    last = _LAST_CHOICE.search(text, max(0, len(text) - 60))
    return (last[1] or last[2]) if last else None


def _listed(text: str) -> str | None:
    """The list of values at the end of a text: "The roots are 3 and 5."."""
    mark = _last(_LISTED, text)
    values = bare(text[mark.end() :]) if mark else ""
    node = read(values) if values else None
    return values if node is not None and node.kind == "list" else None


def _whole(text: str) -> str | None:
    """A text that is itself the answer: a choice, a word, or a formula that parses completely."""
    line = _without_slot(bare(text))
    if "\n" in line or not has_content(line):
        return None
    if _NAME.fullmatch(name := _EXCLAIMED.sub("", line)):  # "Yes!"
        return name
    node = _understood(line)
    if node is None or ("=" in line and node.kind != "named"):  # 3 + 4 = 8 is a step
        return None
    return line


def _understood(line: str) -> Node | None:
    return None if _PROSE.match(line) else read(line)  # "so x" is not s * o * x


def _last_formula(text: str) -> str | None:
    """The formula or list that contains the last number, if it parses completely."""
    formulas = filter(_is_formula, FORMULA.finditer(text))
    formula, last = next(iter(deque(formulas, maxlen=1)), None), _last(NUMBER, text)
    if formula is None or (last and last.end() > formula.end()):
        return None
    inside = formula[formula.lastindex or 0]
    sides = [inside] if _has_values(inside) else [inside.rpartition("=")[2]]
    if formula["sum"]:
        if last and last.start() < formula.start():  # a lone π
            return None
        part = _last(PART, inside)
        sides += [part[0]] if part else []
    return next((bare(side) for side in sides if has_content(side) and read(side)), None)


def _is_formula(found: re.Match[str]) -> bool:
    """Whether a match of `FORMULA` is more than numbers and perhaps the letter of a unit."""
    text = found["sum"]
    return not text or bool(PART.search(text) or (_SIGNED.search(text) and _TERM.search(text)))


def _last_number(text: str) -> str | None:
    """The last number; one in a remark at the end only if there is no other: 42 (6 * 7)."""
    match = _last(NUMBER, _REMARK.sub("", text)) or _last(NUMBER, text)
    return match[0] if match else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


MARKED = (_after_hashes, _in_box, _in_tags)
"""The finders of answers with a mark of their own."""
STATING = (*MARKED, _in_json, _after_mark)
"""The finders of answers that a text states to be so."""
FINDERS = (*STATING, _listed, _chosen, _whole, _last_formula, _last_number)
"""All finders, the most certain first."""
