"""Finds the final answer of a solution, and tells whether it is right.

Texts come from models: nothing here raises on any string, and everything takes time linear in its
length. This module knows nothing of models or files.
"""

from __future__ import annotations

import json
import re
from collections import deque

from ledom.core.records import Candidate, Problem
from ledom.text.math.equality import equal_answers, has_content, is_number
from ledom.text.math.expressions import read
from ledom.text.math.notation import MARKUP, bare, keyboard
from ledom.text.math.units import NOT_UNITS

__all__ = ["extract_answer", "is_correct", "is_right"]

_CURRENCY = r"(?:US\$|Rs\.?|[$€£¥₹₱₩])"
_UNSIGNED = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}(?!,?[0-9])(?:\.[0-9]+)?"
    r"|[0-9]{1,2}(?:,[0-9]{2}){1,9},[0-9]{3}(?!,?[0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)

# ---- where a text states its answer ----

_BOXED_OR_BRACE = re.compile(r"\\boxed\s{0,4}\{|\\[\\{}]|[{}]")
_ANSWER_MARK = re.compile(
    r"(?i:\b(?:answers?|(?:correct|right|best) (?:option|choice))\b[\\*_\"'`\s]{0,8}"
    r"(?:(?:is|are|was|(?:would|must|should|will) be)\b|[:=]))"
    r"|^[ \t*]{0,8}A:(?=\s)",
    re.MULTILINE,
)
_PI = r"(?:π|\\pi\b)"
_RAISED = "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"
_NUMBER_IN_TEXT = re.compile(
    r"(?<![A-Za-z0-9_.^])(?<!\^[-{])(?<!\^\{-)"  # not the exponent of m^2
    r"(?:(?<![)\]])(?<![0-9)\]]\s)[-\u2212]|(?<=[=:]\s)[-\u2212]\s)?"  # "5 - 3" subtracts
    rf"(?:{_CURRENCY}\s?[-\u2212]?)?(?:[0-9]{{1,9}}\s(?=[0-9]{{1,9}}/))?{_UNSIGNED}"
    r"(?:/[0-9]+|(?::[0-9]+)+(?:\s?[ap]\.?m\b)?)?"
    r"(?:[eE][-+]?[0-9]{1,4}(?![\w.]\w)"
    rf"|(?:\s?(?:[x*×]|\\times|\\cdot)\s?10)?(?:\^\{{?-?[0-9]+\}}?|{_RAISED})"
    rf"|\s?\\?%|\s?{_PI}(?:/[0-9]+)?)?"
    r"(?:\s?(?:hundred|thousand|million|billion|trillion)\b)?"
)
_GROUP = r"\{(?:[^{}]|\{[^{}]{0,99}\}){1,99}\}"
_ROOT = r"[A-Za-z]\s?=\s?[-\u2212]?[0-9./]+"
_FORMULA = re.compile(
    r"\$\$?([^$\n]{1,400})\$|\\[(\[]((?:[^\\]|\\(?![()\[\]])){1,400})\\[)\]]"
    r"|((?<![0-9])-?[0-9]{0,20}(?:\\(?:[dt]?frac|sqrt|[dt]?binom)"
    rf"(?:\[[0-9]\])?(?:{_GROUP}|[0-9]){{1,2}}"
    rf"|√\s?(?:[0-9]+|\([^()\n]{{1,99}}\))|{_PI}(?=/))(?:/[0-9]+)?)"
    rf"|((?:[(\[]|\\\{{)[-\u2212]?{_UNSIGNED}(?:,\s?[-\u2212]?{_UNSIGNED}){{1,20}}(?:[)\]]|\\\}}))"
    rf"|({_ROOT}(?:(?:,|,?\s(?:or|and))\s{_ROOT}){{1,20}})"
)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_SENTENCE_END = re.compile(r"[.!?](?=[\s*\"'`)]|$)")
_JSON_ESCAPE = re.compile(r"\\(?:n(?![a-z])|(\"))")
_JSON_VALUE = re.compile(r"\s*(?:\"([^\"\n]*)|([^\",}\n]*))")
_NOT_SPACE = re.compile(r"\S")
_FENCE = re.compile(r"```(?:json)?")
_CLAUSE = re.compile(
    r"(?:[,;]\s|\s\(|\s(?=(?:because|since|as|rather than|instead of|(?:and |but )?not)\b))"
    r"(?!and (?!not\b)|or\b)(?=[^\W\d_]{2})"
    r"|\s\((?=[^()]{1,99}\)\Z)"  # a remark: 7 (3 + 4)
)
_ARROW = re.compile(r"=>|\u21d2|\\(?:Rightarrow|implies)(?![A-Za-z])")
_CHOICE = re.compile(r"\([A-Za-z]\)|[A-Z]")
_CHOSEN = re.compile(r"(?<![\w'])(\([A-J]\)|[A-J]) is (?:the )?(?:correct|right|best)\b")
_OPTION = re.compile(r"either\s|(?:the )?(?:option|choice)\s(?=\(?[A-J]\b)", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>([^<]{1,1000})</answer>")
_RANGE_OR_DENIAL = re.compile(r"(?:between|not|neither)\b")
_VARIABLE = re.compile(
    r"(?<![^\W\d_])(?!\A.\s?=|(?<=\s)x\s)[b-zB-Z](?![^\W\d_])|[\\^;]"  # "3 x 4" multiplies
    r"|,\s[^\W\d_]+\s?\Z"  # "width = 3, height = 5" has two answers
)
_WORD = re.compile(r"[^\W\d_]{2,}")


def extract_answer(text: str) -> str | None:
    r"""The final answer that a solution text states, or None.

    These are looked for in order; the last occurrence of the first kind found is the answer:

    1. `#### answer`, to the end of the line (a `####` heading in mid-text does not count);
    2. `\boxed{answer}`, braces nested;
    3. the key "answer" of a JSON text, "answer is", "correct option is", "Answer:", or a last line
       "A: answer"; in a sentence, the answer is the part before "because" or "rather than", or
       else the last number; in a chain of equations, the part after the last "=";
    4. the last number, or the formula, pair or list of values that contains it.

    Text before `</think>` counts only if no answer follows it; `<answer>` tags count as a box.

    >>> extract_answer("So 16 - 3 = 13, and the answer is 6 rather than 5.")
    '6'
    >>> extract_answer(r"Thus \boxed{\frac{1}{2}} of them."), extract_answer("No number.")
    ('\\frac{1}{2}', None)
    >>> extract_answer("The correct option is (C).")
    '(C)'
    """
    thought, _, conclusion = keyboard(text).rpartition("</think>")
    for part in (conclusion, thought):
        for find in _FINDERS:
            answer = find(part)
            if answer is not None:
                return answer
    return None


def is_correct(candidate_text: str, answer: str) -> bool:
    """Whether a solution text ends in an answer that equals `answer` by value.

    >>> is_correct("2 + 2 = 4. The answer is 4.", "4.0")
    True
    """
    return equal_answers(extract_answer(candidate_text), answer)


def is_right(candidate: Candidate, answer: str | None, problem: Problem) -> bool | None:
    """Whether a candidate is right; None if neither its label nor the problem's answer tells.

    The candidate's label counts first. Without one, its final `answer` (`extract_answer` of its
    text) is compared with the problem's.

    >>> problem = Problem(id="p", question="2 + 2?", answer="4")
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5"), "5", problem)
    False
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5", correct=True), "5", problem)
    True
    """
    if candidate.correct is not None:
        return candidate.correct
    return equal_answers(problem.answer, answer) if problem.is_labeled else None


# ---- finders: text -> the answer that it states, or None ----


def _after_hashes(text: str) -> str | None:
    if "####" not in text:
        return None
    is_last_line = True
    for line in reversed(text.split("\n")):
        _, mark, after = line.rpartition("####")
        answer = bare(after) if mark else ""
        if has_content(answer) and (is_last_line or is_number(answer)):
            return answer
        is_last_line = is_last_line and not has_content(line)
    return None


def _in_box(text: str) -> str | None:
    starts: list[int | None] = []  # where each open box begins; None for an open brace without one
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


def _in_tags(text: str) -> str | None:
    tagged = _last_match(_TAGGED, text)
    return _stated(tagged[1], is_last=True) if tagged else None


def _in_json(text: str) -> str | None:
    text = _FENCE.sub("", text).strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        data = json.loads(text, parse_int=str, parse_float=str, strict=False)  # no file
    except (ValueError, RecursionError):
        return None
    answer = data.get("answer")
    return _stated(answer, is_last=True) if isinstance(answer, str) else None


def _after_mark(text: str) -> str | None:
    mark = _last_match(_ANSWER_MARK, text)
    if mark is None:
        return None
    rest = _JSON_ESCAPE.sub(lambda escape: escape[1] or " ", text[mark.end() :])
    if mark[0].endswith(('":', "':")):  # a key in JSON that does not parse as a whole
        value = _JSON_VALUE.match(rest)
        return _stated(value[1] or value[2] or "", is_last=True) if value else None
    lines = [line for line in rest.split("\n") if has_content(line)]
    if not lines or (mark[0].endswith("A:") and lines[1:] and not lines[1].startswith("Q")):
        return None
    return _stated(lines[0].lstrip(MARKUP + ":="), is_last=len(lines) == 1)


def _stated(line: str, *, is_last: bool) -> str | None:
    """The answer in a line; only the last line of a text may hold one without a number."""
    line = _OPTION.sub("", bare(_ARROW.split(_CALCULATOR.sub("", line))[-1]), count=1)
    before, _, after = line.rpartition("=")
    sums = [] if _VARIABLE.search(before) else [after, _first_sentence(after)]
    sentence = _first_sentence(line)
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
    if not is_last:
        return None
    if _is_prose(line):
        number = _last_number(line)
    else:
        number = None if read(sentence) else _last_formula(line)
    return number or (sentence if has_content(sentence) else None)


def _first_sentence(line: str) -> str:
    end = _SENTENCE_END.search(line)
    return bare(line[: end.start()] if end else line)


def _is_prose(line: str) -> bool:
    """Whether a line is a sentence that mentions numbers, rather than a formula or a list."""
    if not line[:1].isalpha() or "\\" in line or "^" in line or _RANGE_OR_DENIAL.match(line):
        return False
    return any(word.lower() not in NOT_UNITS for word in _WORD.findall(line))


def _has_values(text: str) -> bool:
    """Whether a whole text is a list of named values, or a tuple, an interval or a set."""
    node = read(text)
    if node is None:
        return False
    values = node.parts if node.kind == "list" else (node,)
    named = [value for value in values if value.kind == "named"]
    return node.kind in ("bracket", "set", "union") or len(named) == len(values) > 1


def _chosen(text: str) -> str | None:
    chosen = _last_match(_CHOSEN, text)
    return chosen[1] if chosen else None


def _last_formula(text: str) -> str | None:
    """The formula or list that contains the last number, if it parses completely."""
    formula, last = _last_match(_FORMULA, text), _last_match(_NUMBER_IN_TEXT, text)
    if formula is None or (last and last.end() > formula.end()):
        return None
    inside = formula[formula.lastindex or 0]
    sides = [inside] if _has_values(inside) else [inside.rpartition("=")[2]]
    return next((bare(side) for side in sides if has_content(side) and read(side)), None)


def _last_number(text: str) -> str | None:
    match = _last_match(_NUMBER_IN_TEXT, text)
    return match[0] if match else None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


_FINDERS = (
    *(_after_hashes, _in_box, _in_tags, _in_json, _after_mark),
    *(_chosen, _last_formula, _last_number),
)
