"""This process's share of the job and of the machine: rank, device, threads, memory.

torchrun starts several processes. Each runs the same command on its share of the problems and
writes its results to its own file (`ledom.core.stage`). The first process merges the files,
reports and prints. Processes synchronize only between stages, through torchrun's key-value store.
Without torchrun there is one process. This module knows nothing of models, and imports torch only
for a device or for several processes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ledom.core.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "available_cpus",
    "configure_memory",
    "default_device",
    "default_threads",
    "fast_bfloat16",
    "from_first",
    "is_first",
    "is_first_failure",
    "local_rank",
    "local_size",
    "rank",
    "set_threads",
    "share",
    "size",
    "torch_device",
    "wait",
]

_T = TypeVar("_T")
_LONGEST_WAIT = timedelta(days=30)  # shares take long; torchrun itself notices dead processes
_barriers, _texts = count(), count()


def rank() -> int:
    """This process's number in the job, from 0.

    >>> rank()
    0
    """
    return _number("RANK", 0)


def size() -> int:
    """The number of processes that share the job.

    >>> size()
    1
    """
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its machine, which is also the index of its GPU.

    >>> local_rank()
    0
    """
    return _number("LOCAL_RANK", 0)


def local_size() -> int:
    """The number of the job's processes on this machine.

    >>> local_size()
    1
    """
    return _number("LOCAL_WORLD_SIZE", 1)


def is_first() -> bool:
    """Whether this is the process that prints and writes the results.

    >>> is_first()
    True
    """
    return rank() == 0


def share(items: Sequence[_T], group: Callable[[_T], Hashable]) -> list[_T]:
    """This process's share of the items: groups are dealt out in turn, each group whole.

    >>> share(["a1", "a2", "b1"], lambda name: name[0])  # alone
    ['a1', 'a2', 'b1']
    """
    dealt = {key: turn % size() for turn, key in enumerate(dict.fromkeys(map(group, items)))}
    return [item for item in items if dealt[group(item)] == rank()]


def wait() -> None:
    """Wait until every process has called this: a barrier.

    >>> wait()  # alone: returns at once
    """
    if size() == 1:
        return
    name = f"ledom-barrier-{next(_barriers)}"
    if _store().add(name, 1) == size():
        _store().set(f"{name}-all", "here")
    _store().wait([f"{name}-all"], _LONGEST_WAIT)


def from_first(text: str) -> str:
    """The text that the first process gives, in every process; all must call this.

    >>> from_first("alone")
    'alone'
    """
    if size() == 1:
        return text
    name = f"ledom-text-{next(_texts)}"
    if is_first():
        _store().set(name, text)
    _store().wait([name], _LONGEST_WAIT)
    found: bytes = _store().get(name)
    return found.decode()


def is_first_failure() -> bool:
    """Whether this process is the first to fail: it alone prints the error, which all share.

    torchrun stops the other processes once one exits with an error.

    >>> is_first_failure()  # alone
    True
    """
    return size() == 1 or _store().add("ledom-failures", 1) == 1


@lru_cache(maxsize=1)
def _store() -> Any:
    """The key-value store that all processes share."""
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
        device = torch.device(f"cuda:{local_rank()}" if name == "cuda" else name)
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


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_MOST_THREADS = 1024


def default_threads() -> int:
    """The default number of threads: set by the environment, else this process's share of the CPUs.

    `OMP_NUM_THREADS` goes before `MKL_NUM_THREADS`. torchrun itself sets `OMP_NUM_THREADS=1` for
    several processes; since no user chose this value, it is ignored.

    >>> default_threads() >= 1
    True
    """
    for name in _THREAD_VARIABLES:
        value = os.environ.get(name, "").partition(",")[0].strip()  # "4,2": of two nested levels
        by_torchrun = value == "1" and local_size() > 1 and "TORCHELASTIC_RUN_ID" in os.environ
        if value.isdecimal() and int(value) and not by_torchrun:
            return min(int(value), _MOST_THREADS)
    return max(1, available_cpus() // local_size())


def available_cpus(root: Path = Path("/")) -> int:
    """The number of CPUs that this process may use, by its affinity and its cgroups' quotas.

    `root` is the folder that holds proc/ and sys/.

    >>> available_cpus() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quota, in CPUs, of each cgroup (v1 and v2) that this process is in."""
    groups = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base = groups
        elif "cpu" in controllers.split(","):
            base = groups / "cpu"
        else:
            continue
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            values = _read(folder / "cpu.max").split()
            if not values:
                values = [
                    _read(folder / f"cpu.cfs_{key}_us").strip() for key in ("quota", "period")
                ]
            if len(values) == 2 and all(map(str.isdecimal, values)) and int(values[1]):
                yield int(values[0]) / int(values[1])
            if folder == base:
                break


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""


def set_threads(threads: int | None) -> None:
    """Set the number of threads of torch, BLAS and tokenizers, imported or not.

    None is `default_threads()`, and leaves `RAYON_NUM_THREADS` as it is if set.

    >>> before = os.environ.copy()
    >>> set_threads(1)
    >>> os.environ["OMP_NUM_THREADS"], os.environ["RAYON_NUM_THREADS"]
    ('1', '1')
    >>> os.environ.update(before)
    """
    count = threads or default_threads()
    for name in (*_THREAD_VARIABLES, "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if threads is not None or "RAYON_NUM_THREADS" not in os.environ:
        os.environ["RAYON_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:  # otherwise torch reads the environment on import
        sys.modules["torch"].set_num_threads(count)


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


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
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
    heaps = max(1, available_cpus() // _CPUS_PER_HEAP)
    settings = {_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0, _M_ARENA_MAX: heaps}  # -1: never trim
    return all(mallopt(key, value) == 1 for key, value in settings.items())


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
