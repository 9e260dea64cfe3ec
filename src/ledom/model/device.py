"""Chooses the device that a process computes on, and configures memory use on a CPU.

torch is imported only where a device is needed, so that other commands start fast.
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
"""The size in bytes from which `large_blocks_apart` counts a block as large."""


def default_device() -> str:
    """The accelerator if there is one, otherwise the CPU.

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
        torch.zeros(1, device=device).item()  # also fails on a device without data (meta)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"device {name!r} cannot be used ({reason}); give cpu, cuda, cuda:1 ..."
        ) from None
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matmuls are faster in bf16 than in fp32 on a device.

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
    """Prepare this process to compute on a CPU: keep freed memory and limit oneDNN's caches.

    Call it before the first matmul and before threads start. oneDNN caches the code for the last
    1,024 matmul shapes, about 0.6 MB each, and torch caches its own data for them. Batches of texts
    rarely repeat a shape, so a process would grow by 0.6 GB. A cache size that the user has set in
    the environment is kept.

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
_MOST_MAPPED = 2**15  # blocks; the system allows twice as many per process
_CPUS_PER_HEAP = 8  # threads that share a heap wait for each other; more heaps take more memory


def _keep_pages() -> bool:
    """Make the allocator keep freed memory for reuse; returns whether it does.

    A model's forward pass frees buffers of many megabytes and allocates the same again a moment
    later. In between, glibc returns this memory to the system: always for blocks over 32 MB, and
    for other blocks if there is much free space at the end of a heap, which is common in threads'
    heaps. Mapping a page again costs a page fault.

    Call it before threads start. It works only with glibc, and does nothing if the user has
    configured the allocator (MALLOC_... or GLIBC_TUNABLES in the environment). Results do not
    change; resident memory stays at its peak.
    """
    mallopt = _mallopt()
    if mallopt is None or _is_set_by_user(os.environ):
        return False
    heaps = max(1, processes.available_cpus() // _CPUS_PER_HEAP)
    settings = {_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0, _M_ARENA_MAX: heaps}  # -1: never trim
    return all(mallopt(key, value) == 1 for key, value in settings.items())


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Within this block, each allocation of `LARGE` bytes or more is mapped by itself.

    In the heap, texts' keys and values leave gaps that are too small for their larger successors,
    so the process grows with the number of texts. But each mapped page costs a page fault, so this
    is for code that keeps its buffers between passes (`model.native.library`). It does nothing if
    `configure_memory` leaves the allocator alone. Results do not change.

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
            if not _INSIDE:  # the last of several, including other threads' blocks
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
