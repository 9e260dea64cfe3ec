"""Several processes that share one job, as torchrun starts them: whose records are whose.

Every process runs the same command on its share of the problems and writes what it made to a file
of its own (`ledom.stage`); the first one alone puts the files together, reports, and prints. They
meet only at the borders of stages, through the store that torchrun keeps. This module knows
nothing of models. Without torchrun there is one process, and nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

from ledom.errors import InputError

__all__ = [
    "is_first",
    "is_first_failure",
    "local_rank",
    "local_size",
    "rank",
    "share",
    "size",
    "wait",
]

_T = TypeVar("_T")
_LONGEST_WAIT = timedelta(days=30)  # a share may take long; torchrun ends who waits for the dead
_meetings = count()


def rank() -> int:
    """This process's number."""
    return _number("RANK", 0)


def size() -> int:
    """How many processes share the job."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its machine: its GPU."""
    return _number("LOCAL_RANK", 0)


def local_size() -> int:
    """How many of the processes run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def is_first() -> bool:
    """Whether this is the process that prints, and writes the results."""
    return rank() == 0


def share(items: Sequence[_T], group: Callable[[_T], Hashable]) -> list[_T]:
    """This process's share: groups are dealt in turn, items of one group stay together."""
    dealt = {key: turn % size() for turn, key in enumerate(dict.fromkeys(map(group, items)))}
    return [item for item in items if dealt[group(item)] == rank()]


def wait() -> None:
    """Go on when every process has come here."""
    if size() == 1:
        return
    name = f"ledom-meeting-{next(_meetings)}"
    if _store().add(name, 1) == size():
        _store().set(f"{name}-all", "here")
    _store().wait([f"{name}-all"], _LONGEST_WAIT)


def is_first_failure() -> bool:
    """Whether this process is the first to fail: the one that says why, since all fail alike.

    torchrun ends the others as soon as one has ended with an error.
    """
    return size() == 1 or _store().add("ledom-failures", 1) == 1


@lru_cache(maxsize=1)
def _store() -> Any:
    """The key-value store that all processes see."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, *_ = next(iter(rendezvous("env://")))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"RANK and WORLD_SIZE are set, but the other processes cannot be found ({error}); "
            "start ledom by torchrun, or without these variables"
        ) from None
    return store


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
