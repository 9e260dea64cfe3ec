"""Texts on the command line (UTF-8, never a file name) and the number of problems."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from command_line import Run, check_refused
from ledom.cli.inputs import is_jsonl
from ledom.lm.backends.fake import FakeLanguageModel


@pytest.mark.parametrize(
    "command",
    [
        ["rank", "given.json", "passages.jsonl"],
        ["invert", "given.json"],
        ["generate", "--before", "given.json"],
        ["generate", "--after", "given.json"],
        ["explain", "given.json", "3 + 4 = 7"],
        ["explain", "2 + 3?", "given.json"],
    ],
)
def test_a_file_name_is_not_read_as_text(
    run: Run, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("given.json").write_text("{}")
    Path("passages.jsonl").write_text('{"id": "a", "text": "b"}\n')
    check_refused(run(*command), "given.json: this is a file, but a text is needed;")
    Path("given.json").unlink()
    os.mkfifo("given.json")  # as <(COMMAND) is
    check_refused(run(*command), "given.json: this is a file, but a text is needed;")
    Path("given.json").unlink()
    Path("given.json").mkdir()
    check_refused(run(*command), "given.json: this is a folder, but a text is needed;")


def test_the_letter_case_of_jsonl_does_not_matter() -> None:
    assert is_jsonl("QUERIES.JSONL", "query")
    assert not is_jsonl("no such file.json", "query")


def test_texts_that_are_not_utf_8_are_refused(
    run: Run, fakes: dict[str, FakeLanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = os.fsdecode(b"ab\xffc")
    check_refused(
        run("generate", "--before", bad),
        "the ending is not UTF-8: byte 0xff at position 2",
        "iconv",
    )
    check_refused(run("explain", bad, "x"), "the question is not UTF-8")
    check_refused(run("explain", "x", "y", bad), "the solution is not UTF-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xc3("), encoding="ascii"))
    check_refused(
        run("generate", "--before", "-"), "the ending on standard input is not UTF-8: byte 0xc3"
    )
    # Standard input is read as UTF-8, whatever encoding the locale sets, without a byte-order mark.
    good = io.TextIOWrapper(io.BytesIO("\ufeffé\r\nb".encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", good)
    code, text = run("generate", "--after", "-")
    assert code == 0, text
    assert text.startswith("é\nb")
    monkeypatch.setattr(sys, "stdin", None)
    check_refused(run("generate", "--after", "-"), "standard input is closed")


def test_asking_for_more_problems_than_exist_is_refused(
    run: Run, fakes: dict[str, FakeLanguageModel], problem_file: Path, tmp_path: Path
) -> None:
    for command in ("rerank", "search"):
        refused = run(
            command, "--problems", problem_file, "--num-problems", 7, "--out", tmp_path / "out"
        )
        check_refused(refused, f"--num-problems is 7, but {problem_file} has 6")
    assert not (tmp_path / "out").exists()
