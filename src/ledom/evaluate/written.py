"""Tasks with written answers: their prompts for a model of either direction, and their grading.

A forward model reads examples and a question, then writes a chain of thought and an answer. For a
reverse model, the reading order is: answer, chain of thought, question, examples. It reads from the
end of the examples, and writes the chain of thought and the answer in front of the question. The
form is that of LEDOM (Yin et al., ACL 2026). This module knows nothing of models or the harness.
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
    """The form of one kind of task in one direction; all texts are in reading order."""

    question: Callable[[Any], str]
    """The text of the problem to solve."""
    example: Callable[[Any], str]
    """The text of a solved problem."""
    until: tuple[str, ...]
    """Stop strings."""
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
    """The whole prompt, with the examples where the model reads them first.

    >>> problem = Problem(id="p", question="3 + 4?", answer="7")
    >>> prompt("text", Direction.FORWARD, problem)
    'Question: 3 + 4?\\nAnswer:'
    >>> prompt("text", Direction.REVERSE, problem)
    '\\nThe above is the thought chain.\\nQuestion: 3 + 4?'
    """
    form = WRITTEN[kind][direction]
    shown = [form.example(example) for example in examples]
    if direction is Direction.FORWARD:
        return "\n\n".join([*shown, form.question(problem)])
    return "\n\n".join([form.question(problem), *shown])


def answer_of(direction: Direction, text: str) -> str | None:
    """The answer in a written text: at the end, or at the front for a reverse model.

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
    """Whether a written text solves a problem, which is given as a JSON object.

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
    """A text in lower case without articles and punctuation, as TriviaQA compares answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
