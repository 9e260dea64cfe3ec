"""Tasks with written answers: their prompts for a model of either direction, and their grading.

A forward model reads examples and a question, then writes a chain of thought and an answer. A
reverse model reads the question with the examples after it, and writes the chain of thought in
front of the question, and the answer in front of both. The form follows LEDOM (Yin et al., ACL
2026). This module does not know about models or the harness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import JsonObject
from ledom.core.records import Problem, Record
from ledom.evaluate.programs import runs_to_its_end
from ledom.text.answers import equal_answers, extract_answer

__all__ = ["FORMS", "CodeProblem", "Form", "is_right", "prompt"]

_ANSWER = " is the answer of the following question."
_CHAIN = "The above is the thought chain."
_SOLUTION = "# The above solves the following task."
_CHECK = re.compile(r"\bcheck\b")
_BLANK_LINES = re.compile(r"\n\s*\n")
_WORD = re.compile(r"[^\W\d_]{2,}")
_PUNCTUATION = re.compile(r"(?<![0-9])[.,;:!?'\"()‘’“”](?![0-9])|(?<=[^\W\d_])-(?=[^\W\d_])")
"""Signs that do not matter in words, but do next to a digit: -5, 1.5, 5!, 7:30."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(kw_only=True)
class CodeProblem(Record):
    """A function to complete, and the program that tests it: a row of HumanEval."""

    task_id: str
    prompt: str
    test: str
    entry_point: str
    canonical_solution: str | None = None

    def __post_init__(self) -> None:
        """Refuse a problem that no program could solve.

        >>> CodeProblem(task_id="a", prompt="def f():", test="assert f()", entry_point="f")
        Traceback (most recent call last):
        ledom.core.errors.InputError: problem 'a': test defines no check; write def check(candidate)
        """
        if not _CHECK.search(self.test):
            raise InputError(
                f"problem {self.id!r}: test defines no check; write def check(candidate)"
            )
        if not self.entry_point.isidentifier():
            raise InputError(
                f"problem {self.id!r}: entry_point is {self.entry_point!r:.40}, expected the name "
                "of a function"
            )

    @property
    def id(self) -> str:
        return self.task_id


@dataclass(frozen=True)
class Form:
    """The form of one kind of task in one direction; all texts are in reading order."""

    question: Callable[[Any], str]
    """The text of the problem to solve."""
    example: Callable[[Any], str]
    """The text of a solved problem."""
    is_right: Callable[[JsonObject, str], bool]
    """Whether a written text solves a problem, which is given as a JSON object."""
    until: tuple[str, ...]
    """Stop strings."""
    max_tokens: int = 512


def _chain(problem: Problem) -> str:
    """An example's chain of thought, without blank lines, which are stop strings."""
    return _BLANK_LINES.sub("\n", f"{problem.solution.strip()}\n") if problem.solution else ""


def prompt(kind: str, direction: Direction, problem: Any, examples: Sequence[Any] = ()) -> str:
    """The whole prompt, with the examples where the model reads them first.

    >>> problem = Problem(id="p", question="3 + 4?", answer="7")
    >>> prompt("text", Direction.FORWARD, problem)
    'Question: 3 + 4?\\nAnswer:'
    >>> prompt("text", Direction.REVERSE, problem)
    '\\nThe above is the thought chain.\\nQuestion: 3 + 4?'
    """
    form = FORMS[kind][direction]
    shown = [form.example(example) for example in examples]
    if direction is Direction.FORWARD:
        return "\n\n".join([*shown, form.question(problem)])
    return "\n\n".join([form.question(problem), *shown])


def answers_of(direction: Direction, text: str) -> list[str]:
    """The possible readings of the answer in a written text; empty if it states none.

    A forward model writes the answer at the end. A reverse model writes it in front of its chain of
    thought; what it writes before that line is not part of it.
    """
    if direction is Direction.FORWARD:
        _, found, stated = text.rpartition("The answer is ")
        extracted = extract_answer(text)
        first = stated if found else extracted or text
        readings = [first.strip().split("\n")[0].removesuffix("."), extracted]
    else:
        before, found, _ = text.rpartition(_ANSWER)
        readings = [before.strip().rpartition("\n")[2]]
    return [*dict.fromkeys(reading for reading in readings if reading)]


def is_right(kind: str, direction: Direction, problem: JsonObject, text: str) -> bool:
    """Whether a written text solves a problem, which is given as a JSON object.

    >>> is_right("text", Direction.FORWARD, {"answer": "7"}, "3 + 4 = 7. The answer is 7.0")
    True
    """
    return FORMS[kind][direction].is_right(problem, text)


def _states_the_answer(direction: Direction, problem: JsonObject, text: str) -> bool:
    known = [right for right in (problem["answer"], *problem.get("aliases", ())) if right]
    return any(
        equal_answers(answer, right) or _same_words(answer, right)
        for answer in answers_of(direction, text)
        for right in known
    )


def _passes(problem: JsonObject, program: str) -> bool:
    check = f"check({problem['entry_point']})"
    return runs_to_its_end(f"{program}\n{problem['test']}\n{check}\n")


def _same_words(first: str, second: str) -> bool:
    """Whether two answers in words are equal apart from case, articles and punctuation, as
    TriviaQA compares them. In a formula or a number all of these matter.

    >>> _same_words("The Beatles!", "beatles"), _same_words("2 X", "2 x")
    (True, False)
    """
    if not (_WORD.search(first) and _WORD.search(second)):
        return False
    return _plain(first) == _plain(second)


def _plain(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())).split())


FORMS: dict[str, dict[Direction, Form]] = {
    "text": {
        Direction.FORWARD: Form(
            question=lambda p: f"Question: {p.question}\nAnswer:",
            example=lambda p: (
                f"Question: {p.question}\nAnswer: {_chain(p)}The answer is {p.answer}."
            ),
            is_right=partial(_states_the_answer, Direction.FORWARD),
            until=("\n\n", "Question:"),
        ),
        Direction.REVERSE: Form(
            question=lambda p: f"\n{_CHAIN}\nQuestion: {p.question}",
            example=lambda p: f"{p.answer}{_ANSWER}\n{_chain(p)}{_CHAIN}\nQuestion: {p.question}",
            is_right=partial(_states_the_answer, Direction.REVERSE),
            until=("\n\n",),
        ),
    },
    "code": {
        Direction.FORWARD: Form(
            question=lambda p: p.prompt,
            example=lambda p: p.prompt + (p.canonical_solution or ""),
            is_right=lambda problem, text: _passes(problem, problem["prompt"] + text),
            until=("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("),
        ),
        Direction.REVERSE: Form(
            question=lambda p: f"\n{_SOLUTION}\n{p.prompt}",
            example=lambda p: f"{p.prompt}{p.canonical_solution or ''}\n{_SOLUTION}\n{p.prompt}",
            is_right=_passes,
            until=("\n\n\n",),
        ),
    },
}
"""The form of each kind of task in each direction."""
