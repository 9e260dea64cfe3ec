"""Batches across requests: fairness, bounds, failures, cancellation, closing."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from ledom.serve.batching import Batcher, Closing, Overloaded, Steps, _Pace
from waiting import SECONDS, until_async

Pending = asyncio.Task[list[int]]


class Work:
    """Doubles numbers in two steps, waits at a gate in each, fails for negative numbers, and
    records its batches and which of them ended.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: list[int]) -> Steps[list[int]]:
        self.batches.append(items)
        assert self.gate.wait(SECONDS)
        yield
        assert self.gate.wait(SECONDS)
        if min(items) < 0:
            raise ValueError(f"negative: {min(items)}")
        self.ended.append(items)
        return [2 * item for item in items]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop, for at most `SECONDS`."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), SECONDS))

    return run


def batcher(work: Work, capacity: int = 100, cost: float = 1.0) -> Batcher[int, int]:
    return Batcher(work, lambda item: cost, seconds=1e9, capacity=capacity)


async def busy_with(work: Work, queue: Batcher[int, int], items: list[int]) -> Pending:
    """Send a first request, whose batch waits at the gate."""
    work.gate.clear()
    first = asyncio.create_task(queue.submit(items))
    await until_async(lambda: len(work.batches) == 1)
    return first


async def small_behind_large(work: Work, queue: Batcher[int, int]) -> None:
    """Send one item during the first batch of twelve; both answers must be right."""
    large = await busy_with(work, queue, list(range(100, 112)))
    small = asyncio.create_task(queue.submit([1]))
    await until_async(lambda: queue.waiting == 9)
    work.gate.set()
    assert await small == [2]
    assert await large == [2 * n for n in range(100, 112)]


@in_loop
async def test_waiting_requests_share_a_batch() -> None:
    work = Work()
    queue = batcher(work)
    first = await busy_with(work, queue, [1])
    assert work.batches == [[1]]
    others = [asyncio.create_task(queue.submit([n])) for n in (2, 3, 4)]
    await until_async(lambda: queue.waiting == 3)
    work.gate.set()
    assert await first == [2]
    assert await asyncio.gather(*others) == [[4], [6], [8]]
    assert work.batches == [[1], [2, 3, 4]]
    await queue.close()


@in_loop
async def test_a_small_request_does_not_wait_for_an_entire_large_one() -> None:
    work = Work()
    queue = batcher(work, cost=500.0)  # four items per batch before any speed is known
    await small_behind_large(work, queue)
    assert work.batches[0] == [100, 101, 102, 103]
    assert 1 in work.batches[1]
    await queue.close()


@in_loop
async def test_a_batch_that_completes_a_small_request_is_half_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ledom.serve.batching._MEMORY", 1.0)  # the speed stays as it is
    work = Work()
    queue = batcher(work, cost=500.0)
    first = await busy_with(work, queue, [1])
    assert work.batches == [[1]]
    others = [asyncio.create_task(queue.submit(n)) for n in (list(range(100, 112)), [2])]
    await until_async(lambda: queue.waiting == 13)
    work.gate.set()
    await asyncio.gather(first, *others)
    assert work.batches[1:4] == [[100, 2], [101, 102, 103, 104], [105, 106, 107, 108]]
    await queue.close()


@in_loop
async def test_a_small_request_has_its_own_batch_between_those_of_large_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ledom.serve.batching._MEMORY", 1.0)  # the speed stays as it is
    work = Work()
    queue = batcher(work, cost=500.0)
    queue._pace = _Pace(cost=125.0, seconds=1.0)  # so a batch may cost 500: one item
    large = asyncio.create_task(queue.submit(list(range(100, 160))))
    for _ in range(12):
        begun = len(work.batches)
        await until_async(lambda begun=begun: large.done() or len(work.batches) > begun)  # type: ignore[misc]
        assert await queue.submit([1]) == [2]
    assert await large == [2 * n for n in range(100, 160)]
    assert all(len(batch) == 1 for batch in work.batches)
    await queue.close()


@in_loop
async def test_a_batch_of_a_large_request_is_interrupted_by_a_small_one() -> None:
    work = Work()
    queue = batcher(work, cost=500.0)  # four items per batch before any speed is known
    await small_behind_large(work, queue)
    assert work.batches[0] == [100, 101, 102, 103]
    assert work.ended[:2] == [[1], [100, 101, 102, 103]]
    await queue.close()


@in_loop
async def test_a_batch_that_completes_a_request_is_not_interrupted() -> None:
    work = Work()
    queue = batcher(work)
    first = await busy_with(work, queue, [1])
    assert work.batches == [[1]]
    second = asyncio.create_task(queue.submit([2]))
    await until_async(lambda: queue.waiting == 1)
    work.gate.set()
    assert await asyncio.gather(first, second) == [[2], [4]]
    assert work.ended == [[1], [2]]
    await queue.close()


@in_loop
async def test_an_interrupting_batch_may_fail_alone() -> None:
    work = Work()
    queue = batcher(work, cost=500.0)
    large = await busy_with(work, queue, list(range(100, 112)))
    small = asyncio.create_task(queue.submit([-1]))
    await until_async(lambda: queue.waiting == 9)
    work.gate.set()
    with pytest.raises(ValueError, match="negative: -1"):
        await small
    assert await large == [2 * n for n in range(100, 112)]
    await queue.close()


@in_loop
async def test_a_failing_request_does_not_affect_the_others() -> None:
    work = Work()
    queue = batcher(work)
    answers = await asyncio.gather(
        queue.submit([1, 2]), queue.submit([3, -4]), queue.submit([5]), return_exceptions=True
    )
    assert answers[0] == [2, 4]
    assert str(answers[1]) == "negative: -4"
    assert answers[2] == [10]
    assert await queue.submit([6]) == [12]
    await queue.close()


@in_loop
async def test_a_full_queue_refuses_with_a_retry_time() -> None:
    work = Work()
    queue = batcher(work, capacity=3)
    busy = await busy_with(work, queue, [0])
    waits = asyncio.create_task(queue.submit([1, 2]))
    await until_async(lambda: queue.waiting == 2)
    with pytest.raises(Overloaded) as refused:
        await queue.submit([3, 4])
    assert 1 <= refused.value.seconds <= 60
    with pytest.raises(Overloaded):
        queue.check_room(2)
    queue.check_room(1)
    admitted = asyncio.create_task(queue.submit([5, 6], admitted=True))
    await until_async(lambda: queue.waiting == 4)
    work.gate.set()
    assert await waits == [2, 4]
    assert await admitted == [10, 12]
    assert await busy == [0]
    assert await queue.submit([3, 4]) == [6, 8]
    await queue.close()


@in_loop
async def test_cancelled_requests_are_not_computed() -> None:
    work = Work()
    queue = batcher(work)
    busy = await busy_with(work, queue, [0])
    gone = asyncio.create_task(queue.submit([1, 2, 3]))
    kept = asyncio.create_task(queue.submit([4]))
    await until_async(lambda: queue.waiting == 4)
    gone.cancel()
    await until_async(lambda: queue.waiting == 1)
    work.gate.set()
    assert await kept == [8]
    assert await busy == [0]
    assert work.batches == [[0], [4]]
    await queue.close()


async def cancelled_in_its_first_step(others: list[list[int]]) -> tuple[Work, list[list[int]]]:
    """A request whose caller leaves during its first step, in a batch with the others."""
    work = Work()
    queue = batcher(work)
    work.gate.clear()
    kept = [asyncio.create_task(queue.submit(items)) for items in others]
    gone = asyncio.create_task(queue.submit([1]))
    await until_async(lambda: work.batches)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    work.gate.set()
    results = await asyncio.gather(*kept)
    assert await queue.submit([9]) == [18]
    await queue.close()
    return work, results


@in_loop
async def test_a_batch_that_nobody_waits_for_ends_at_its_next_step() -> None:
    work, _ = await cancelled_in_its_first_step([])
    assert work.batches == [[1], [9]]
    assert work.ended == [[9]]


@in_loop
async def test_a_batch_that_someone_waits_for_is_computed_completely() -> None:
    work, results = await cancelled_in_its_first_step([[2], [3]])
    assert results == [[4], [6]]
    assert work.ended == work.batches == [[2, 3, 1], [9]]


@in_loop
async def test_closing_finishes_accepted_requests_and_accepts_no_more() -> None:
    work = Work()
    queue = batcher(work)
    taken = await busy_with(work, queue, [1, 2])
    closing = asyncio.create_task(queue.close())
    await asyncio.sleep(0)
    with pytest.raises(Closing):
        await queue.submit([3])
    work.gate.set()
    assert await taken == [2, 4]
    await closing


@in_loop
async def test_no_items_mean_no_work() -> None:
    work = Work()
    queue = batcher(work)
    assert await queue.submit([]) == []
    assert work.batches == []
    await queue.close()


@in_loop
async def test_many_small_requests_share_a_batch_larger_than_that_of_a_large_one() -> None:
    work = Work()
    queue = batcher(work, cost=500.0)  # four items of a large request per batch
    busy = await busy_with(work, queue, [0])
    small = [asyncio.create_task(queue.submit([n])) for n in range(1, 21)]
    await until_async(lambda: queue.waiting == 20)
    work.gate.set()
    assert await asyncio.gather(*small) == [[2 * n] for n in range(1, 21)]
    await busy
    assert work.batches == [[0], list(range(1, 21))]
    await queue.close()


@in_loop
async def test_small_requests_do_not_starve_a_large_one() -> None:
    work = Work()
    queue = batcher(work, cost=1e6)  # one item per batch
    large = asyncio.create_task(queue.submit([100, 101, 102]))
    count = 0
    while not large.done():  # a small one is always waiting
        first, second = await asyncio.gather(queue.submit([1]), queue.submit([2]))
        assert (first, second) == ([2], [4])
        count += 1
        assert count < 50
    assert await large == [200, 202, 204]
    await queue.close()


@in_loop
async def test_a_minimum_of_requests_share_a_batch_however_long_it_takes() -> None:
    work = Work()
    queue: Batcher[int, int] = Batcher(work, lambda item: 1e9, 1e-9, 100, least=3)
    answers = await asyncio.gather(*(queue.submit([n]) for n in range(7)))
    assert answers == [[2 * n] for n in range(7)]
    assert [len(batch) for batch in work.batches] == [3, 3, 1]
    await queue.close()


@pytest.mark.parametrize(
    ("overhead", "per_item", "least", "most"),
    [
        (0.2, 0.001, 50, 400),  # a remote server: half of a batch's time may be overhead
        (0.2, 0.0, 200, 2000),  # only overhead: batches grow until the request is done
        (0.0, 0.01, 4, 6),  # a local model: the time limit of 0.05 s
        (0.01, 0.01, 3, 5),
        (0.0, 1.0, 1, 1),  # slower than the limit: one at a time, with others served in between
    ],
)
@in_loop
@pytest.mark.slow
async def test_batches_stay_large_if_their_time_does_not_depend_on_size(
    monkeypatch: pytest.MonkeyPatch, overhead: float, per_item: float, least: int, most: int
) -> None:
    now = 0.0

    def work(items: list[int]) -> Steps[list[int]]:
        nonlocal now
        sizes.append(len(items))
        now += overhead + per_item * len(items)
        yield
        return items

    sizes: list[int] = []
    monkeypatch.setattr("ledom.serve.batching.time", SimpleNamespace(perf_counter=lambda: now))

    queue = Batcher(work, lambda item: 200.0, seconds=0.05, capacity=5000)
    assert await queue.submit(range(5000)) == list(range(5000))
    await queue.close()
    usual = sizes[len(sizes) // 2 : -1]
    assert least <= min(usual) <= max(usual) <= most
