"""Texts on the command line: the name of a file is never taken for its contents."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Run, check_refused
from ledom.cli.texts import is_jsonl


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
def test_the_name_of_a_file_is_no_text(
    run: Run, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("given.json").write_text("{}")
    Path("passages.jsonl").write_text('{"id": "a", "text": "b"}\n')
    check_refused(run(*command), "given.json: this is a file, but a text is needed;")


def test_the_letter_case_of_jsonl_does_not_matter() -> None:
    assert is_jsonl("QUERIES.JSONL", "query")
    assert not is_jsonl("no such file.json", "query")
