"""Runs work on long texts in a thread, so that other requests need not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["apart"]

_T = TypeVar("_T")
_SHORT = 20_000  # characters: a few milliseconds, about what a thread's start and end cost


async def apart(size: int, work: Callable[[], _T]) -> _T:
    """The result of `work`, which reads `size` characters; run in a thread if that takes long.

    >>> asyncio.run(apart(3, lambda: "abc"))
    'abc'
    """
    return work() if size <= _SHORT else await asyncio.to_thread(work)
