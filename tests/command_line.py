"""Helpers for the tests of the command line; the fixtures are in shared_fixtures.py."""

from __future__ import annotations

from collections.abc import Callable

from ledom.core.records import Problem

Run = Callable[..., tuple[int, str]]

QUESTIONS = [Problem(id=f"p{i}", question=f"What is {i} + 1?", answer="2") for i in range(6)]


def check_refused(result: tuple[int, str], *parts: str) -> None:
    """Check for exit code 2 and one line that contains all `parts`."""
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    line = text.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
