"""Written answers: prompts in the reading order of each direction, and answer extraction."""

from __future__ import annotations

import pytest

from ledom.core.direction import Direction
from ledom.core.records import Problem
from ledom.evaluate.written import CodeProblem, answers_of, is_right, prompt

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE
ASKED = Problem(id="p", question="How many pens?", answer="8")
SHOWN = Problem(id="s", question="How many cups?", answer="5", solution="2 + 3 = 5")


def test_a_reverse_model_reads_examples_first_and_writes_before_the_question() -> None:
    """In reading order: the generated text, the question, the examples."""
    assert prompt("text", REVERSE, ASKED, [SHOWN]) == (
        "\nThe above is the thought chain.\nQuestion: How many pens?\n\n"
        "5 is the answer of the following question.\n2 + 3 = 5\n"
        "The above is the thought chain.\nQuestion: How many cups?"
    )


def test_a_forward_model_reads_examples_first_and_writes_after_the_question() -> None:
    assert prompt("text", FORWARD, ASKED, [SHOWN]) == (
        "Question: How many cups?\nAnswer: 2 + 3 = 5\nThe answer is 5.\n\n"
        "Question: How many pens?\nAnswer:"
    )


@pytest.mark.parametrize("direction", Direction)
def test_examples_do_not_contain_the_stop_string_in_their_solutions(direction: Direction) -> None:
    shown = Problem(id="s", question="How many?", answer="5", solution="So\n\n  \n  2 + 3\n= 5")
    text = prompt("text", direction, ASKED, [shown])
    assert "So\n  2 + 3\n= 5\n" in text
    assert text.count("\n\n") == 1  # between the example and the question


@pytest.mark.parametrize(
    ("direction", "text", "answer"),
    [
        (REVERSE, "8 is the answer of the following question.\n12 - 4 = 8", ["8"]),
        (REVERSE, "So.\n8 is the answer of the following question.\n12 - 4 = 8", ["8"]),
        (
            REVERSE,  # it writes to the left, so its own answer comes last in the text
            "5 is the answer of the following question.\nx\n8 is the answer of the following "
            "question.\n12 - 4 = 8",
            ["8"],
        ),
        (REVERSE, "12 - 4 = 8", []),
        (FORWARD, " 12 - 4 = 8\nThe answer is 8.", ["8"]),
        (FORWARD, "The answer is 8.\nWell done.", ["8"]),
        (FORWARD, " Paris\nor so", ["Paris"]),
        (FORWARD, " ", []),
    ],
)
def test_the_answer_is_at_its_end(direction: Direction, text: str, answer: list[str]) -> None:
    assert answers_of(direction, text)[: len(answer) or None] == answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "written", "is_equal"),
    [
        ("-5", "5", False),
        ("1.5", "15", False),
        ("3/4", "34", False),
        ("x+1", "x-1", False),
        ("(0, 1)", "01", False),
        (r"-\sin x", r"\sin x", False),
        ("7", "7 pens because 3 + 4 = 7", True),
        ("7", "7.\nWell done", True),
        ("8", "7 pens because 3 + 4 = 7", False),
        ("Dr. No", "dr no", True),
        ("O'Brien", "\u201cO\u2019Brien\u201d", True),
        ("Jean-Paul", "jeanpaul", True),
        ("Schindler's List", "Schindlers List", True),
        ("Catch-22", "Catch-22", True),
    ],
)
def test_punctuation_counts_only_in_numbers_and_formulas(
    right: str, written: str, is_equal: bool
) -> None:
    text = f"So it is. The answer is {written}."
    assert is_right("text", FORWARD, {"answer": right, "question": "?"}, text) is is_equal


def test_answers_are_equal_by_value_or_as_plain_text() -> None:
    written = "{} is the answer of the following question."
    row = {"answer": "1,000", "question": "?"}
    assert is_right("text", REVERSE, row, written.format("1000"))
    assert not is_right("text", REVERSE, row, written.format("100"))
    row = {"answer": "The Beatles", "aliases": ["Fab Four"], "question": "?"}
    assert is_right("text", REVERSE, row, written.format("beatles!"))
    assert is_right("text", REVERSE, row, written.format("the fab four"))
    assert not is_right("text", REVERSE, row, written.format("Stones"))
    assert not is_right("text", REVERSE, row, "beatles")


@pytest.mark.slow
def test_generated_programs_are_run() -> None:
    row = {
        "task_id": "t",
        "prompt": "def add(a, b):\n",
        "test": "def check(f):\n    assert f(1, 2) == 3\n",
        "entry_point": "add",
    }
    assert is_right("code", FORWARD, row, "    return a + b\n")
    assert not is_right("code", FORWARD, row, "    return a - b\n")
    assert is_right("code", REVERSE, row, "def add(a, b):\n    return a + b\n")
    problem = CodeProblem.from_json(row)
    assert prompt("code", FORWARD, problem) == "def add(a, b):\n"
    assert prompt("code", REVERSE, problem).endswith("task.\ndef add(a, b):\n")
