"""Questions generated from documents and problems, and checks of questions from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledom.core.errors import InputError
from ledom.core.records import Document, read_records, unique_ids
from ledom.evaluate.choices import ChoiceQuestion, neighbor_questions, problem_questions

NOVEL = [
    Document(
        id=f"d{d}",
        text=" ".join(
            f'"Sentence {d} {n} is as long as it takes to be used," he said.' for n in range(6)
        ),
    )
    for d in range(8)
]


@pytest.mark.parametrize(("place", "step"), [("after", 1), ("before", -1)])
def test_the_right_sentence_is_next_to_the_given_one(place: str, step: int) -> None:
    questions = neighbor_questions(NOVEL, place)  # type: ignore[arg-type]
    assert len(questions) == 8 * 4
    for question in questions:
        _, document, number = question.question.split()[:3]
        right = question.choices[question.answer_index].split()[:3]
        assert right == ['"Sentence', document, str(int(number) + step)]
        others = {choice.split()[1] for choice in question.choices} - {document}
        assert len(others) == 3  # each from a different document
        assert question.place == place


def test_the_right_sentence_may_be_at_any_place_among_the_choices() -> None:
    places = [question.answer_index for question in neighbor_questions(NOVEL, "after")]
    assert {*places} == {0, 1, 2, 3}


def test_sentences_separated_by_a_short_one_are_not_neighbors() -> None:
    long = "This sentence has more than forty characters, as it must."
    documents = [Document(id=str(i), text=f"{long} Short. {long[:-1]} {i}.") for i in range(8)]
    with pytest.raises(InputError, match="0 of 8 documents have two adjacent sentences"):
        neighbor_questions(documents, "after")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["after", "before"])
def test_wrong_choices_differ_from_the_right_one_in_one_number(place: str) -> None:
    questions = problem_questions(place, 10, seed=3)  # type: ignore[arg-type]
    assert len(questions) == 10
    for question in questions:
        solutions = question.choices if place == "after" else [question.question]
        assert all(solution.rstrip()[-1].isdigit() for solution in solutions)
        right = question.choices[question.answer_index].split()
        for choice in question.choices:
            differing = sum(a != b for a, b in zip(right, choice.split(), strict=True))
            assert differing == (choice.split() != right)
    again = problem_questions(place, 10, seed=3)  # type: ignore[arg-type]
    assert [q.choices for q in again] == [q.choices for q in questions]


GOOD = '{"id": "a", "question": "Which?", "choices": ["x", "y"], "answer_index": 0}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Which?", " "), "question 'a' has an empty question"),
        (('["x", "y"]', '["x"]'), "has fewer than two choices: 1"),
        (('"y"', '" "'), "choice 1 is empty, expected a text"),
        (('"y"', "7"), "key choices.1: .*found 7"),
        (('"y"', '"x"'), "has the choice 'x' twice"),
        (('"y"', '" x"'), "has the choice 'x' twice"),
        (("0}", "2}"), "answer_index is 2, but the choices are numbered from 0 to 1"),
        (("0}", '0, "place": "beside"}'), "key place: .*found 'beside'"),
        (('"a"', '"b"'), "the id 'b' occurs twice"),
    ],
)
def test_the_error_for_a_bad_question_names_the_line(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(GOOD.replace('"a"', '"b"') + "\n" + GOOD.replace(*change) + "\n")
    with pytest.raises(InputError, match=f"q.jsonl:2: .*{message}"):
        read_records(file, ChoiceQuestion, unique_ids())


def test_a_choice_may_be_a_prefix_of_another(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(GOOD.replace('"y"', '"xy"'))
    assert read_records(file, ChoiceQuestion, unique_ids())[0].choices == ["x", "xy"]


def test_white_space_around_texts_is_dropped() -> None:
    """The task puts a space before each choice; a second one would be scored too."""
    asked = ChoiceQuestion(id="q", question=" 2 + 2?\n", choices=[" 4", "5 "], answer_index=0)
    assert (asked.question, asked.choices) == ("2 + 2?", ["4", "5"])
