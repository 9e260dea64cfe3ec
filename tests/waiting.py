"""How tests wait: for a state, never for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["SECONDS", "until", "until_async"]

SECONDS = 240.0
"""The deadline for anything a test waits for. It matters only to failing tests, so it is long
enough for a busy machine."""


def until(condition: Callable[[], object], state: Callable[[], object] = lambda: "") -> None:
    """Return once a condition holds; a failing test shows the state."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, state()
        time.sleep(0.005)


async def until_async(condition: Callable[[], object]) -> None:
    """The same in an event loop, which keeps running."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)
