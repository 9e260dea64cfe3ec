"""The program itself, without a command."""

from __future__ import annotations

import pytest

from command_line import Run


@pytest.mark.slow
def test_no_arguments_show_the_commands(run: Run) -> None:
    code, text = run()
    assert code == 0
    assert "rerank" in text
    assert "error" not in text
