"""`ledom eval`: the table it prints and the input it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Run
from evaluated import QUESTIONS, write_rows
from ledom.lm.backends.fake import FakeLanguageModel

pytest.importorskip("lm_eval")


@pytest.mark.slow
def test_the_command_prints_one_table(
    run: Run, fakes: dict[str, FakeLanguageModel], tmp_path: Path
) -> None:
    questions = write_rows(tmp_path / "mine.jsonl", QUESTIONS)
    code, printed = run("eval", questions, "--out", tmp_path / "out")
    assert code == 0, printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["mine"] in lines
    for model, scoring in (("forward", "conditional"), ("reverse", "posterior")):
        assert any(line[:3] == ["acc", model, scoring] for line in lines)
    assert "mine: 12 documents, chance 25.0%" in printed
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "apple"], "unknown suite 'apple'"),
        (["arc_easy", "--suite", "r2l"], "give tasks or --suite, not both"),
        (["--forward", "none", "--reverse", "none"], "give a forward or a reverse model"),
        (["problems_after", "--data", "."], "--data would have no effect: this folder has no TASK"),
        (["mine.jsonl", "--data", "."], "--data would have no effect"),
        (["mine.jsonl", "--seed", "3"], "--seed would have no effect"),
        (["--forward", "none", "--add-bos"], "--add-bos would have no effect"),
        (["none.jsonl"], "none.jsonl"),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_bad_commands_give_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "mine.jsonl", QUESTIONS)
    code, printed = run("eval", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
