"""The commands generate and explain."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from command_line import Run, check_refused
from ledom.core.records import Candidate, write_records
from ledom.lm.backends.fake import FakeLanguageModel


def test_generate_writes_before_or_after(run: Run, fakes: dict[str, FakeLanguageModel]) -> None:
    code, text = run("generate", "--before", "#### 2", "--samples", 2)
    assert code == 0
    assert text.startswith("1 + 1 = ")
    assert text.rstrip().endswith("#### 2")
    code, text = run("generate", "--after", "What is 1 + 1?")
    assert text.startswith("What is 1 + 1?")


def test_fewer_texts_than_requested_are_noted(
    run: Run, fakes: dict[str, FakeLanguageModel]
) -> None:
    both = ("generate", "--after", "What is 1 + 1?", "--before", "#### 2", "--proposals", 1)
    code, text = run(*both, "--samples", 100)
    assert code == 0
    found = text.count("-" * 40) + 1
    assert f"note: --samples is 100, but only {found} different texts fit" in text
    assert "note" not in run(*both)[1]


def test_an_empty_question_is_refused(run: Run, fakes: dict[str, FakeLanguageModel]) -> None:
    check_refused(run("explain", " ", "1 + 1 = 2"), "the question is empty; give a text")


def test_a_solution_may_be_given_as_standard_input(
    run: Run, fakes: dict[str, FakeLanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 + 1 = 2\n")))
    given = run("explain", "What is 1 + 1?", "-", "1 + 1 = 3")
    assert given == run("explain", "What is 1 + 1?", "1 + 1 = 2", "1 + 1 = 3")
    check_refused(run("explain", "-", "-"), "there is only one standard input")


def test_explain_ranks_and_writes_a_page(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    code, output = run("explain", "What is 1 + 1?", "1 + 1 = 2", "none", "--out", tmp_path)
    assert code == 0
    assert output.count("log P(question | answer) = ") == 2
    assert output.count("What is 1 + 1?") == 2
    assert output.count("left unexplained: ") == 2
    case = json.loads((tmp_path / "report.json").read_text())["cases"][0]
    totals = [c["scores"]["reverse"] for c in case["candidates"]]
    assert totals == sorted(totals, reverse=True)
    assert {c["correct"] for c in case["candidates"]} == {None}  # no answer is labeled
    page = (tmp_path / "report.html").read_text()
    assert "1 + 1 = 2" in page
    assert "Problem 1<" in page
    assert "wrong" not in page


@pytest.mark.slow
def test_explain_shows_no_control_characters(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    hostile = "\x1b[31m#### 2\x07\u202e\nnext" + "9" * 100_000
    code, output = run("explain", "What\x1b[2J?", hostile, "", "--out", tmp_path)
    assert code == 0
    assert not {"\x1b", "\x07", "\u202e"} & {*output}
    assert "\\x1b[31m#### 2\\x07\\u202e\nnext" in output
    assert "more characters)" in output
    assert len(output) < 10_000


def test_explain_accepts_a_file(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    file = tmp_path / "theirs.jsonl"
    texts = {"p0": ["one", "two", "one"], "p1": ["three"]}
    write_records(
        file,
        [
            Candidate(problem_id=name, index=i, text=text)
            for name, group in texts.items()
            for i, text in enumerate(group)
        ],
    )
    code, output = run("explain", "What?", file, "--id", "p0")
    assert (code, output.count("left unexplained")) == (0, 2)  # equal texts count once
    check_refused(
        run("explain", "What?", file), "candidates of 2 problems, such as 'p0'; choose by --id"
    )
    code, output = run("explain", "What?", file, "--id", "p9")
    check_refused((code, output), f"no candidates of problem 'p9' in {file}; give another --id")
