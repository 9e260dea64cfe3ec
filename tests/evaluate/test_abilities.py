"""docs/abilities.md shows what the embedded pair prints."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from command_line import Run
from waiting import SECONDS

PAGE = (Path(__file__).parents[2] / "docs" / "abilities.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(\$ .*?)```", PAGE, re.DOTALL)


def name_of(block: str) -> str:
    match = re.search(r"\$ ledom (\w+)", block)
    assert match is not None
    return match[1]


def test_every_ability_is_shown() -> None:
    assert [name_of(block) for block in BLOCKS] == ["rank", "synthesize", "generate", "invert"]


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_once")
@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_the_examples_in_the_docs_are_true(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    """`cat` shows the files; every line shown for the other commands must be printed."""
    monkeypatch.chdir(tmp_path)
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        typed, shown = _typed(part)
        if typed.startswith("cat "):
            Path(typed.removeprefix("cat ")).write_text(shown, encoding="utf-8")
            continue
        printed = [line.rstrip() for line in _printed(run, typed).splitlines()]
        for line in shown.splitlines():
            assert line == "..." or line in printed, (line, printed)


def _printed(run: Run, typed: str) -> str:
    """A command's output; ledom runs in this process, other commands run in a shell."""
    if typed.startswith("ledom "):
        code, text = run(*shlex.split(typed)[1:])
        assert code == 0, text
        return text
    done = subprocess.run(
        typed, shell=True, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    return done.stdout


def _typed(block: str) -> tuple[str, str]:
    """The command, which ends at the first line end outside quotes, and its output."""
    is_quoted = False
    for place, character in enumerate(block):
        is_quoted ^= character == '"'
        if character == "\n" and not is_quoted:
            return block[:place], block[place + 1 :]
    return block, ""
