"""The device that a process computes on, and how this process uses its memory on a CPU.

torch is imported only where a device is looked at, so that commands which need none start fast.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from ledom.core import processes
from ledom.core.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "LARGE",
    "configure_memory",
    "default_device",
    "fast_bfloat16",
    "large_blocks_apart",
    "torch_device",
]

LARGE = 384 * 1024
"""Bytes from which on `large_blocks_apart` counts a block as large."""


def default_device() -> str:
    """The accelerator if there is one, else the CPU.

    >>> default_device() in ("cpu", "cuda")
    True
    """
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_device(name: str) -> torch.device:
    """A device by name; "cuda" is this process's own GPU.

    Raises `InputError` for a device that cannot be used.

    >>> torch_device("cpu")
    device(type='cpu')
    """
    import torch

    try:
        device = torch.device(f"cuda:{processes.local_rank()}" if name == "cuda" else name)
        torch.zeros(1, device=device).item()  # fails on a device without data (meta), too
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"device {name!r} cannot be used ({reason}); give cpu, cuda, cuda:1 ..."
        ) from None
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 on a device.

    On a CPU without bf16 instructions they are about 50 times slower.

    >>> import torch
    >>> fast_bfloat16(torch.device("cuda"))
    True
    """
    import torch

    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's, and torch's for it
_CACHED_SHAPES = 256


def configure_memory() -> None:
    """Prepare this process to compute on a CPU: keep freed memory, and bound oneDNN's caches.

    Call it before the first product, and before threads start. oneDNN keeps the code of the last
    1,024 shapes of products, about 0.6 MB each, and torch what it prepared for them. Batches of
    texts rarely repeat a shape, so a process would grow by 0.6 GB. A size that the user has set in
    the environment stays.

    >>> before = os.environ.copy()
    >>> configure_memory()
    >>> os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"].isdecimal()
    True
    >>> os.environ.update(before)
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(_CACHED_SHAPES))
    _keep_pages()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # malloc.h
_MOST_MAPPED = 2**15  # blocks; the system allows a process twice as many
_CPUS_PER_HEAP = 8  # threads that share a heap wait for each other; one heap each takes more memory


def _keep_pages() -> bool:
    """Make the allocator keep freed memory for reuse; returns whether it does.

    A model's forward pass frees buffers of many megabytes and allocates the same again a moment
    later. In between, glibc returns this memory to the system: always for blocks over 32 MB, and
    for others when much free space is at the end of a heap, as is common in threads' heaps. Mapping
    a page again costs a page fault.

    Call it before threads start. It works with glibc only, and does nothing where the user has
    configured the allocator (MALLOC_... or GLIBC_TUNABLES in the environment). Results do not
    change; resident memory stays at its peak.

    >>> _keep_pages() in (True, False)
    True
    """
    mallopt = _mallopt()
    if mallopt is None or _is_set_by_user(os.environ):
        return False
    heaps = max(1, processes.available_cpus() // _CPUS_PER_HEAP)
    settings = {_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0, _M_ARENA_MAX: heaps}  # -1: never trim
    return all(mallopt(key, value) == 1 for key, value in settings.items())


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Map each block of `LARGE` bytes or more by itself until the block ends.

    In the heap, texts' keys and values leave gaps that their successors, which are larger, do not
    fit: the process grows with the number of texts. But a page that is mapped costs a page fault,
    so this is for code that keeps what it needs in each pass (`model.native.library`). It does
    nothing where `configure_memory` does nothing to the allocator. Results do not change.

    >>> with large_blocks_apart():
    ...     pass
    """
    mallopt = None if _is_set_by_user(os.environ) else _mallopt()
    if mallopt is None:
        yield
        return
    with _ENTERING:
        _INSIDE.append(None)
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_MMAP_MAX, _MOST_MAPPED)
    try:
        yield
    finally:
        with _ENTERING:
            _INSIDE.pop()
            if not _INSIDE:  # the last of several, of other threads too
                mallopt(_M_MMAP_MAX, 0)


_ENTERING = Lock()
_INSIDE: list[None] = []


def _is_set_by_user(environment: Mapping[str, str]) -> bool:
    tunables = "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
    return tunables or any(name.startswith("MALLOC_") for name in environment)


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's `mallopt`; None with another C library."""
    try:
        process = ctypes.CDLL(None)
        process.gnu_get_libc_version  # noqa: B018 - raises if it is missing
        found: Callable[[int, int], int] = process.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of None
        return None
    return found
