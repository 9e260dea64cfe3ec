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

from ledom.core.records import THOUGHT_END, Candidate, Problem
from ledom.text.math.equality import is_number, same_meaning
from ledom.text.math.expressions import read
from ledom.text.math.in_text import ANSWER_MARK, FORMULA, NUMBER, PART, WORKED_SOLUTION
from ledom.text.math.nodes import Node
from ledom.text.math.notation import MARKUP, bare, keyboard, text_key
from ledom.text.math.units import NOT_UNITS

__all__ = [
    "AnswerClasses",
    "equal_answers",
    "extract_answer",
    "has_content",
    "is_correct",
    "is_right",
    "split_thought",
]

_BOXED_OR_BRACE = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,4}\{|\\[\\{}]|[{}]")
# A sum of numbers alone is a step of a calculation; 5m and T-5 are not expressions.
_SIGNED = re.compile(r".\s?[-+\u2212]|\)\(")
_TERM = re.compile(r"[0-9)][a-z(]|[a-z][\^(]|(?:\A|\W)[a-z]\s[-+\u2212]\s|\s[-+\u2212]\s[a-z]")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_SENTENCE_END = re.compile(  # not a factorial's sign: 5! = 120, 5! ways
    r"(?<!\b[ie]\.[eg])(?:[.?]|!(?!\s?[-+*/^=<>a-z]))(?=[\s*\"'`)]|$)"
)
_JSON_ESCAPE = re.compile(r"\\(?:n(?![a-z])|(\"))")
_JSON_VALUE = re.compile(
    r"\s*(?:\"([^\"\n]*)|(?:null|None)\b|([$-]{0,2}[0-9]{1,3}(?:,[0-9]{3})+[^\",}\n]*|[^\",}\n]*))"
)
_NOT_SPACE = re.compile(r"\S")
_CLAUSE = re.compile(
    r"(?:[,;]\s|\s\(|\s[-\u2013\u2014]\s(?=(?:because|but|note|since|so|that|this|which)\b)"
    r"|\s(?=(?:because|since|as|rather than|instead of|(?:and |but )?not)\b))"
    r"(?!and (?!not\b)|or\b)(?=[^\W\d_]{2}|i\.e\.)"
    r"|\s\((?=[^()]{1,99}\)\Z)"  # a remark: 7 (3 + 4)
    r"|,?\sor (?:about|around|roughly|approximately)\b"
)
_ARROW = re.compile(r"=>|\u21d2|\\(?:Rightarrow|implies)(?![A-Za-z])")
_CHOICE = re.compile(r"\([A-Za-z]\)|[A-Z]")
_VERDICT = re.compile(  # no later number could be the answer instead
    r"(?i:yes|no|true|false)(?=(?:[.,;!]|\s[-(–—])\D*\Z|\s*\Z|,?\s(?:because|since)\b)"
)
_CHOSEN = re.compile(  # "our value of b is correct" is about a variable
    r"(?<![\w'])(\([A-Ja-j]\)|[A-J]|(?:(?<!\w\s)|(?<=\b[Ss]o\s)|(?<=(?:tion|oice|swer)\s))[b-hj]"
    r"(?= is (?:the )?\w+(?: answer| option| choice| one)?(?:[.,;!]|\s?\Z| (?:as|because|since)\b))"
    r") is (?:the )?(?:correct|right|best)\b"
)
_OPTION = re.compile(r"either\s|(?:the )?(?:option|choice)\s(?=\(?[A-J]\b)", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>([^<]{1,1000})</answer>", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"</?(?:b|i|u|em|strong|mark|code|span)>|(?<![\w*_`\\$])(\*\*|\*|__|`)(?![\s*_`])([^*_`\n]{1,200}?)(?<!\s)\1(?![\w*_`])"
)
_CONTROL = re.compile(r"</?s>|<(?:bos|eos|pad|(?:start|end)_of_turn)>|<\|[^<>|\s]{1,40}\|>")
_NEXT_QUESTION = re.compile(r"\n[ \t]{0,8}(?:Q|Question)\s?:")
_LISTED = re.compile(r"\b(?:solutions|roots|zeros|zeroes|values)\b[^.\n=]{0,60}?\bare:?\s")
_NAME = re.compile(r"\([A-Za-z]\)|[A-Za-z]\)|[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
_REMARK = re.compile(r"\s\([^()]{1,99}\)\Z")
_EXCLAIMED = re.compile(r"(?<=[0-9])!\Z")
_RANGE_OR_DENIAL = re.compile(r"(?:between|not|neither)\b")
_VARIABLE = re.compile(
    r"(?<![^\W\d_])(?!\A.\s?=|(?<=\s)x\s)[b-zB-Z](?![^\W\d_])|[\\^;]"  # "3 x 4" multiplies
    r"|,\s[^\W\d_]+\s?\Z"  # "width = 3, height = 5" has two answers
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_PROSE = re.compile(  # but not "C. Paris"
    r"(?!\(?[A-J][.)]\s(?:[^\s\d]+\s?){1,5}\Z)(?:[^0-9\\]*?[^\W\d_]{2}|[aAI]\s(?![-+*/<>^]))"
)
_CONTENT = re.compile(r"[^\W_]|[^\x00-\x7f]|\\\{")
_WRAPPER = re.compile(r"\\(?:boxed|fbox|framebox|text[a-z]*|mbox|math[a-z]+|q?quad)(?![A-Za-z])")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?")  # read in only one way


def extract_answer(text: str) -> str | None:
    r"""The final answer that a solution text states, or None.

    The following are searched in order; the last occurrence of the first kind found is the answer:

    1. `#### answer`, to the end of the line (a `####` heading in mid-text does not count);
    2. `\boxed{answer}`, braces nested;
    3. the key "answer" of a JSON text, "answer is", "correct option is", "Answer:", or a last line
       "A: answer"; in a sentence, the answer is the part before "because" or "rather than", or
       else the last number; in a chain of equations, the part after the last "=";
    4. the whole text, if it is a word or can be read as an answer;
    5. the last number, or the formula, pair or list of values that contains it.

    Text before `</think>` counts only if no answer follows it (`split_thought`). `<answer>` tags
    count as a box. Kinds 1 to 3 take precedence over a further question ("Q: ...") of the model.

    >>> extract_answer("So 16 - 3 = 13, and the answer is 6 rather than 5.")
    '6'
    >>> extract_answer(r"Thus \boxed{\frac{1}{2}} of them."), extract_answer("No number.")
    ('\\frac{1}{2}', None)
    """
    thought, conclusion = split_thought(_EMPHASIS.sub(r"\2", _CONTROL.sub("\n", keyboard(text))))
    for part in (conclusion, thought):
        before, *further = _NEXT_QUESTION.split(part, maxsplit=1)
        places = [(find, before) for find in _STATING if further]
        for find, place in [*places, *((find, part) for find in _FINDERS)]:
            answer = find(place)
            if answer is not None:
                return answer
    return None


def split_thought(text: str) -> tuple[str, str]:
    """A reasoning model's thought, up to the last `</think>`, and what follows it.

    An open thought was cut off and is part of neither, unless it marks an answer (`####`, a box).

    >>> split_thought("<think>1 + 1?</think>2"), split_thought("<think>1 + 1?")
    (('<think>1 + 1?', '2'), ('', ''))
    """
    thought, _, rest = text.rpartition(THOUGHT_END)
    conclusion, _, cut_off = rest.partition("<think>")
    is_marked = any(find(cut_off) for find in (_after_hashes, _in_box, _in_tags))
    return thought, rest if is_marked else conclusion


def is_correct(candidate_text: str, answer: str) -> bool:
    """Whether a solution text ends in an answer that equals `answer` by value.

    >>> is_correct("2 + 2 = 4. The answer is 4.", "4.0")
    True
    """
    return equal_answers(extract_answer(candidate_text), answer)


def is_right(candidate: Candidate, answer: str | None, problem: Problem) -> bool | None:
    """Whether a candidate is right; None without a label and without an answer to the problem.

    The candidate's label takes precedence. Without one, its final `answer` (`extract_answer` of its
    text) is compared with the problem's answer.

    >>> problem = Problem(id="p", question="2 + 2?", answer="4")
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5"), "5", problem)
    False
    >>> is_right(Candidate(problem_id="p", index=0, text="#### 5", correct=True), "5", problem)
    True
    """
    if candidate.correct is not None:
        return candidate.correct
    return equal_answers(problem.answer, answer) if problem.is_labeled else None


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
    if _PLAIN_NUMBER.fullmatch(first) and _PLAIN_NUMBER.fullmatch(second):
        return Decimal(first) == Decimal(second)  # most answers need no parsing
    if not (has_content(first) and has_content(second)):
        return False
    if first == second or text_key(first) == text_key(second):
        return True
    return same_meaning(first, second)


def has_content(answer: str) -> bool:
    r"""Whether an answer has more than punctuation and LaTeX around nothing.

    >>> has_content("..."), has_content(r"\boxed{}"), has_content("x.")
    (False, False, True)
    """
    return bool(_CONTENT.search(_WRAPPER.sub("", answer)))


class AnswerClasses:
    """Groups equal answers to one problem and numbers the groups.

    All answers of a class equal each other. Equality is not transitive ("5 cm" and "5 m" both equal
    "5"), so a new answer joins the first class whose members all equal it.

    >>> classes = AnswerClasses()
    >>> [classes.number(answer) for answer in ("1/2", "2", "0.5", None)]
    [0, 1, 0, -1]
    """

    def __init__(self) -> None:
        self._by_answer: dict[str, int] = {}
        self._classes: list[list[str]] = []

    def number(self, answer: str | None) -> int:
        """The number of the answer's class; -1 for None."""
        if answer is None or not has_content(answer):
            return -1
        if answer not in self._by_answer:
            fits = (all(equal_answers(a, answer) for a in members) for members in self._classes)
            found = next((n for n, fit in enumerate(fits) if fit), len(self._classes))
            if found == len(self._classes):
                self._classes.append([])
            self._classes[found].append(answer)
            self._by_answer[answer] = found
        return self._by_answer[answer]


# Finders: each looks for an answer that is stated in one way, and returns it or None.
def _after_hashes(text: str) -> str | None:
    if "####" not in text:
        return None
    is_last_line = True
    for line in reversed(text.split("\n")):
        _, mark, after = line.rpartition("####")
        answer = (_after_mark(after) or bare(after)) if mark else ""
        if has_content(answer) and (is_last_line or is_number(answer)):
            return answer
        is_last_line = is_last_line and not has_content(line)
    return None


def _in_box(text: str) -> str | None:
    starts: list[int | None] = []  # where each open box begins; None for a plain open brace
    span = (0, 0)
    for match in _BOXED_OR_BRACE.finditer(text):
        if match[0] == "}" and starts:
            start = starts.pop()
            if start is not None and _NOT_SPACE.search(text, start, match.start()):
                span = (start, match.start())
        elif match[0] == "{":
            starts.append(None)
        elif len(match[0]) > 2:  # a box
            starts.append(match.end())
    return text[slice(*span)].strip() or None


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
    lines = [line for line in rest.split("\n") if has_content(line)]
    if not lines or WORKED_SOLUTION.match(rest):
        return None
    if mark[0].endswith("A:") and lines[1:] and not lines[1].startswith("Q"):
        return None
    return _stated(lines[0].lstrip(MARKUP + ":="), is_last=len(lines) == 1)


def _stated(line: str, *, is_last: bool) -> str | None:
    """The answer in a line; only in a text's last line may it lack a number."""
    line = _OPTION.sub("", bare(_ARROW.split(_CALCULATOR.sub("", line))[-1]), count=1)
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
    if not is_last:
        return None
    number = None if read(sentence) else _last_formula(line)
    if _is_prose(line) and not (number and _has_values(number)):
        number = _last_number(_REMARK.sub("", line)) or _last_number(line)
    formula = next((c for c in clauses if _understood(c)), None)  # √2, which is about 1.41
    return number or formula or (sentence if has_content(sentence) else None)


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
    chosen = _last(_CHOSEN, text)
    return chosen[1] if chosen else None


def _listed(text: str) -> str | None:
    """The list of values at the end of a text: "The roots are 3 and 5."."""
    mark = _last(_LISTED, text)
    values = bare(text[mark.end() :]) if mark else ""
    node = read(values) if values else None
    return values if node is not None and node.kind == "list" else None


def _whole(text: str) -> str | None:
    """A text that is itself the answer: a choice, a word, or a formula that parses completely."""
    line = bare(text)
    if "\n" in line or not has_content(line):
        return None
    if _NAME.fullmatch(line):
        return line
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
    match = _last(NUMBER, text)
    return match[0] if match else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


_STATING = (_after_hashes, _in_box, _in_tags, _in_json, _after_mark)
_FINDERS = (*_STATING, _listed, _chosen, _whole, _last_formula, _last_number)
