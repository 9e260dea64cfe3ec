r"""Extracts the final answer of a solution and checks whether it is right.

Answers are compared as plain numbers, then as text, then by their meaning (`math.equality`). Units
and names that only one answer has are ignored; if both have them, they must agree. "5 cm" equals
"5" and "x = 5" equals "5", but "5 cm" is not "5 m". Equality is symmetric but not transitive.

Texts come from models: nothing here raises an error on any string, or takes more than linear time.
"""

from __future__ import annotations

import re
from decimal import Decimal

from ledom.core.records import THOUGHT_END, Candidate, Problem
from ledom.text.finders import FINDERS, MARKED, STATING
from ledom.text.math.equality import same_meaning
from ledom.text.math.notation import has_content, keyboard, text_key

__all__ = [
    "AnswerClasses",
    "equal_answers",
    "extract_answer",
    "is_correct",
    "is_right",
    "split_thought",
]

_TIDIED = (
    (
        re.compile(
            r"</?s>|<(?:bos|eos|pad|(?:start|end)_of_turn)>|<\|[^<>|\s]{1,40}\|>"
            r"|</?(?:br|div|li|p)\s?/?>"
        ),
        "\n",
    ),
    (re.compile(r"<sup>([^<>\n]{1,40})</sup>"), r"^{\1}"),
    (re.compile(r"<sub>([^<>\n]{1,40})</sub>"), r"_{\1}"),
    (
        re.compile(
            r"</?(?:b|i|u|em|strong|mark|code|span)>"
            r"|(?<![\w*_`\\$])(\*\*|\*|__|`)(?![\s*_`])([^*_`\n]{1,200}?)(?<!\s)\1(?![\w*_`])"
        ),
        r"\2",
    ),
    (re.compile(r"(\.[0-9]+)\.{3}"), r"\1…"),  # 0.333... has not ended
    (re.compile(r"\[\[([A-J])\]\]"), r"\\boxed{\1}"),  # [[B]], as judges write it
    (re.compile(r"\\boxed\s?(-?[0-9][0-9,.]*(?<![,.])|[A-J](?![A-Za-z]))"), r"\\boxed{\1}"),
    (re.compile(r"[Nn]egative (?=\$?\.?[0-9])|minus (?<=\bis minus )(?=\$?\.?[0-9])"), "-"),
)
_NEXT_QUESTION = re.compile(r"\n[ \t]{0,8}(?:Q|Question)\s?:")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?")  # read in only one way


def extract_answer(text: str) -> str | None:
    r"""The final answer that a solution text states, or None.

    The following are searched in order; the last occurrence of the first kind found is the answer:

    1. `#### answer`, to the end of the line (a `####` heading in mid-text does not count);
    2. `\boxed{answer}`, braces nested; `\boxed{3} and \boxed{4}` are one answer, "3, 4";
    3. the key "answer" of a JSON text, "answer is", "correct option is", "Answer:", or a last line
       "A: answer"; in a sentence, the answer is the part before "because" or "rather than", or
       else the last number; in a chain of equations, the part after the last "="; after "Wait,
       no" or "it should be", what follows;
    4. a choice that is called right or ends the text, or the whole text, if it is a word or can be
       read as an answer;
    5. the last number, or the formula, pair or list of values that contains it.

    Text before `</think>` counts only if no answer follows it (`split_thought`). `<answer>` tags
    count as a box. Kinds 1 to 3 take precedence over a further question ("Q: ...") of the model.

    >>> extract_answer("So 16 - 3 = 13, and the answer is 6 rather than 5.")
    '6'
    >>> extract_answer(r"Thus \boxed{\frac{1}{2}} of them."), extract_answer("No number.")
    ('\\frac{1}{2}', None)
    """
    thought, conclusion = split_thought(_tidy(keyboard(text)))
    for part in (conclusion, thought):
        before, *further = _NEXT_QUESTION.split(part, maxsplit=1)
        places = [(find, before) for find in STATING if further]
        for find, place in [*places, *((find, part) for find in FINDERS)]:
            answer = find(place)
            if answer is not None:
                return answer
    return None


def _tidy(text: str) -> str:
    """The text without control tokens and emphasis, with one spelling of signs and boxes."""
    for pattern, replacement in _TIDIED:
        text = pattern.sub(replacement, text)
    return text


def split_thought(text: str) -> tuple[str, str]:
    """A reasoning model's thought, up to the last `</think>`, and what follows it.

    An open thought was cut off and is part of neither, unless it marks an answer (`####`, a box).

    >>> split_thought("<think>1 + 1?</think>2"), split_thought("<think>1 + 1?")
    (('<think>1 + 1?', '2'), ('', ''))
    """
    thought, _, rest = text.rpartition(THOUGHT_END)
    conclusion, _, cut_off = rest.partition("<think>")
    is_marked = any(find(cut_off) for find in MARKED)
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
