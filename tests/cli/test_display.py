"""What a command shows on the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from ledom.cli.display import show_summary
from ledom.rerank.strategies import strategies


def row(name: str, **more: Any) -> dict[str, Any]:
    wide = {"mean": -0.123, "low": -0.234, "high": -0.1}
    return {
        "name": name,
        "accuracy": {"mean": 1.0, "low": 0.75, "high": 1.0},
        "versus": {"greedy": wide, "majority": wide},
        **more,
    }


def test_the_table_fits_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a wide terminal must not spread it
    long = "a verifier with a rather long name"
    show_summary({"strategies": [row(name) for name in strategies(("self_certainty", long))]})
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    (noisy,) = [line for line in lines if line.startswith("noisy channel")]
    assert noisy.split(maxsplit=2)[2] == "100.0 ± 25.0 -12.3 [-23.4, -10.0] -12.3 [-23.4, -10.0]"
    names = " ".join(line.split("100.0")[0].strip() for line in lines)  # long ones are folded
    assert names.count("rather long name") == 2


def test_what_the_majority_needed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    needed = {
        "candidates": {"mean": 19.24, "low": 18.0, "high": 20.0},
        "of": 32,
        "saved": {"mean": 0.399, "low": 0.3, "high": 0.5},
    }
    show_summary({"strategies": [row("majority"), row("majority, stopped", needed=needed)]})
    said = capsys.readouterr().err
    assert said == "the majority was certain after 19.2 of 32 candidates (40% saved)\n"


def test_nothing_measured_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary({"strategies": []})
    assert capsys.readouterr().out == ""
