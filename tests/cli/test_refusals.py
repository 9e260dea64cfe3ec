"""What rerank and search refuse: by name, before a folder is created or a model is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import QUESTIONS, Run, check_refused
from ledom.core.records import Candidate, Problem, write_records
from ledom.lm.backends.fake import FakeLanguageModel

Fakes = dict[str, FakeLanguageModel]


@pytest.fixture(autouse=True)
def no_work(fakes: Fakes, tmp_path: Path) -> Iterator[None]:
    """In these refusals, no model scores or generates anything, and no folder is created."""
    yield
    assert [model.num_scored for model in fakes.values()] == [0, 0]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def out(tmp_path: Path) -> tuple[str, Path]:
    return "--out", tmp_path / "out"


def write(path: Path, *records: Problem | Candidate) -> Path:
    write_records(path, records)
    return path


@pytest.mark.parametrize("command", ["rerank --samples 4", "rerank --early-stop", "search"])
def test_temperature_0_is_refused_for_sampling(
    run: Run, problem_file: Path, out: tuple[str, Path], command: str
) -> None:
    result = run(*command.split(), "--problems", problem_file, "--temperature", 0, *out)
    check_refused(result, "the temperature is 0", "give one above 0")


@pytest.mark.parametrize("labeled", [0, 1])
def test_folds_without_labels_are_refused(
    run: Run, tmp_path: Path, out: tuple[str, Path], labeled: int
) -> None:
    unlabeled = [replace(problem, answer=None) for problem in QUESTIONS[labeled:]]
    file = write(tmp_path / "problems.jsonl", *QUESTIONS[:labeled], *unlabeled)
    check_refused(
        run("rerank", "--problems", file, "--samples", 2, "--folds", 2, *out),
        f"{labeled} of 6 different questions have right answers, too few to fit weights in folds",
        "add answers to the problems, or leave the folds out",
    )


@pytest.mark.parametrize("number", [1, 2])
def test_greedy_candidates_alone_are_refused(
    run: Run, problem_file: Path, tmp_path: Path, out: tuple[str, Path], number: int
) -> None:
    """One problem has only greedy candidates, however many; the others have a choice."""
    rows = [
        Candidate(problem_id=p.id, index=i, text=f"#### {i}", greedy=p.id in ("p2", "p4"))
        for p in QUESTIONS
        for i in range(number)
    ]
    file = write(tmp_path / "candidates.jsonl", *rows)
    check_refused(
        run("rerank", "--problems", problem_file, "--candidates", file, *out),
        "2 of 6 problems have no candidates to choose from, the first is 'p2'",
        "add sampled candidates, or leave out the key 'greedy'",
    )


@pytest.mark.parametrize("index", [-1, -(10**30), 2**63, 10**30])
def test_an_index_that_is_not_a_count_is_refused(
    run: Run, problem_file: Path, tmp_path: Path, out: tuple[str, Path], index: int
) -> None:
    good = Candidate(problem_id="p0", index=0, text="#### 1")
    bad = Candidate(problem_id="p1", index=index, text="#### 2")
    file = write(tmp_path / "candidates.jsonl", good, bad)
    check_refused(
        run("rerank", "--problems", problem_file, "--candidates", file, *out),
        f"{file}:2: a candidate of problem 'p1' has the index {index}, expected 0 to 2^63 - 1",
    )


@pytest.mark.parametrize("command", ["rerank", "search"])
@pytest.mark.parametrize("question", ["", "  \n\t", "\u2003"])
def test_a_blank_question_is_refused(
    run: Run, tmp_path: Path, out: tuple[str, Path], command: str, question: str
) -> None:
    problems = [QUESTIONS[0], Problem(id="void", question=question, answer="1")]
    file = write(tmp_path / "problems.jsonl", *problems)
    check_refused(run(command, "--problems", file, *out), "problem 'void' has an empty question")


@pytest.mark.parametrize("command", ["rerank", "search"])
def test_a_prompt_that_leaves_no_room_is_refused(
    run: Run, fakes: Fakes, tmp_path: Path, out: tuple[str, Path], command: str
) -> None:
    """It is far down in the file and would otherwise fail after hours of work."""
    for model in fakes.values():
        model.context = 64
    problems = [*QUESTIONS, Problem(id="long", question="7 pens and " * 60, answer="1")]
    file = write(tmp_path / "problems.jsonl", *problems)
    result = run(command, "--problems", file, "--max-tokens", 16, *out)
    check_refused(result, "1 of 7 ", "the first is", "'long'", "remove these problems")


def test_a_question_that_leaves_no_room_for_given_solutions_is_refused(
    run: Run, fakes: Fakes, candidate_file: Path, tmp_path: Path, out: tuple[str, Path]
) -> None:
    """Only the reverse model's context is too short; it is checked before any forward scoring."""
    fakes["reverse"].context = 64
    long = Problem(id="p5", question="7 pens and " * 60, answer="1")
    file = write(tmp_path / "problems.jsonl", *QUESTIONS[:5], long)
    check_refused(
        run("rerank", "--problems", file, "--candidates", candidate_file, *out),
        "1 of 6 questions leave no room for a solution",
        "the first is that of problem 'p5'",
    )


def test_demonstrations_that_leave_no_room_are_refused(
    run: Run,
    fakes: Fakes,
    problem_file: Path,
    candidate_file: Path,
    tmp_path: Path,
    out: tuple[str, Path],
) -> None:
    for model in fakes.values():
        model.context = 64
    shown = Problem(id="d", question="How many?", solution="7 pens and " * 60)
    file = write(tmp_path / "shown.jsonl", shown)
    given = ("--candidates", candidate_file, "--demonstrations", file)
    check_refused(
        run("rerank", "--problems", problem_file, *given, *out),
        "fake: the demonstrations take ",
        "of a context of 64",
        "give fewer, or shorter ones",
    )
