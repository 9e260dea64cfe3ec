"""Memory that is freed stays with the process, so that it is not mapped anew in the next step.

A pass of a model frees buffers of megabytes and asks for as many again a moment later. glibc gives
such memory back to the system in between: blocks of over 32 MB always, others where a heap ends in
much free space, as those of threads do. Every page that is mapped again costs a fault. This module
knows nothing of torch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping

from ledom.core.processes import available_cpus

__all__ = ["keep_pages"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
_CPUS_PER_HEAP = 8  # threads that share a heap wait for each other; a heap for each takes memory


def keep_pages() -> bool:
    """Let this process keep memory that is freed; returns whether it does.

    For glibc only, before threads start; elsewhere nothing happens. Results do not change; resident
    memory stays at its peak. A user's own settings of the allocator (MALLOC_... or GLIBC_TUNABLES
    in the environment) are left alone.

    >>> keep_pages() in (True, False)
    True
    """
    mallopt = _mallopt()
    if mallopt is None or _is_set_by_user(os.environ):
        return False
    heaps = max(1, available_cpus() // _CPUS_PER_HEAP)
    settings = {_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0, _M_ARENA_MAX: heaps}  # -1: never trim
    return all(mallopt(key, value) == 1 for key, value in settings.items())


def _is_set_by_user(environment: Mapping[str, str]) -> bool:
    tunables = "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
    return tunables or any(name.startswith("MALLOC_") for name in environment)


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's own; None in a process with another C library."""
    try:
        process = ctypes.CDLL(None)
        process.gnu_get_libc_version  # noqa: B018 - raises where it is missing
        found: Callable[[int, int], int] = process.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of None
        return None
    return found
