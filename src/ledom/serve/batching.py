"""Batches across requests: one worker computes, requests wait, none starves another.

A request is a list of items. A batch first takes one item of each request that has had none, so a
small request is in the next batch however many items large ones have left; then further items of
the others in turn, as long as the batch stays short, and half as long where it completes a small
request. How long it takes the worker learns from the
batches before. Many small requests thus share a large batch, which is the fastest way to do all of
them, and large ones are done in short batches, behind which a small one need not wait. A batch that
completes no request is interrupted between its steps by requests that have had nothing. A batch
starts as soon as the worker is free: batches fill by themselves under load, and an idle server adds
no delay. It knows nothing of models or protocols.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Batcher", "Closing", "Overloaded", "Steps", "finish"]

_T = TypeVar("_T")
_R = TypeVar("_R")
_FIRST_COST = 2000.0  # of a batch before any speed is known
_MEMORY = 0.8  # weight of the past in the speed
_WIDE = 16  # times the usual cost: a batch of requests that have had nothing yet
_FAIR = 4  # so many batches may pass over the requests begun; then one of them goes first

Steps: TypeAlias = Generator[None, None, list[_R]]
"""Work in steps: it yields where it may be interrupted, and returns the results."""


class Overloaded(Exception):  # noqa: N818 (a state of the server)
    """More items wait than the queue holds; `seconds` says when it is worth another try."""

    def __init__(self, seconds: int) -> None:
        super().__init__("too many requests are waiting")
        self.seconds = seconds


class Closing(Exception):  # noqa: N818
    """The server is shutting down and takes no new work."""


@dataclass(eq=False)
class _Request(Generic[_T, _R]):
    items: Sequence[_T]
    done: asyncio.Future[list[_R]]
    results: list[_R] = field(default_factory=list)
    taken: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it: it was answered, it failed, or the client has gone."""
        return self.done.done()


class Batcher(Generic[_T, _R]):
    """A queue in front of `work`, which runs in one thread of its own.

    `cost` says how long an item takes beside others, in any unit. `seconds` is the time that a
    batch of large requests should take, `capacity` the number of items that may wait, `least` how
    many requests may share a batch however long it takes. `observe` is
    told (items, seconds) of every batch. Items of a request are worked on in order.
    """

    def __init__(
        self,
        work: Callable[[list[_T]], Steps[_R]],
        cost: Callable[[_T], float],
        seconds: float,
        capacity: int,
        least: int = 1,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self._work, self._cost, self._observe = work, cost, observe
        self._seconds, self._capacity, self._least = seconds, capacity, least
        self._fresh: deque[_Request[_T, _R]] = deque()  # nothing of them was taken yet
        self._begun: deque[_Request[_T, _R]] = deque()
        self._waiting = self._passed_over = 0
        self._speed: float | None = None
        self._last_items = 1.0
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledom-batch")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return self._waiting

    async def submit(self, items: Sequence[_T]) -> list[_R]:
        """The results of the items, in order. If cancelled, it drops the remaining items.

        Raises `Overloaded` or `Closing` at once, and what the work raises for these very items.
        """
        if self._closing:
            raise Closing("the server is shutting down")
        if not items:
            return []
        if self._waiting + len(items) > self._capacity:
            raise Overloaded(self._seconds_to_drain())
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        request: _Request[_T, _R] = _Request(items, asyncio.get_running_loop().create_future())
        self._fresh.append(request)
        self._waiting += len(items)
        self._wake.set()
        try:
            return await request.done
        finally:
            self._drop(request)

    async def close(self) -> None:
        """Finish what was taken, then stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=True)

    def _seconds_to_drain(self) -> int:
        batches = self._waiting / max(1.0, self._last_items)
        return min(60, max(1, math.ceil(batches * self._seconds)))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            batch = self._take()
            if batch:
                await self._do(batch)
            elif self._closing:
                return
            else:
                self._wake.clear()

    def _take(self) -> list[tuple[_Request[_T, _R], _T]]:
        """The next batch."""
        usual = self._usual_cost()
        batch: list[tuple[_Request[_T, _R], _T]] = []
        cost = 0.0
        self._passed_over += 1
        if self._begun and self._passed_over >= _FAIR:
            cost += self._take_one(self._begun, batch)
            self._passed_over = 0
        cost += self._take_fresh(batch, cost)
        # Whoever is answered after this batch has waited for the one before: it is kept short.
        room = usual / 2 if _completes_a_request(batch) else usual
        while self._begun and (not batch or cost + self._next_cost(self._begun) <= room):
            cost += self._take_one(self._begun, batch)
            self._passed_over = 0
        return batch

    def _take_fresh(self, batch: list[tuple[_Request[_T, _R], _T]], cost: float = 0.0) -> float:
        """Add an item of each request that has had none to a batch of this cost; what they cost."""
        most, before = _WIDE * self._usual_cost(), cost
        while self._fresh and (
            len(batch) < self._least or cost + self._next_cost(self._fresh) <= most
        ):
            cost += self._take_one(self._fresh, batch)
        return cost - before

    def _usual_cost(self) -> float:
        """Of a batch of large requests."""
        return _FIRST_COST if self._speed is None else self._speed * self._seconds

    def _next_cost(self, queue: deque[_Request[_T, _R]]) -> float:
        return self._cost(queue[0].items[queue[0].taken])

    def _take_one(
        self, queue: deque[_Request[_T, _R]], batch: list[tuple[_Request[_T, _R], _T]]
    ) -> float:
        """Take an item of the first request, which goes to the end of those begun."""
        cost = self._next_cost(queue)
        request = queue.popleft()
        batch.append((request, request.items[request.taken]))
        request.taken += 1
        self._waiting -= 1
        if request.taken < len(request.items):
            self._begun.append(request)
        return cost

    def _drop(self, request: _Request[_T, _R]) -> None:
        """Remove the remaining items of a request from the queue."""
        for queue in (self._fresh, self._begun):
            if request in queue:
                queue.remove(request)
                self._waiting -= len(request.items) - request.taken
                request.taken = len(request.items)

    async def _do(self, batch: list[tuple[_Request[_T, _R], _T]]) -> None:
        """Work on a batch; where it fails, on each request's items alone, so that one that cannot
        be done does not spoil the others.
        """
        try:
            results = await self._compute(batch)
        except Exception as error:
            parts: dict[_Request[_T, _R], list[_T]] = {}
            for request, item in batch:
                parts.setdefault(request, []).append(item)
            if len(parts) == 1:
                self._fail(batch[0][0], error)
                return
            for request, items in parts.items():
                await self._do([(request, item) for item in items])
            return
        for (request, _), result in zip(batch, results, strict=True):
            request.results.append(result)
            if len(request.results) == len(request.items) and not request.is_over:
                request.done.set_result(request.results)

    def _fail(self, request: _Request[_T, _R], error: Exception) -> None:
        if not request.is_over:
            request.done.set_exception(error)
        self._drop(request)

    async def _compute(self, batch: list[tuple[_Request[_T, _R], _T]]) -> list[_R]:
        """Work on a batch, step by step. Unless somebody waits for just this batch, requests that
        come meanwhile have theirs between two steps.
        """
        items = [item for _, item in batch]
        steps = self._work(items)
        loop = asyncio.get_running_loop()
        results: list[_R] | None = None
        seconds = 0.0
        while results is None:
            start = time.perf_counter()
            results = await loop.run_in_executor(self._thread, _next_step, steps)
            seconds += time.perf_counter() - start
            if results is None and self._fresh and not _completes_a_request(batch):
                between: list[tuple[_Request[_T, _R], _T]] = []
                self._take_fresh(between)
                await self._do(between)
        self._learn(items, seconds)
        return results

    def _learn(self, items: list[_T], seconds: float) -> None:
        """Note how long a batch took."""
        self._observe(len(items), seconds)
        speed = min(sum(map(self._cost, items)) / max(seconds, 1e-6), 1e12)
        past = speed if self._speed is None else self._speed
        self._speed = _MEMORY * past + (1 - _MEMORY) * speed
        self._last_items = len(items)


def _completes_a_request(batch: Sequence[tuple[_Request[_T, _R], _T]]) -> bool:
    return any(request.taken == len(request.items) for request, _ in batch)


def finish(steps: Steps[_R]) -> list[_R]:
    """Do all steps at once; the results.

    >>> def double(numbers):
    ...     yield
    ...     return [2 * number for number in numbers]
    >>> finish(double([1, 2]))
    [2, 4]
    """
    while (results := _next_step(steps)) is None:
        pass
    return results


def _next_step(steps: Steps[_R]) -> list[_R] | None:
    """Do one step; the results after the last one."""
    try:
        next(steps)
    except StopIteration as end:
        results: list[_R] = end.value
        return results
    return None
