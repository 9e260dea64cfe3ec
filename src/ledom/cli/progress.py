"""The progress of a long stage: a bar on a terminal, otherwise a line every 30 seconds.

If several processes share a stage, only the first shows progress, and only on its own share.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from ledom.cli.display import log
from ledom.core import processes as parallel
from ledom.report.formatting import count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from ledom.data.tokenize import TokenizeProgress
    from ledom.train.loop import Progress as TrainingProgress

_T = TypeVar("_T")

SECONDS = 30.0
"""Seconds between two lines when standard error is not a terminal."""


class Progress:
    """The state of a running stage, and its display.

    with Progress("scoring", total=800) as progress:
        progress.update(done=12, state="loss 3.2")
    """

    def __init__(self, name: str, done: int = 0, total: int | None = None) -> None:
        self.name, self.done, self.total, self.state = name, done, total, ""
        self._before = done
        self._start = time.monotonic()
        self._bar: Bar | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Progress:
        if parallel.is_first():
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_interactive:
                self._bar = _start_bar(self, console)
            else:
                threading.Thread(target=self._print_lines, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()

    def update(
        self, done: int | None = None, total: int | None = None, state: str | None = None
    ) -> None:
        """Set new values; None keeps the old one."""
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self.state = self.state if state is None else state
        if (bar := self._bar) is not None:
            bar.update(bar.task_ids[0], completed=self.done, total=self.total, state=self.state)

    def begin(self, done: int) -> None:
        """Set how much an earlier run has done. It does not count toward the rate."""
        self._before = done
        self.update(done)

    def note(self, line: str) -> None:
        """Print a separate line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False)
        else:
            log(line)

    def line(self, seconds: float) -> str:
        """The state as text, `seconds` after the start.

        >>> Progress("scoring", done=10, total=40).line(60)
        'scoring: 10 of 40, 1 min 0 s so far'
        """
        made = self.done - self._before
        parts = [f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"]
        if made and seconds > 0:
            parts.append(_rate(made / seconds))
        if made and self.total is not None:
            parts.append(f"{_duration(seconds / made * (self.total - self.done))} left")
        else:
            parts.append(f"{_duration(seconds)} so far")
        if not made and self.total is None:
            parts.pop(0)  # this stage has no count
        return f"{self.name}: {', '.join([*parts, *filter(None, [self.state])])}"

    def _print_lines(self) -> None:
        while not self._ended.wait(SECONDS):
            log(self.line(time.monotonic() - self._start))


def track(chunks: Iterable[_T], name: str, done: int, total: int | None) -> Iterator[_T]:
    """Yield the chunks and show progress. Each chunk counts as one; `total` may be unknown (None).

    >>> list(track(["a", "b"], "scoring", done=0, total=2))
    ['a', 'b']
    """
    with Progress(name, done, total) as progress:
        for chunk in chunks:
            yield chunk
            progress.update(progress.done + 1)


@contextmanager
def track_training(
    name: str, done: int, steps: int
) -> Iterator[Callable[[TrainingProgress], None]]:
    """Show steps, loss and tokens per second; yields the callback for `ledom.train.loop`.

    SIGTERM ends training with `SystemExit` after the current step; a line then says how to resume.
    """
    valid = ""
    try:
        with Progress(name, done, steps) as progress:

            def show(report: TrainingProgress) -> None:
                nonlocal valid
                if report.notice is not None:
                    progress.note(f"step {report.step}: {report.notice}")
                if report.valid_loss is not None:
                    valid = f", valid {report.valid_loss:.3f}"
                speed = f"{report.tokens_per_second:,.0f} tokens/s"
                progress.update(report.step, state=f"loss {report.loss:.3f}{valid}, {speed}")

            yield show
    except SystemExit:
        log("stopped; every step is saved: run the same command again to resume")
        raise


@contextmanager
def track_tokenizing() -> Iterator[Callable[[TokenizeProgress], None]]:
    """Show tasks, tokens and their rate; yields the callback for `tokenize`."""
    first: tuple[float, int] | None = None  # time and tokens of the first report
    with Progress("tasks") as progress:

        def show(report: TokenizeProgress) -> None:
            nonlocal first
            now, written = time.monotonic(), report.num_tokens
            if first is None:
                progress.begin(report.tasks_done)
            first = start, before = first or (now, written)
            state = f"{count(written)} tokens"
            if now > start:
                state += f", {count((written - before) / (now - start))} tokens/s"
            progress.update(report.tasks_done, report.num_tasks, state)

        yield show


def _start_bar(progress: Progress, console: Console) -> Bar:
    from rich import progress as rich

    name, state = rich.TextColumn("{task.description}"), rich.TextColumn("{task.fields[state]}")
    counted = (rich.MofNCompleteColumn(), state, rich.TimeRemainingColumn())
    shown = (rich.SpinnerColumn(), name, rich.BarColumn(), *counted, rich.TimeElapsedColumn())
    bar = rich.Progress(*shown, console=console)
    bar.add_task(progress.name, total=progress.total, completed=progress.done, state="")
    bar.start()
    return bar


def _rate(per_second: float) -> str:
    """`3.2 per s`; slower rates are per minute or per hour."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if per_second * seconds >= 1 or unit == "h":
            break
    return f"{per_second * seconds:.3g} per {unit}"


def _duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, left = divmod(math.ceil(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
