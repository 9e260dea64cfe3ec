"""A fair queue that batches work across requests.

A request is a list of items. One worker computes batches of items. A batch is filled in two steps:

1. One item of each request that no batch has served yet. A small request is therefore in the next
   batch, however many items large requests have left.
2. Further items of the other requests, in turn, up to a time limit, which is halved if the batch
   completes a request. Times are estimated from earlier batches. If most of a batch's time does not
   depend on its size, as with a remote server, the limit is raised.

Many small requests thus share one large batch, and wait only briefly behind large requests. A batch
that completes no request also pauses between its steps to serve new requests. A batch starts as
soon as the worker is free: batches grow under load, and an idle server adds no delay. A batch stops
at its next step once nobody is waiting for any of its requests.

This module does not know about models or protocols.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar, cast

__all__ = ["Batcher", "Closing", "Overloaded", "Steps", "apart", "finish"]

_T = TypeVar("_T")
_R = TypeVar("_R")
_FIRST_COST = 2000.0  # cost of a batch before any speed is known
_MEMORY = 0.8  # weight of earlier batches in moving averages
_GROWTH = 4  # a batch may cost this many times the average of earlier ones
_SPREAD = 0.1  # least standard deviation of costs, relative to their mean, that shows a slope
_WIDE = 16  # a batch of new requests may cost this many times the usual cost
_SHORT = 20_000  # characters: a few milliseconds of work, about the cost of using a thread
_FAIR = 4  # after this many batches without a begun request, one of these goes first

Steps: TypeAlias = Generator[None, None, _R]
"""Work in steps: a generator that yields wherever it may pause or end, and returns its result."""


class Overloaded(Exception):  # noqa: N818 (a state of the server)
    """The queue is full; try again after `seconds`."""

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
        """Whether nobody is waiting for the result: it was sent or failed, or the client left."""
        return self.done.done()


_Batch: TypeAlias = list[tuple[_Request[_T, _R], _T]]
"""Items, each with its request."""


class Batcher(Generic[_T, _R]):
    """A queue in front of `work`, which runs in its own thread.

    `cost` estimates the time of an item, in any unit; it is over 0. `seconds` is how long a batch
    of large requests should take. `capacity` is the number of items that may wait. At least `least`
    new requests may share a batch, however long it takes. `observe` is called with (number of
    items, seconds) after every batch. The items of a request are computed in order.

    >>> def double(numbers):
    ...     yield
    ...     return [2 * number for number in numbers]
    >>> async def doubled(numbers):
    ...     batcher = Batcher(double, cost=lambda number: 1.0, seconds=0.1, capacity=100)
    ...     results = await batcher.submit(numbers)
    ...     await batcher.close()
    ...     return results
    >>> asyncio.run(doubled([1, 2]))
    [2, 4]
    """

    def __init__(
        self,
        work: Callable[[list[_T]], Steps[list[_R]]],
        cost: Callable[[_T], float],
        seconds: float,
        capacity: int,
        least: int = 1,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self._work, self._cost, self._observe = work, cost, observe
        self._seconds, self._capacity, self._least = seconds, capacity, least
        self._fresh: deque[_Request[_T, _R]] = deque()  # requests that no batch has served yet
        self._begun: deque[_Request[_T, _R]] = deque()  # requests served in part
        self.waiting = 0
        """Items that no batch has taken yet."""
        self._passed_over = 0
        self._pace: _Pace | None = None
        self._last_items = 1
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledom-batch")
        self._task: asyncio.Task[None] | None = None

    async def submit(self, items: Sequence[_T], admitted: bool = False) -> list[_R]:
        """Compute the results of the items, in order. If cancelled, the work on them ends.

        Raises `Overloaded` or `Closing` immediately, and any error that `work` raises for an item.
        `admitted` items, after an earlier `check_room`, are taken even if the queue is full.
        """
        if self._closing:
            raise Closing("the server is shutting down")
        if not items:
            return []
        if not admitted:
            self.check_room(len(items))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        request: _Request[_T, _R] = _Request(items, asyncio.get_running_loop().create_future())
        self._fresh.append(request)
        self.waiting += len(items)
        self._wake.set()
        try:
            return await request.done
        finally:
            self._drop(request)

    def check_room(self, count: int) -> None:
        """Raise `Overloaded` if the queue has no room for this many items."""
        if self.waiting + count > self._capacity:
            batches = self.waiting / self._last_items
            raise Overloaded(min(60, max(1, math.ceil(batches * self._seconds))))

    async def close(self) -> None:
        """Finish all accepted requests, then stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=True)

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

    def _take(self) -> _Batch[_T, _R]:
        usual = self._usual_cost()
        batch: _Batch[_T, _R] = []
        cost = 0.0
        self._passed_over += 1
        if self._begun and self._passed_over >= _FAIR:
            cost += self._take_one(self._begun, batch)
            self._passed_over = 0
        cost = self._take_fresh(batch, cost)
        # A request that this batch completes has already waited for the last one: keep it short.
        room = usual / 2 if _completes_a_request(batch) else usual
        while self._begun and (not batch or cost + self._next_cost(self._begun) <= room):
            cost += self._take_one(self._begun, batch)
            self._passed_over = 0
        return batch

    def _take_fresh(self, batch: _Batch[_T, _R], cost: float = 0.0) -> float:
        """Add an item of each new request to a batch of this cost; returns the new cost."""
        most = _WIDE * self._usual_cost()
        while self._fresh and (
            len(batch) < self._least or cost + self._next_cost(self._fresh) <= most
        ):
            cost += self._take_one(self._fresh, batch)
        return cost

    def _usual_cost(self) -> float:
        """The cost of a batch of large requests."""
        return _FIRST_COST if self._pace is None else self._pace.cost_within(self._seconds)

    def _next_cost(self, queue: deque[_Request[_T, _R]]) -> float:
        return self._cost(queue[0].items[queue[0].taken])

    def _take_one(self, queue: deque[_Request[_T, _R]], batch: _Batch[_T, _R]) -> float:
        """Move an item of the queue's first request to the batch; returns its cost."""
        cost = self._next_cost(queue)
        request = queue.popleft()
        batch.append((request, request.items[request.taken]))
        request.taken += 1
        self.waiting -= 1
        if request.taken < len(request.items):
            self._begun.append(request)
        return cost

    def _drop(self, request: _Request[_T, _R]) -> None:
        """Remove the remaining items of a request from the queue."""
        for queue in (self._fresh, self._begun):
            if request in queue:
                queue.remove(request)
                self.waiting -= len(request.items) - request.taken
                request.taken = len(request.items)

    async def _do(self, batch: _Batch[_T, _R]) -> None:
        """Compute a batch. If it fails, compute each request's items alone, so that only requests
        that cannot be computed fail."""
        try:
            results = await self._compute(batch)
        except Exception as error:
            parts: dict[_Request[_T, _R], _Batch[_T, _R]] = {}
            for request, item in batch:
                parts.setdefault(request, []).append((request, item))
            if len(parts) > 1:
                for part in parts.values():
                    await self._do(part)
                return
            (request,) = parts
            if not request.is_over:
                request.done.set_exception(error)
            self._drop(request)
            return
        if results is None:
            return
        for (request, _), result in zip(batch, results, strict=True):
            request.results.append(result)
            if len(request.results) == len(request.items) and not request.is_over:
                request.done.set_result(request.results)

    async def _compute(self, batch: _Batch[_T, _R]) -> list[_R] | None:
        """Compute a batch, step by step; None if all of its requests end first."""
        items = [item for _, item in batch]
        steps = self._work(items)
        run = asyncio.get_running_loop().run_in_executor

        def pauses() -> bool:  # called in the thread
            return _is_over(batch) or (bool(self._fresh) and not _completes_a_request(batch))

        results: list[_R] | None = None
        seconds = 0.0
        while results is None:
            if _is_over(batch):
                await run(self._thread, steps.close)
                return None
            start = time.perf_counter()
            results = await run(self._thread, _advance, steps, pauses)
            seconds += time.perf_counter() - start
            if results is None and not _is_over(batch):  # new requests came
                between: _Batch[_T, _R] = []
                self._take_fresh(between)
                await self._do(between)
        self._learn(items, seconds)
        return results

    def _learn(self, items: list[_T], seconds: float) -> None:
        self._observe(len(items), seconds)
        cost, seconds = sum(map(self._cost, items)), max(seconds, 1e-6)
        if self._pace is None:
            self._pace = _Pace(cost, seconds)
        else:
            self._pace.learn(cost, seconds)
        self._last_items = len(items)


class _Pace:
    """How the time of a batch depends on its cost: overhead + slope * cost.

    Both are fitted to earlier batches; recent ones count more. If the overhead were part of the
    speed, batches would shrink to one item whenever it exceeds their time limit.

    >>> pace = _Pace(cost=200.0, seconds=0.21)
    >>> pace.learn(cost=100.0, seconds=0.2)  # so 0.19 s of each, and 0.0001 s per unit
    >>> round(pace.cost_within(0.39)), round(pace.cost_within(0.05))
    (720, 720)
    """

    def __init__(self, cost: float, seconds: float) -> None:
        self._cost, self._seconds = cost, seconds  # moving averages
        self._variance = self._covariance = 0.0
        self._slope = seconds / cost

    def learn(self, cost: float, seconds: float) -> None:
        """Take another batch into account."""
        more, longer = cost - self._cost, seconds - self._seconds
        self._cost += (1 - _MEMORY) * more
        self._seconds += (1 - _MEMORY) * longer
        self._variance = _MEMORY * (self._variance + (1 - _MEMORY) * more * more)
        self._covariance = _MEMORY * (self._covariance + (1 - _MEMORY) * more * longer)
        if self._variance > (_SPREAD * self._cost) ** 2:
            self._slope = self._covariance / self._variance

    def cost_within(self, limit: float) -> float:
        """The cost of a batch that takes `limit` seconds, or twice the overhead if that is more."""
        slope = min(self._slope, self._seconds / self._cost)
        overhead = self._seconds - slope * self._cost
        most = _GROWTH * self._cost
        return min(max(limit - overhead, overhead) / slope, most) if slope > 0 else most


def _is_over(batch: _Batch[_T, _R]) -> bool:
    return all(request.is_over for request, _ in batch)


def _completes_a_request(batch: _Batch[_T, _R]) -> bool:
    return any(request.taken == len(request.items) for request, _ in batch)


def finish(steps: Steps[_R]) -> _R:
    """Run all steps without a pause; returns the result.

    >>> def double(numbers):
    ...     yield
    ...     return [2 * number for number in numbers]
    >>> finish(double([1, 2]))
    [2, 4]
    """
    result = _advance(steps, pauses=lambda: False)
    assert result is not None
    return result


def _advance(steps: Steps[_R], pauses: Callable[[], bool]) -> _R | None:
    """Run steps until `pauses` is true; returns the result, or None if there are steps left."""
    try:
        next(steps)
        while not pauses():
            next(steps)
    except StopIteration as end:
        return cast(_R, end.value)
    return None


async def apart(size: int, work: Callable[[], _R]) -> _R:
    """Run `work`, which reads `size` characters; in a thread if `size` is large.

    >>> asyncio.run(apart(3, lambda: "abc"))
    'abc'
    """
    return work() if size <= _SHORT else await asyncio.to_thread(work)
