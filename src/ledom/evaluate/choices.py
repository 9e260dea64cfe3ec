"""Multiple-choice questions: the record, and questions generated from documents and from problems.

A forward model predicts choices after the question's text, a reverse model choices before it, so a
benchmark with both kinds favors neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ledom.core.errors import InputError
from ledom.core.records import Document, Record
from ledom.data.problems import generate_problems
from ledom.rerank.contrast import change_numbers

__all__ = ["PLACES", "ChoiceQuestion", "Place", "neighbor_questions", "problem_questions"]

Place = Literal["after", "before"]
PLACES: tuple[Place, ...] = ("after", "before")
"""Where the choices of a question can be: after its text, or before it."""

_NUM_CHOICES = 4
_SHORTEST, _LONGEST = 40, 300  # characters of a sentence
_PER_DOCUMENT = 4  # questions of each kind from one document
_SENTENCE = re.compile(r'(?<=[.!?]["\u201d\u2019\'])\s+|(?<=[.!?])\s+')


@dataclass(kw_only=True)
class ChoiceQuestion(Record):
    """A text, and choices for what comes after it (`place` is `after`) or before it (`before`).

    Questions with the same `document` are not independent of each other.
    """

    id: str
    question: str
    choices: list[str]
    answer_index: int
    place: Place = "after"
    document: str | None = None

    def __post_init__(self) -> None:
        """Refuse an empty question or choice, a repeated choice, and an answer out of range.

        White space around texts is dropped: the task puts one space between question and choice.

        >>> ChoiceQuestion(id="q", question="2 + 2?", choices=["4", "4"], answer_index=0)
        Traceback (most recent call last):
        ledom.core.errors.InputError: question 'q' has the choice '4' twice; remove one
        """
        self.question, self.choices = self.question.strip(), [text.strip() for text in self.choices]
        named, last = f"question {self.id!r}", len(self.choices) - 1
        if not self.question:
            raise InputError(f"{named} has an empty question; remove it")
        if last < 1:
            raise InputError(f"{named} has fewer than two choices: {last + 1}; remove it")
        for number, text in enumerate(self.choices):
            if not text:
                raise InputError(f"{named}: choice {number} is empty, expected a text")
            if text in self.choices[:number]:
                raise InputError(f"{named} has the choice {text!r:.40} twice; remove one")
        if not 0 <= self.answer_index <= last:
            raise InputError(
                f"{named}: answer_index is {self.answer_index}, but the choices are numbered "
                f"from 0 to {last}"
            )


def neighbor_questions(
    documents: Sequence[Document], place: Place, seed: int = 0
) -> list[ChoiceQuestion]:
    """Questions that ask which of four sentences comes after (or before) one from a document.

    The wrong choices come from other documents; raises `InputError` if there are too few.

    >>> pair = "{0} are the topic of this first sentence. {0} are the topic of the second one, too."
    >>> animals = ("Ants", "Bees", "Cats", "Dogs")
    >>> documents = [Document(id=name, text=pair.format(name)) for name in animals]
    >>> asked = neighbor_questions(documents, "after")[0]
    >>> asked.question
    'Ants are the topic of this first sentence.'
    >>> asked.choices[asked.answer_index], len(asked.choices)
    ('Ants are the topic of the second one, too.', 4)
    """
    rng = Random(f"neighbors-{place}-{seed}")
    sentences = {document.id: _sentences(document.text) for document in documents}
    usable = [name for name, own in sentences.items() if len(own) >= 2]
    if len(usable) < _NUM_CHOICES:
        raise InputError(
            f"{len(usable)} of {len(documents)} documents have two adjacent sentences of "
            f"{_SHORTEST} to {_LONGEST} characters; questions of {_NUM_CHOICES} choices need "
            f"{_NUM_CHOICES} such documents"
        )
    questions: list[ChoiceQuestion] = []
    for name in usable:
        own = sentences[name]
        pairs = rng.sample(range(len(own) - 1), min(_PER_DOCUMENT, len(own) - 1))
        for first in sorted(pairs):
            given, right = own[first], own[first + 1]
            if place == "before":
                given, right = right, given
            others = rng.sample([other for other in usable if other != name], _NUM_CHOICES - 1)
            wrong = [rng.choice(sentences[other]) for other in others]
            number = f"{name}-{place}-{first}"
            questions += _question(number, given, right, wrong, place, rng, document=name)
    return questions


def _sentences(text: str) -> list[str]:
    """The longest run of adjacent sentences that all have a usable length."""
    best: list[str] = []
    run: list[str] = []
    for sentence in (" ".join(part.split()) for part in _SENTENCE.split(text)):
        run = [*run, sentence] if _SHORTEST <= len(sentence) <= _LONGEST else []
        best = max(best, run, key=len)
    return best


def problem_questions(place: Place, count: int, seed: int = 0) -> list[ChoiceQuestion]:
    """Questions that ask which of four solutions fits a question, or (before) which question fits.

    The problems are unseen ones from the generator. Each wrong choice has one number changed.

    >>> question = problem_questions("after", count=1)[0]
    >>> len(question.choices), len(set(question.choices)), question.place
    (4, 4, 'after')
    """
    rng = Random(f"problems-{place}-{seed}")
    questions: list[ChoiceQuestion] = []
    for problem in generate_problems("test", 2 * count, seed):
        given, right = problem.question, problem.require_solution()
        if place == "before":
            given, right = right, given
        changed = (change.apply(right) for change in change_numbers(right, 2 * _NUM_CHOICES))
        wrong = [*dict.fromkeys(text for text in changed if text != right)][: _NUM_CHOICES - 1]
        if len(wrong) == _NUM_CHOICES - 1:
            questions += _question(f"{problem.id}-{place}", given, right, wrong, place, rng)
        if len(questions) == count:
            break
    return questions


def _question(
    name: str,
    given: str,
    right: str,
    wrong: Sequence[str],
    place: Place,
    rng: Random,
    document: str | None = None,
) -> Iterator[ChoiceQuestion]:
    """Yield the question with its choices in random order, unless two choices are equal."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    if len({*choices}) == len(choices):
        answer = choices.index(right)
        yield ChoiceQuestion(
            id=name,
            question=given,
            choices=choices,
            answer_index=answer,
            place=place,
            document=document,
        )
