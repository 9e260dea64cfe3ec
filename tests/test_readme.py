"""The README's tour works as written: its commands and its Python, with smaller numbers."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from command_line import Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures", "embedded_once")]

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TOUR = README[README.index("## Five minutes") : README.index("## Beyond the tour")]
SMALLER = {"--num-problems": "6", "--samples": "4"}  # in place of the tour's numbers


def blocks(language: str = "") -> list[str]:
    """The tour's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TOUR, re.DOTALL | re.MULTILINE)


def smaller(words: list[str]) -> list[str]:
    """The command's words with fewer problems and candidates."""
    before = ["", *words]
    return [SMALLER.get(option, word) for option, word in zip(before, words, strict=False)]


def shell_command(block: str) -> str:
    """The text after the prompt, up to the line on which its quotes are closed."""
    lines = block.removeprefix("$ ").replace("\\\n", " ").splitlines()
    for count in range(1, len(lines) + 1):
        text = "\n".join(lines[:count])
        if text.count("'") % 2 == 0 and text.count('"') % 2 == 0:
            return text
    raise AssertionError(block)


def expected(block: str) -> list[str]:
    """The lines of output that the README shows in full."""
    shown = block.removeprefix("$ ").replace("\\\n", " ")[len(shell_command(block)) :]
    return [line for line in shown.splitlines() if line and line != "..."]


def test_the_output_shown_in_the_tour_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [block for block in blocks() if block.startswith("$ ")]
    assert len(shown) == 2
    for block in shown:
        words = shlex.split(shell_command(block))
        if words[0] == "printf":
            pipe = words.index("|")
            text = words[1].replace("\\n", "\n")
            stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
            monkeypatch.setattr(sys, "stdin", stdin)
            words = words[pipe + 1 :]
        assert words[0] == "ledom"
        code, printed = run(*words[1:])
        assert code == 0, printed
        for line in expected(block):
            assert line in " ".join(printed.split("\n")) or line in printed, (line, printed)


def test_every_command_in_the_tour_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line)
        for block in blocks()
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("ledom ")
    ]
    assert [words[1] for words in commands] == ["rerank", "tune", "rerank"]
    for words in commands:
        code, printed = run(*smaller(words)[1:])
        assert code == 0, printed
    assert (tmp_path / "out" / "test" / "report.html").is_file()


def test_the_python_in_the_tour_runs() -> None:
    (snippet,) = blocks("python")
    names: dict[str, object] = {}
    exec(snippet, names)
    values, ids = names["values"], names["ids"]
    assert len(values) == len(ids) - 1  # type: ignore[arg-type]
    assert max(values) <= 0  # type: ignore[call-overload]


def test_every_command_in_the_tour_says_how_long_it_takes() -> None:
    times = re.findall(r"\*\*\d+ (?:seconds|minutes?)\.?\*\*", TOUR)
    assert len(times) == len(blocks("python")) + 2 + 3
