"""Runs work on long texts in a thread, so that it does not block other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["apart"]

_T = TypeVar("_T")
_SHORT = 20_000  # characters: a few milliseconds of work, about the cost of using a thread


async def apart(size: int, work: Callable[[], _T]) -> _T:
    """Run `work`, which reads `size` characters, in a thread if `size` is large; its result.

    >>> asyncio.run(apart(3, lambda: "abc"))
    'abc'
    """
    return work() if size <= _SHORT else await asyncio.to_thread(work)
