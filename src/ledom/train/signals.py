"""Requests to stop, held back until a step is done.

A step is done whole or not at all: saved between the optimizers' updates, or before its row of
metrics, a run could not resume exactly.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["StopRequest", "stop_requests"]

_OURS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class StopRequest:
    """What was asked for meanwhile."""

    interrupted = False
    """Ctrl-C (SIGINT)."""
    terminated = False
    """SIGTERM, from a job scheduler or a system that shuts down."""


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Hold SIGINT and SIGTERM back, unless someone else handles them."""
    held = StopRequest()

    def hold(number: int, _: object) -> None:
        if number == signal.SIGINT:
            held.interrupted = True
        else:
            held.terminated = True

    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number, usual in _OURS.items() if signal.getsignal(number) is usual]
    for number in taken:
        signal.signal(number, hold)
    try:
        yield held
    finally:
        for number in taken:
            signal.signal(number, _OURS[number])
