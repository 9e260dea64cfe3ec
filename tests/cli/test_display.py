"""What a command shows on the terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Run
from ledom.cli.display import show_ranking, show_summary, show_texts, show_weights
from ledom.report.results import Interval, Needed, SelectionReport, StrategyResult
from ledom.rerank.strategies import strategies
from ledom.rerank.weights import TunedWeights


def row(label: str, **more: Any) -> StrategyResult:
    wide = Interval(-0.123, -0.234, -0.1)
    return StrategyResult(
        id=label,
        label=label,
        kind="pick",
        description="",
        formula="",
        accuracy=Interval(1.0, 0.75, 1.0),
        versus={"greedy": wide, "majority": wide},
        **more,
    )


def report(*rows: StrategyResult) -> SelectionReport:
    return SelectionReport(title="", warning=None, strategies=rows)


def test_the_table_fits_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a wide terminal must not widen the table
    long = "a verifier with a rather long name"
    show_summary(report(*(row(s.label) for s in strategies(("self_certainty", long)).values())))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert re.split(r" {2,}", lines[0])[1:] == ["accuracy, %", "minus greedy", "minus majority"]
    (noisy,) = [line for line in lines if line.startswith("noisy channel")]
    assert noisy.split(maxsplit=2)[2] == (
        "100.0 [75.0, 100.0] −12.3 [−23.4, −10.0] −12.3 [−23.4, −10.0]"
    )
    names = " ".join(line.split("100.0")[0].strip() for line in lines)  # long names are wrapped
    assert names.count("rather long name") == 2


def test_a_narrow_terminal_cuts_neither_names_nor_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # the terminal breaks longer lines itself
    show_summary(report(row("majority")))
    row_shown = capsys.readouterr().out.splitlines()[1]
    assert row_shown == "majority 100.0 [75.0, 100.0] −12.3 [−23.4, −10.0] −12.3 [−23.4, −10.0]"


def test_the_number_the_majority_needed_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    needed = Needed(candidates=Interval(19.24, 18.0, 20.0), of=32, saved=Interval(0.399, 0.3, 0.5))
    show_summary(report(row("majority"), row("majority, stopped", needed=needed)))
    said = capsys.readouterr().err
    assert said == "the majority was certain after 19.2 of 32 candidates (40% saved)\n"


def test_nothing_measured_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(report())
    assert capsys.readouterr().out == ""


def test_weights_are_shown_under_the_strategies_labels(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "reverse_reward": {"forward": 0.75, "reverse": 0.25, "forward_mean": 0.0},
        "vote_external:self_certainty": {"self_certainty": 2.0},
    }
    show_weights(TunedWeights(rows, 10, 80, frozenset(), ("self_certainty",)))
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "reverse reward",
        "vote, self-certainty",
    ]


def test_a_piped_row_is_not_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = [f"feature{number}" for number in range(30)]
    monkeypatch.delenv("COLUMNS", raising=False)
    tuned = TunedWeights({"all_terms": dict.fromkeys(features, 0.25)}, 10, 80, frozenset())
    show_weights(tuned)
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_weights(tuned)
    assert capsys.readouterr().out.count("\n") > 1  # on a terminal, lines wrap at its edge


def test_a_piped_text_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    passage = "a passage of many words " * 10 + "\nits second line"
    show_ranking([("p " * 60 + "name", passage, -1.25)])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "1. " + "p " * 60 + "name  -1.2"
    assert lines == passage.splitlines()


@pytest.mark.parametrize("terminal", [True, False])
def test_generated_texts_cannot_move_the_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """A file or another program gets the texts unchanged."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    show_texts(["4\x1b[2J\n\t5\u0301", "6"])
    first, second = capsys.readouterr().out.split(f"\n\n{'-' * 40}\n\n")
    assert first == ("4\\x1b[2J\n\t5\u0301" if terminal else "4\x1b[2J\n\t5\u0301")
    assert second == "6\n"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "fakes")
def test_output_fits_80_columns(
    run: Run, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    shown = [
        run("rerank", "--problems", problem_file, "--samples", 8, "--out", out)[1],
        run("tune", out, "--out", tmp_path / "weights.json")[1],
        *(run(name, "--help")[1] for name in ("rerank", "search", "train", "explain")),
    ]
    for text in shown:
        assert "\u2026" not in text  # rich's mark for truncated text
    tables = [line for line in shown[1].splitlines() if "+" in line]
    assert tables
    assert all(len(line) <= 80 for line in tables)
