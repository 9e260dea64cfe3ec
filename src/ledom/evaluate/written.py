"""Tasks whose answer is written: how questions are put to a model of either direction.

A forward model reads examples and a question and writes a chain of thought and an answer. A reverse
model reads the same from the other end: in reading order the answer comes first, then the chain,
then the question, then the examples, and it writes from the question to the left. The form is that
of LEDOM (Yin et al., ACL 2026). This module knows nothing of models or of the harness.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ledom.core.direction import Direction
from ledom.core.reading import JsonObject
from ledom.core.records import Problem, Record
from ledom.evaluate.programs import runs_to_its_end
from ledom.text.answers import extract_answer
from ledom.text.math.equality import equal_answers

__all__ = ["WRITTEN", "CodeProblem", "Form", "answer_of", "is_right", "prompt"]

_ANSWER = " is the answer of the following question."
_CHAIN = "The above is the thought chain."
_SOLUTION = "# The above solves the following task."
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(kw_only=True)
class CodeProblem(Record):
    """A function to complete, and the program that tests it: a row of HumanEval."""

    task_id: str
    prompt: str
    test: str
    entry_point: str
    canonical_solution: str | None = None

    @property
    def id(self) -> str:
        return self.task_id


@dataclass(frozen=True)
class Form:
    """How one kind of task is written in one direction; all in reading order."""

    question: Callable[[Any], str]
    """What the model reads of the problem that it is asked."""
    example: Callable[[Any], str]
    """A solved problem."""
    until: tuple[str, ...]
    max_tokens: int = 512


def _chain(problem: Problem) -> str:
    return f"{problem.solution.strip()}\n" if problem.solution else ""


FORWARD = Form(
    question=lambda p: f"Question: {p.question}\nAnswer:",
    example=lambda p: f"Question: {p.question}\nAnswer: {_chain(p)}The answer is {p.answer}.",
    until=("\n\n", "Question:"),
)
REVERSE = Form(
    question=lambda p: f"\n{_CHAIN}\nQuestion: {p.question}",
    example=lambda p: f"{p.answer}{_ANSWER}\n{_chain(p)}{_CHAIN}\nQuestion: {p.question}",
    until=("\n\n",),
)
FORWARD_CODE = Form(
    question=lambda p: p.prompt,
    example=lambda p: p.prompt + (p.canonical_solution or ""),
    until=("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("),
)
REVERSE_CODE = Form(
    question=lambda p: f"\n{_SOLUTION}\n{p.prompt}",
    example=lambda p: f"{p.prompt}{p.canonical_solution or ''}\n{_SOLUTION}\n{p.prompt}",
    until=("\n\n\n",),
)
WRITTEN: dict[str, dict[Direction, Form]] = {
    "text": {Direction.FORWARD: FORWARD, Direction.REVERSE: REVERSE},
    "code": {Direction.FORWARD: FORWARD_CODE, Direction.REVERSE: REVERSE_CODE},
}
"""The form of each kind of task in each direction."""


def prompt(kind: str, direction: Direction, problem: Any, examples: Sequence[Any] = ()) -> str:
    """All that the model reads: the examples are where it reads them first."""
    form = WRITTEN[kind][direction]
    shown = [form.example(example) for example in examples]
    if direction is Direction.FORWARD:
        return "\n\n".join([*shown, form.question(problem)])
    return "\n\n".join([form.question(problem), *shown])


def answer_of(direction: Direction, text: str) -> str | None:
    """The answer in what a model wrote: at the front in reverse, else at the end.

    >>> answer_of(Direction.FORWARD, "3 + 4 = 7. The answer is 7.")
    '7'
    >>> answer_of(Direction.REVERSE, "7 is the answer of the following question.")
    '7'
    """
    if direction is Direction.FORWARD:
        _, found, answer = text.rpartition("The answer is ")
        if found:
            return answer.strip().removesuffix(".")
        return extract_answer(text) or text.strip().split("\n")[0] or None
    answer, found, _ = text.partition(_ANSWER)
    return answer.strip() if found else None


def is_right(kind: str, direction: Direction, problem: JsonObject, text: str) -> bool:
    """Whether a written text answers a problem, given as a JSON object.

    >>> is_right("math", Direction.FORWARD, {"answer": "7"}, "3 + 4 = 7. The answer is 7.0")
    True
    """
    if kind == "code":
        body = text if direction is Direction.REVERSE else problem["prompt"] + text
        return runs_to_its_end(f"{body}\n{problem['test']}\ncheck({problem['entry_point']})\n")
    answer = answer_of(direction, text)
    if answer is None:
        return False
    known = [problem["answer"], *problem.get("aliases", ())]
    return any(
        equal_answers(answer, right) or _plain(answer) == _plain(right) for right in known if right
    )


def _plain(text: str) -> str:
    """A text without case, articles and punctuation, as TriviaQA compares answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
