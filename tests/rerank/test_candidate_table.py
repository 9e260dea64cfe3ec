"""Votes count classes of equal answers, although equality is not transitive."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest

from ledom.rerank.candidate_table import AnswerClasses
from ledom.text.math.equality import equal_answers


def test_equal_answers_share_a_class() -> None:
    classes = AnswerClasses()
    answers = ["$1,200", "7", "1200 dollars", r"\frac{14}{2}", "1200.0", "yes", "Yes."]
    assert [classes.number(answer) for answer in answers] == [0, 1, 0, 1, 0, 2, 2]


@pytest.mark.parametrize("answer", [None, "", " ", "..."])
def test_no_answer_has_no_class(answer: str | None) -> None:
    assert AnswerClasses().number(answer) == -1


@pytest.mark.parametrize("answers", list(permutations(["5", "5 cm", "5 m", "5 centimeters"])))
def test_members_of_a_class_are_equal_in_every_order(answers: tuple[str, ...]) -> None:
    classes = AnswerClasses()
    number_of = {answer: classes.number(answer) for answer in answers}
    assert number_of == {answer: classes.number(answer) for answer in answers}  # stays the same
    assert number_of["5 cm"] != number_of["5 m"]
    assert number_of["5 cm"] == number_of["5 centimeters"] or number_of["5"] == number_of["5 m"]
    for one, other in combinations(answers, 2):
        if number_of[one] == number_of[other]:
            assert equal_answers(one, other)


def test_a_percent_does_not_join_two_numbers() -> None:
    classes = AnswerClasses()
    assert [classes.number(answer) for answer in ("50", "50%", "0.5")] == [0, 0, 1]
