"""The program itself, without a command."""

from __future__ import annotations

from command_line import Run


def test_no_arguments_show_the_commands(run: Run) -> None:
    code, text = run()
    assert code == 0
    assert "rerank" in text
    assert "error" not in text
