"""Work shared among threads: nothing is lost, an error ends all, torch's setting is restored."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from ledom.core.processes import merged

pytestmark = pytest.mark.usefixtures("four_threads")


def counting(start: int, seen: list[int]) -> Iterator[int]:
    for number in range(start, start + 100):
        seen.append(torch.get_num_threads())
        yield number


def test_all_items_are_returned_and_each_worker_uses_one_thread() -> None:
    seen: list[int] = []
    found = sorted(merged([counting(start, seen) for start in (0, 100, 200)]))
    assert found == list(range(300))
    assert set(seen) == {1}
    assert list(merged([counting(0, [])])) == list(range(100))
    assert list(merged([])) == []


def test_an_error_in_one_thread_ends_all() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        list(merged([fails(), counting(0, [])]))


def test_a_caller_that_stops_iterating_ends_the_threads() -> None:
    ended: list[int] = []

    def endless(number: int) -> Iterator[int]:
        try:
            while True:
                time.sleep(0.001)
                yield number
        finally:
            ended.append(number)

    both = merged([endless(1), endless(2)])
    next(both)
    assert torch.get_num_threads() == 1
    both.close()  # type: ignore[attr-defined]
    assert sorted(ended) == [1, 2]


def test_two_concurrent_uses_restore_the_number_of_threads() -> None:
    first, second = (merged([counting(0, []), counting(0, [])]) for _ in range(2))
    next(first), next(second)
    first.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == 1, "the other still runs"
    second.close()  # type: ignore[attr-defined]
