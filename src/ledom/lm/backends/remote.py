"""What the backends of models on servers share: concurrent requests, a rate limit, checked answers.

It knows no protocol.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction, choose_direction
from ledom.core.errors import InputError, ServerError
from ledom.model.checkpoint import CheckpointInfo, bos_ids, read_checkpoint_info
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import Tokenizer

__all__ = ["CONNECT_SECONDS", "RateLimit", "model_info", "read_logprobs", "run_concurrently"]

CONNECT_SECONDS = 5.0
"""The time that one try to connect to a server may take."""

_CONTEXT = 4096  # tokens, if not specified
_ROUNDING = 1e-3  # nats by which a log-probability may exceed 0
_Item = TypeVar("_Item")
_T = TypeVar("_T")


def run_concurrently(
    work: Callable[[_Item], _T], items: Sequence[_Item], concurrency: int
) -> Iterator[tuple[int, _T]]:
    """Call `work` on all items, `concurrency` at a time; yield (index, result) as the calls end.

    After a failure, no new request starts. Requests in progress are awaited, so that no answer
    is lost; then the failure is raised.

    >>> sorted(run_concurrently(str.upper, ["a", "b"], concurrency=2))
    [(0, 'A'), (1, 'B')]
    """
    failures: list[ServerError] = []
    ended = Event()

    def attempt(item: _Item) -> list[_T]:
        if ended.is_set():
            return []
        try:
            return [work(item)]
        except ServerError as error:
            failures.append(error)
            ended.set()
            return []

    with ThreadPoolExecutor(concurrency) as pool:
        waiting = {pool.submit(attempt, item): place for place, item in enumerate(items)}
        try:
            for done in as_completed(waiting):
                for result in done.result():
                    yield waiting[done], result
        finally:
            ended.set()
    if failures:
        raise failures[0]


def model_info(
    prefix: str,
    model: str,
    source: str | Path | None,
    direction: Direction | str | None,
    eos_token: str | None,
    bos_token: str | None,
) -> CheckpointInfo:
    """The info of a model on a server: its folder's, or defaults if only a tokenizer is given.

    `source` is the folder or a tokenizer.json. Raises `InputError` without one.

    >>> model_info("openai", "NAME", None, None, None, None)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: NAME: a server does not report ...: openai:NAME,tokenizer=FOLDER
    """
    if source is None:
        raise InputError(
            f"{model}: a server does not report its model's tokenizer; give the model's folder or "
            f"tokenizer.json: {prefix}:{model},tokenizer=FOLDER"
        )
    if os.path.isfile(Path(source, "config.json")):
        return read_checkpoint_info(source, direction, eos_token, bos_token=bos_token)
    chosen, tokenizer = choose_direction(model, None, direction), Tokenizer.load(source, eos_token)
    first = bos_ids(tokenizer, chosen, asked=bos_token)
    return CheckpointInfo(
        Path(source), tokenizer, chosen, PairFormat(), first, _CONTEXT, frozenset()
    )


def read_logprobs(values: Sequence[Any]) -> NDArray[np.float32]:
    """Log-probabilities as an array; raises `TypeError` or `ValueError` for anything else.

    >>> read_logprobs([-0.5, 0])
    array([-0.5,  0. ], dtype=float32)
    """
    if not all(isinstance(value, float | int) for value in values):
        raise TypeError("a log-probability is not a number")
    with np.errstate(over="ignore"):
        found = np.array(values, np.float32)
    if not np.isfinite(found).all():
        raise ValueError("a log-probability is not finite")
    if (found > _ROUNDING).any():
        raise ValueError(f"a log-probability is {found.max():.4g}, and none can be above 0")
    return found


class RateLimit:
    """Starts requests at even intervals; without `per_second`, at once."""

    def __init__(self, per_second: float | None) -> None:
        if per_second is not None and not per_second > 0:
            raise InputError(f"requests_per_second is {per_second}; it must be above 0")
        self._pause = 0.0 if per_second is None else 1 / per_second
        self._next = 0.0
        self._lock = Lock()

    def wait(self) -> None:
        """Wait until the next request may start."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._pause
        time.sleep(turn - now)
