r"""Extracts the final answer of a solution and checks whether it is right.

Answers are compared as plain numbers, then as text, then by their meaning (`math.equality`). Units
and names that only one answer has are ignored; if both have them, they must agree. "5 cm" equals
"5" and "x = 5" equals "5", but "5 cm" is not "5 m". Equality is symmetric but not transitive.

Texts come from models: nothing here raises an error on any string, or takes more than linear time.
"""

from __future__ import annotations

import json
import re
from collections import deque
from decimal import Decimal

from ledom.core.records import Candidate, Problem
from ledom.text import answer_patterns as patterns
from ledom.text.boxes import boxed
from ledom.text.math.equality import is_number, same_meaning
from ledom.text.math.expressions import read
from ledom.text.math.in_text import ANSWER_MARK, FORMULA, NUMBER, PART, WORKED_SOLUTION
from ledom.text.math.nodes import Node
from ledom.text.math.notation import MARKUP, bare, has_content, keyboard, within_braces
from ledom.text.math.spelling import QUOTED, text_key
from ledom.text.math.units import NOT_UNITS

__all__ = ["equal_answers", "extract_answer", "is_right", "split_thought", "with_tags"]

_MOST_MARKS = 8  # from the last, in search of one that states an answer


def extract_answer(text: str) -> str | None:
    r"""The final answer that a solution text states, or None.

    The following are searched in order; the last occurrence of the first kind found is the answer:

    1. `#### answer`, to the end of the line (a `####` heading in mid-text does not count);
    2. `\boxed{answer}`, braces nested; `\boxed{3} and \boxed{4}` are one answer, "3, 4";
    3. the key "answer" of a JSON text, "answer is", "correct option is", "Answer:", or a last line
       "A: answer"; in a sentence, the answer is the part before "because" or "rather than", or
       else the last number; in a chain of equations, the part after the last "="; after "Wait,
       no" or "it should be", what follows ("the answer is correct" does not count);
    4. a choice that is called right, ends the text or is its first line, "Yes" or "No" before words
       without numbers, or the whole text, if it is a word or can be read as an answer;
    5. the last number before any final "because", or before what follows a result ("= 90 pages in
       30 days"), or the formula, pair or list that contains it.

    Text before `</think>` counts only if no answer follows it (`split_thought`). `<answer>` tags
    count as a box. Kinds 1 to 3 take precedence over a further question ("Q: ...") of the model.

    >>> extract_answer("So 16 - 3 = 13, and the answer is 6 rather than 5.")
    '6'
    >>> extract_answer(r"Thus \boxed{\frac{1}{2}} of them."), extract_answer("No number.")
    ('\\frac{1}{2}', None)
    """
    thought, conclusion = split_thought(_tidy(keyboard(with_tags(text))))
    for part in (conclusion, thought):
        before, *further = patterns.NEXT_QUESTION.split(part, maxsplit=1)
        places = [(find, before) for find in _STATING if further]
        for find, place in [*places, *((find, part) for find in _FINDERS)]:
            if (answer := find(place)) is not None:
                return answer
    return None


def _tidy(text: str) -> str:
    """The text without control tokens and emphasis, with one spelling of signs and boxes."""
    for pattern, replacement in patterns.TIDIED:
        text = pattern.sub(replacement, text)
    return text


def with_tags(text: str) -> str:
    """A text with `<think>` and `</think>` around its thought, whatever the model's own marks.

    >>> with_tags("[THINK]3 + 4[/THINK]It is 7.")
    '<think>3 + 4</think>It is 7.'
    """
    for mark, tag in patterns.THOUGHT_TAGS:
        text = mark.sub(tag, text)
    return text


def split_thought(text: str) -> tuple[str, str]:
    """A reasoning model's thought, up to its last `</think>` (`with_tags`), and what follows it.

    An open thought was cut off and is part of neither, unless it marks an answer (`####`, a box).
    An empty thought, which Qwen 3 writes with thinking turned off, is part of neither.

    >>> split_thought("<think>1 + 1?</think>2"), split_thought("<think>1 + 1?")
    (('<think>1 + 1?', '2'), ('', ''))
    >>> split_thought("<think>\\n\\n</think>\\n\\n2")
    ('', '2')
    """
    thought, _, rest = with_tags(text).rpartition("</think>")
    if thought and not re.sub("</?think>", "", thought).strip():
        thought, rest = "", rest.lstrip()
    conclusion, _, cut_off = rest.partition("<think>")
    is_marked = any(find(cut_off) for find in _MARKED)
    return thought, rest if is_marked else conclusion


# ---- where a text states its answer: each of these returns the answer, or None ----


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
        is_heading = not is_last_line and patterns.NUMBERED_HEADING.match(whole)
        if answer and (is_last_line or is_number(answer)) and not is_heading:
            return answer
        is_last_line = is_last_line and not has_content(line)
    return None


def _in_box(text: str) -> str | None:
    joined = boxed(text) if "box" in text else None  # most texts have none
    return joined and (_after_mark(joined) or joined)  # \boxed{\text{Answer: } 5}


def _in_tags(text: str) -> str | None:
    tagged = _last(patterns.TAGGED, text)
    return (_after_mark(tagged[2]) or _stated(tagged[2], is_last=True)) if tagged else None


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
    if not isinstance(answer, str):
        return None
    answer = patterns.LOST_BACKSLASH.sub(lambda lost: patterns.ESCAPED[lost[0]], answer)
    return _after_mark(answer) or _stated(answer, is_last=True)  # "The answer is B"


def _after_mark(text: str) -> str | None:
    marks = [*deque(ANSWER_MARK.finditer(text), maxlen=_MOST_MARKS)]
    remarks = [(mark, patterns.REMARK_ON_IT.match(text, mark.end())) for mark in reversed(marks)]
    stating = [mark for mark, remark in remarks if not remark]
    stating += [mark for mark, remark in remarks if remark and remark["verdict"]]
    if not stating:
        return None
    mark = stating[0]
    rest = patterns.JSON_ESCAPE.sub(lambda escape: escape[1] or " ", text[mark.end() :])
    if mark[0].endswith(('":', "':")):  # a key in JSON that does not parse as a whole
        value = patterns.JSON_VALUE.match(rest)
        found = (value[1] or value[2] or "").replace("\\\\", "\\") if value else ""
        return _stated(found, is_last=True)
    if correction := _last(patterns.CORRECTION, rest):
        rest = rest[correction.end() :]
    lines = [line for line in rest.split("\n") if has_content(line)]
    if not lines or WORKED_SOLUTION.match(rest):
        return None
    if mark[0].endswith("A:") and lines[1:] and not lines[1].startswith("Q"):
        return None
    line = within_braces(lines[0].lstrip(MARKUP + ":="))
    if not rest.startswith(lines[0]):  # a list of one
        line = patterns.BULLET.sub("", line)
    return _stated(line, is_last=len(lines) == 1)


def _stated(line: str, *, is_last: bool) -> str | None:
    """The answer in a line; only in a text's last line may it lack a number."""
    line = _without_slot(bare(patterns.ARROW.split(line)[-1]))
    while preamble := patterns.PREAMBLE.match(line):
        line = line[preamble.end() :]
    line = patterns.EXCLAIMED.sub("", patterns.CHAIN.sub("", line))  # "The answer is 5!"
    if verdict := patterns.VERDICT.match(line):
        return verdict[0]
    sentence = _first_sentence(line)
    clause = patterns.CLAUSE.search(sentence)
    clauses = [sentence[: clause.start()]] if clause else []
    for reading in (sentence, *clauses):
        if patterns.CHOICE.fullmatch(reading) or _has_values(reading):
            return reading
    results = _results(line, *clauses)
    if clause and patterns.REASON.match(sentence, clause.start()):  # 5, because 2 + 3 = 5
        results = [*clauses, *results[2:], *results]
    for reading in (line, sentence, *results, *clauses):
        if is_number(reading):
            return bare(reading)
    if named := patterns.NAMED.match(sentence):
        return named[1]
    return _worded(line, [sentence, *clauses]) if is_last else None


def _results(line: str, *clauses: str) -> list[str]:
    """What follows the last "=", unless it is part of an equation with variables."""
    before, _, after = line.rpartition("=")
    if patterns.VARIABLE.search(before):
        return []
    return [after, _first_sentence(after), *(clause.rpartition("=")[2] for clause in clauses)]


def _worded(line: str, readings: list[str]) -> str | None:
    """The number in a sentence, or else a formula or the words of the sentence."""
    sentence = readings[0]
    number = _last_formula(line) if patterns.PROSE.match(line) and not read(sentence) else None
    if _is_prose(sentence) and not (number and _has_values(number)):
        number = _last_number(line)
    formula = next(filter(_understood, readings), None)  # √2, about 1.41
    return number or formula or (sentence if has_content(sentence) else None)


def _without_slot(line: str) -> str:
    """The content of a template's brackets, "[5]"; without the last bracket of "(Answer: 5)"."""
    if line.endswith(")") and line.count(")") == 1 and not re.search(r"[(\[]", line):
        line = bare(line[:-1])
    slot = patterns.SLOT.fullmatch(line)
    return bare(slot[1] or slot[2]) if slot else line


def _first_sentence(line: str) -> str:
    end = patterns.SENTENCE_END.search(line)
    return bare(line[: end.start()] if end else line)


def _is_prose(line: str) -> bool:
    """Whether a line is a sentence that mentions numbers, rather than a formula or a list."""
    if (
        not line[:1].isalpha()
        or patterns.RAISED_OR_LOWERED.search(line)
        or patterns.NO_SENTENCE.match(line)
    ):
        return False
    return any(word.lower() not in NOT_UNITS for word in patterns.WORD.findall(line))


def _has_values(text: str) -> bool:
    """Whether a whole text is a list of named values, or only tuples, intervals and sets."""
    node = read(text)
    if node is None:
        return False
    values = node.parts if node.kind == "list" else (node,)
    kinds = {value.kind for value in values}
    return kinds <= {"bracket", "set", "union"} or (kinds == {"named"} and len(values) > 1)


def _chosen(text: str) -> str | None:
    """The choice that a text ends with, calls right, or has as its first line or last paragraph."""
    if last := patterns.LAST_CHOICE.search(text, max(0, len(text) - 60)):
        return last[1]
    if chosen := _last(patterns.CHOSEN, text):
        return chosen[chosen.lastindex or 0]
    first = patterns.FIRST_CHOICE.match(text)
    if first and not patterns.LISTED_CHOICE.search(text, first.end()):
        return bare(first[1] or first[2])
    if judged := patterns.JUDGED.search(text, max(0, len(text) - 99)):
        return judged[1]
    last = patterns.CHOICE_PARAGRAPH.search(text, max(0, len(text) - 300))
    listed = patterns.LISTED_CHOICE.finditer(text, 0, last.start()) if last else ()
    letters = {item[1] or item[2] or item[3] for item in listed}
    is_item = last and letters and (last[2] or last[3]) not in letters  # C after A and B
    return bare(last[1]) if last and not is_item else None


def _listed(text: str) -> str | None:
    """The list of values at the end of a text: "The roots are 3 and 5."."""
    mark = _last(patterns.LISTED, text)
    values = bare(text[mark.end() :]) if mark else ""
    node = read(values) if values else None
    return values if node is not None and node.kind == "list" else None


def _whole(text: str) -> str | None:
    """A text that is itself the answer: a choice, a word, or a formula that parses completely."""
    line = _without_slot(bare(text))
    if verdict := patterns.VERDICT.match(line):  # "Yes, cats can swim."
        return verdict[0]
    if "\n" in line or not has_content(line):
        return None
    if said := patterns.SAID.fullmatch(line):  # "18 is the answer."
        return _whole(said[1])
    name = patterns.EXCLAIMED.sub("", line)  # "Yes!"
    if patterns.NAME.fullmatch(QUOTED.sub(r"\2", name)):
        return name
    node = _understood(line)
    if node is None or "=" not in line:
        return line if node else None
    kinds = [part.kind for part in node.walk()]  # 3 + 4 = 8, a relation, is a step
    return line if "named" in kinds[:2] and "relation" not in kinds else None


def _understood(line: str) -> Node | None:
    return None if patterns.PROSE.match(line) else read(line)  # "so x" is not s * o * x


def _at_end(text: str) -> str | None:
    """The last formula or number, before a reason in the last sentence: 7, since 3 + 4 = 7."""
    if reason := patterns.LAST_REASON.search(text, max(0, len(text) - 300)):
        before = text[: max(reason.start(), reason.end("result"))]
        if NUMBER.search(re.split(r"[.!?]\s|\n", before)[-1]):
            text = before
    return _last_formula(text) or _last_number(text)


def _last_formula(text: str) -> str | None:
    """The formula or list that contains the last number, if it parses completely."""
    formulas = filter(_is_formula, FORMULA.finditer(text))
    formula, last = next(iter(deque(formulas, maxlen=1)), None), _last(NUMBER, text)
    if formula is None or (last and last.end() > formula.end()):
        return None
    inside = patterns.ARROW.split(formula[formula.lastindex or 0])[-1]
    sides = [side for side in inside.split("=") if not patterns.LETTER.fullmatch(side)][-1:]
    if _has_values(inside) or not sides:
        sides = [inside]
    if formula["sum"]:
        if last and last.start() < formula.start():  # a lone π
            return None
        part = _last(PART, inside)
        sides += [part[0]] if part else []
    whole = next((bare(side) for side in sides if has_content(side) and read(side)), None)
    is_delimited = formula[0] != inside  # its "$" is not a currency
    return whole or (_last_number(inside) if is_delimited else None)


def _is_formula(found: re.Match[str]) -> bool:
    """Whether a match of `FORMULA` is more than numbers and perhaps the letter of a unit."""
    text = found["sum"]
    if not text:
        is_letter = patterns.LETTER.fullmatch(found[found.lastindex or 0])
        return not (is_letter and found.string.endswith((" of ", " for "), 0, found.start()))
    return bool(PART.search(text) or (patterns.SIGNED.search(text) and patterns.TERM.search(text)))


def _last_number(text: str) -> str | None:
    """The last number; one in a remark at the end only if there is no other: 42 (6 * 7)."""
    match = _last(NUMBER, patterns.REMARK.sub("", text)) or _last(NUMBER, text)
    return match[0] if match else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


_MARKED = (_after_hashes, _in_box, _in_tags)
"""Finders of answers with a mark of their own."""
_STATING = (*_MARKED, _in_json, _after_mark)
"""Finders of answers that a text states to be so."""
_FINDERS = (*_STATING, _listed, _chosen, _whole, _at_end)
"""All finders, the most certain first."""


# ---- whether answers are equal ----


def is_right(candidate: Candidate, answer: str | None, problem: Problem) -> bool | None:
    """Whether a candidate is right; None without a label and without an answer to the problem.

    The candidate's label takes precedence. Without one, its final `answer` (`extract_answer` of its
    text) is compared with the problem's answer and aliases.

    >>> problem = Problem(id="p", question="2 + 2?", answer="4")
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5"), "5", problem)
    False
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5", correct=True), "5", problem)
    True
    """
    if candidate.correct is not None:
        return candidate.correct
    rights = problem.answer, *(problem.aliases or ())
    return any(equal_answers(right, answer) for right in rights) if problem.is_labeled else None


def equal_answers(first: str | None, second: str | None) -> bool:
    r"""Whether two answers are equal by value; False if either is None.

    >>> equal_answers("$1,200.00", "1200 dollars"), equal_answers("1/3", "0.333333")
    (True, False)
    >>> equal_answers("50%", "0.5"), equal_answers("5 cm", "5"), equal_answers("5 cm", "5 m")
    (True, True, False)

    Never raises an error, and takes bounded time: answers that cannot be decided are not equal. See
    "When two answers are equal" in docs/concepts.md.
    """
    if first is None or second is None:
        return False
    if patterns.PLAIN_NUMBER.fullmatch(first) and patterns.PLAIN_NUMBER.fullmatch(second):
        return Decimal(first) == Decimal(second)  # most answers need no parsing
    if not (has_content(first) and has_content(second)):
        return False
    if first == second or text_key(first) == text_key(second):
        return True
    return same_meaning(first, second)
