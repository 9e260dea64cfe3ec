"""Progress where there is no terminal: a plain line now and then."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from ledom.cli import progress
from ledom.cli.progress import Progress, track, track_tokenizing, track_training


@pytest.mark.parametrize(
    ("done", "total", "before", "seconds", "expected"),
    [
        (0, 40, 0, 61, "0 of 40, 1 min 1 s so far"),
        (10, 40, 0, 20, "10 of 40, 30 per min, 1 min 0 s left"),
        (30, 40, 20, 5, "30 of 40, 2 per s, 5 s left"),  # twenty were there before it started
        (3, 9, 0, 3600, "3 of 9, 3 per h, 2 h 0 min left"),
        (1500, None, 0, 10, "1,500, 150 per s, 10 s so far"),
        (0, None, 0, 5, "5 s so far"),
        (40, 40, 0, 20, "40 of 40, 2 per s, 0 s left"),
    ],
)
def test_a_line_says_how_far_how_fast_and_how_long(
    done: int, total: int | None, before: int, seconds: float, expected: str
) -> None:
    shown = Progress("scoring", before, total)
    shown.done = done
    assert shown.line(seconds) == "scoring: " + expected


def test_lines_come_now_and_then_and_end_with_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.2)
    stage = track(range(50), "sampling", 10, 60)
    for _ in stage:
        time.sleep(0.02)  # a second in all: five lines at most
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 10
    assert all(line.startswith("sampling: ") and " of 60, " in line for line in lines)
    time.sleep(0.5)
    assert capsys.readouterr().err == ""


def test_a_stage_that_reports_nothing_still_shows_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    with Progress("preparing the data"):
        time.sleep(0.3)
    assert "preparing the data: 1 s so far\n" in capsys.readouterr().err


def test_a_quick_stage_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "sampling", 0, 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_training_and_tokenizing_add_their_state(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"tokens_per_second": 1234.0, "notice": None}
    with track_training("reverse", 0, 10) as show:
        show(SimpleNamespace(step=1, loss=2.5, valid_loss=3.0, **step))
        show(SimpleNamespace(step=2, loss=2.0, valid_loss=None, **step | {"notice": "saved"}))
    assert capsys.readouterr().err == "step 2: saved\n"
    with track_tokenizing() as show:
        show(SimpleNamespace(tasks_done=1, num_tasks=4, num_tokens=5000))


def test_what_an_earlier_run_did_does_not_count_for_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.4)
    step = {"tokens_per_second": 1.0, "notice": None, "valid_loss": None, "loss": 1.0}
    with track_training("reverse", 500_000, 1_000_000) as show:
        for number in (500_001, 500_002):  # resumed: two steps, not half a million
            show(SimpleNamespace(step=number, **step))
        time.sleep(0.6)
    (line,) = capsys.readouterr().err.splitlines()
    rate = float(line.split(", ")[1].split(" per s")[0])
    assert line.startswith("reverse: 500,002 of 1,000,000, ")
    assert 1 < rate <= 5  # two steps in 0.4 s or a little more


def test_a_resumed_training_counts_from_its_step_before_the_first_new_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not "0 of 320" while the model is loaded and the first step runs."""
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    with track_training("reverse", 105, 320):
        time.sleep(0.2)
    assert capsys.readouterr().err.startswith("reverse: 105 of 320, ")


def test_only_the_first_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    monkeypatch.setenv("RANK", "1")
    for _ in track(range(2), "sampling", 0, 2):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
