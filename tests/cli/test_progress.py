"""Progress without a terminal: a plain line now and then."""

from __future__ import annotations

import re
import threading
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from ledom.cli import progress
from ledom.cli.progress import Progress, track, track_tokenizing, track_training
from waiting import SECONDS, until


@pytest.mark.parametrize(
    ("done", "total", "before", "seconds", "expected"),
    [
        (0, 40, 0, 61, "0 of 40, 1 min 1 s so far"),
        (10, 40, 0, 20, "10 of 40, 30 per min, 1 min 0 s left"),
        (30, 40, 20, 5, "30 of 40, 2 per s, 5 s left"),  # twenty were done before it started
        (3, 9, 0, 3600, "3 of 9, 3 per h, 2 h 0 min left"),
        (1500, None, 0, 10, "1,500, 150 per s, 10 s so far"),
        (0, None, 0, 5, "5 s so far"),
        (40, 40, 0, 20, "40 of 40, 2 per s, 0 s left"),
    ],
)
def test_a_line_gives_progress_speed_and_time_left(
    done: int, total: int | None, before: int, seconds: float, expected: str
) -> None:
    shown = Progress("scoring", before, total)
    shown.done = done
    assert shown.line(seconds) == "scoring: " + expected


class Clock:
    """A clock that advances half a minute on request and waits for the resulting line."""

    def __init__(self) -> None:
        self.now, self.lines = 100.0, list[str]()
        self._ended: Queue[bool] = Queue()
        self.threads: list[threading.Thread] = []

    def wait(self, seconds: float) -> bool:
        assert seconds == 30
        return self._ended.get(timeout=SECONDS)

    def set(self) -> None:
        self._ended.put(True)

    def passes(self) -> str:
        self.now += 30
        number = len(self.lines)
        self._ended.put(False)
        until(lambda: len(self.lines) > number)
        return self.lines[-1]

    def thread(self, **settings: Any) -> threading.Thread:
        self.threads.append(threading.Thread(**settings))
        return self.threads[-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    threads = SimpleNamespace(Event=lambda: clock, Thread=clock.thread)
    monkeypatch.setattr(progress, "threading", threads)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(progress, "log", clock.lines.append)
    return clock


def test_lines_appear_at_intervals_and_stop_with_the_stage(clock: Clock) -> None:
    stage = track(range(50), "sampling", 10, 60)
    assert next(stage) == 0
    assert clock.passes() == "sampling: 10 of 60, 30 s so far"
    assert [next(stage), next(stage)] == [1, 2]
    assert clock.passes() == "sampling: 12 of 60, 2 per min, 24 min 0 s left"
    assert list(stage) == list(range(3, 50))
    (thread,) = clock.threads
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert len(clock.lines) == 2


def test_a_stage_that_reports_nothing_still_prints_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This uses a real clock, so the number of seconds is not known."""
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    said: list[str] = []

    def printed() -> str:
        said.append(capsys.readouterr().err)
        return said[-1]

    with Progress("preparing the data"):
        until(printed)
    assert re.match(r"preparing the data: \d+ s so far\n", said[-1])


def test_a_quick_stage_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "sampling", 0, 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_training_and_tokenizing_show_their_state(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"tokens_per_second": 1234.0, "notice": None}
    with track_training("reverse", 0, 10) as show:
        show(SimpleNamespace(step=1, loss=2.5, valid_loss=3.0, **step))
        show(SimpleNamespace(step=2, loss=2.0, valid_loss=None, **step | {"notice": "saved"}))
    assert capsys.readouterr().err == "step 2: saved\n"
    with track_tokenizing() as show:
        show(SimpleNamespace(tasks_done=1, num_tasks=4, num_tokens=5000))


def test_work_of_an_earlier_run_does_not_count_for_the_rate(clock: Clock) -> None:
    step = {"tokens_per_second": 1.0, "notice": None, "valid_loss": None, "loss": 1.0}
    with track_training("reverse", 500_000, 1_000_000) as show:
        for number in (500_001, 500_002):  # resumed: two steps, not half a million
            show(SimpleNamespace(step=number, **step))
        line = clock.passes()
    assert line == (
        "reverse: 500,002 of 1,000,000, 4 per min, 2,083 h 19 min left, loss 1.000, 1 tokens/s"
    )


def test_a_resumed_run_shows_its_step_before_the_first_new_one(clock: Clock) -> None:
    """It does not show "0 of 320" while the model loads and the first step runs."""
    with track_training("reverse", 105, 320):
        assert clock.passes() == "reverse: 105 of 320, 30 s so far"


def test_only_the_first_process_prints(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(track(range(2), "sampling", 0, 2)) == [0, 1]
    assert len(clock.threads) == 1
    monkeypatch.setenv("RANK", "1")
    assert list(track(range(2), "sampling", 0, 2)) == [0, 1]
    assert len(clock.threads) == 1
