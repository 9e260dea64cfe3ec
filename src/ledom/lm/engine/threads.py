"""Threads that each process texts of their own, for models too narrow to split their products.

A matrix product of a narrow model takes microseconds; splitting it over threads costs as much as it
saves. So each thread takes whole batches, and torch uses a single thread inside each. Scoring by
compiled kernels does without: they split several steps at once (`Trunk.shares_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ledom.lm.engine.trunk import Trunk

__all__ = ["merged", "num_workers"]

_T = TypeVar("_T")
_NARROW = 512  # widest model whose products one thread does as fast as several


def num_workers(trunk: Trunk) -> int:
    """The number of threads to split this model's work over."""
    if trunk.runs_modules:
        return 1
    model: PreTrainedModel = trunk.model
    narrow = model.device.type == "cpu" and model.config.get_text_config().hidden_size <= _NARROW
    return _OneThread.available() if narrow else 1


def merged(streams: Sequence[Iterator[_T]]) -> Iterator[_T]:
    """Yield the items of all streams as they arrive; several streams run in a thread each.

    An error in one stream ends all of them. If the caller stops iterating, each stream ends at its
    next item.

    >>> sorted(merged([iter("ab"), iter("c")]))
    ['a', 'b', 'c']
    """
    if len(streams) < 2:
        yield from chain(*streams)
        return
    queue: SimpleQueue[_T | BaseException | None] = SimpleQueue()
    stopped = Event()

    def run(stream: Iterator[_T]) -> None:
        try:
            for item in stream:
                queue.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:  # raised again in the caller's thread
            stopped.set()
            queue.put(error)
        finally:
            queue.put(None)

    threads = [Thread(target=run, args=(stream,), daemon=True) for stream in streams]
    with _OneThread.inside():
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                item = queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            stopped.set()
            for thread in threads:
                thread.join()


class _OneThread:
    """Sets torch's number of threads, which is global to the process, to 1 while `merged` runs."""

    _lock = Lock()
    _running = 0
    _before = 1

    @classmethod
    def available(cls) -> int:
        """The number of threads that torch uses outside `merged`."""
        with cls._lock:
            return cls._before if cls._running else torch.get_num_threads()

    @classmethod
    @contextmanager
    def inside(cls) -> Iterator[None]:
        """Within this block, torch uses one thread per operation."""
        with cls._lock:
            if not cls._running:
                cls._before = torch.get_num_threads()
                torch.set_num_threads(1)
            cls._running += 1
        try:
            yield
        finally:
            with cls._lock:
                cls._running -= 1
                if not cls._running:
                    torch.set_num_threads(cls._before)
