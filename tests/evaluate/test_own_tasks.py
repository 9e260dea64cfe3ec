"""Tasks from questions with choices and from problems: which are asked, and which are examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluated import write_rows
from ledom.core.direction import Direction
from ledom.core.errors import InputError

pytest.importorskip("lm_eval")

from ledom.evaluate.tasks import Options, find_source

FORWARD = Direction.FORWARD


@pytest.mark.parametrize("place", ["after", "before"])
def test_no_question_is_its_own_example(tmp_path: Path, place: str) -> None:
    """The first two questions are examples, the next two are asked, the last exceeds the limit."""
    rows = [
        {"id": f"{i}", "question": f"Q{i}", "choices": [f"w{i}", f"r{i}"], "answer_index": 1}
        | {"place": place}
        for i in range(5)
    ]
    file = write_rows(tmp_path / "few.jsonl", rows)
    (task,) = find_source(str(file), Options(num_fewshot=2, limit=2)).load(FORWARD)
    asked = [*task.test_docs()]
    assert [doc["choices"][1] for doc in asked] == ["r2", "r3"]
    for doc in asked:
        shown = str(task.fewshot_context(doc, 2))
        assert shown.index("Q0") < shown.index("Q1")
        assert "r0" in shown
        assert (doc["choices"][1] if place == "after" else doc["text"]) not in shown


@pytest.mark.parametrize("place", ["after", "before"])
def test_no_example_is_from_the_document_being_asked_about(tmp_path: Path, place: str) -> None:
    """Each document gives four questions; the first ones are the examples."""
    text = " ".join(f"This is sentence number {n} of the whole long book." for n in range(6))
    rows = [{"id": str(d), "text": text.replace("book", f"book {d}")} for d in range(6)]
    write_rows(tmp_path / "novels.jsonl", rows)
    options = Options(data=tmp_path, num_fewshot=2)
    (task,) = find_source(f"novels_{place}", options).load(FORWARD)
    books = []
    for doc in task.test_docs():
        own = doc["choices"][doc["answer_index"]][-7:]
        shown = task.fewshot_context(doc, 2)  # a text, or one per choice in front
        *examples, _ = (shown if isinstance(shown, str) else shown[0]).split("\n\n")
        assert len(examples) == 2
        assert own not in "".join(examples)
        books.append(own)
    assert books[:3] == ["book 0.", "book 0.", "book 1."]


def test_a_repeated_question_is_not_its_own_example(tmp_path: Path) -> None:
    """This holds under another id, and for a problem with a written answer."""
    rows = [
        {"id": f"{i}", "question": f"Q{q}", "choices": [f"r{q}", f"w{i}"], "answer_index": 0}
        for i, q in enumerate([0, 1, 0, 2, 3])
    ]
    file = write_rows(tmp_path / "choices.jsonl", rows)
    (task,) = find_source(str(file), Options(num_fewshot=2)).load(FORWARD)
    shown = [str(task.fewshot_context(doc, 2)) for doc in task.test_docs()]
    order = [[f"Q{q}" for q in range(4) if f"Question: Q{q}" in text] for text in shown]
    assert order == [["Q0", "Q1", "Q2"], ["Q0", "Q1", "Q2"], ["Q0", "Q1", "Q3"]]
    assert "r0" not in shown[0]
    solved = [{"id": r["id"], "question": r["question"], "answer": r["choices"][0]} for r in rows]
    file = write_rows(tmp_path / "solved.jsonl", solved)
    (task,) = find_source(str(file), Options(num_fewshot=2)).load(FORWARD)
    assert next(doc["prompt"] for doc in task.test_docs()) == (
        "Question: Q1\nAnswer: The answer is r1.\n\n"
        "Question: Q2\nAnswer: The answer is r2.\n\nQuestion: Q0\nAnswer:"
    )
    file = write_rows(tmp_path / "solved.jsonl", solved[:3])
    with pytest.raises(InputError, match="has 2 different questions, all used as examples"):
        find_source(str(file), Options(num_fewshot=2)).load(FORWARD)


@pytest.mark.parametrize("count", [1, 2])
def test_examples_must_leave_a_question_to_ask(tmp_path: Path, count: int) -> None:
    rows = [
        {"id": f"{i}", "question": "?", "choices": ["a", "b"], "answer_index": 0}
        for i in range(count)
    ]
    file = write_rows(tmp_path / "few.jsonl", rows)
    source = find_source(str(file), Options(num_fewshot=2))
    with pytest.raises(InputError, match=f"'few' has {count} different questions, all used as ex"):
        source.load(FORWARD)
