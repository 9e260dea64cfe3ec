"""Divides a job among processes, and a process's work among threads.

torchrun starts several processes. Each runs the same command on its share of the problems and
writes its results to its own file (`ledom.core.stage`). The first process merges the files, reports
and prints. Processes synchronize only between stages, through torchrun's key-value store. Without
torchrun there is one process. This module does not know about models, and imports torch only for
several processes or threads.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, lru_cache
from itertools import chain, count
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

from ledom.core.errors import InputError, WorkerError

__all__ = [
    "available_cpus",
    "from_first",
    "is_first",
    "is_first_failure",
    "local_rank",
    "lower_limit",
    "merged",
    "rank",
    "set_threads",
    "share",
    "size",
    "survive_forks",
    "torch_threads",
    "wait",
]

_T = TypeVar("_T")
_LOG_EVERY = timedelta(seconds=30)
_LONGEST_WAIT = timedelta(days=30)  # shares take long, and torchrun notices dead processes
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


def is_first() -> bool:
    """Whether this is the process that prints and writes the results.

    >>> is_first()
    True
    """
    return rank() == 0


def share(items: Sequence[_T], group: Callable[[_T], Hashable]) -> list[_T]:
    """This process's share of the items; whole groups are dealt out in turn.

    >>> share(["a1", "a2", "b1"], lambda name: name[0])  # alone
    ['a1', 'a2', 'b1']
    """
    dealt = {key: turn % size() for turn, key in enumerate(dict.fromkeys(map(group, items)))}
    return [item for item in items if dealt[group(item)] == rank()]


def wait() -> None:
    """Wait until every process has called this: a barrier.

    The first process logs a line now and then, because a stopped process does not end the run.

    >>> wait()  # alone: returns at once
    """
    if size() == 1:
        return
    from torch.distributed import DistStoreError

    name = f"ledom-barrier-{next(_barriers)}"
    with _connected() as store:
        if store.add(name, 1) == size():
            store.set(f"{name}-all", "here")
        while True:
            with suppress(DistStoreError):  # the time is up
                store.wait([f"{name}-all"], _LOG_EVERY)
                return
            late = size() - store.add(name, 0)
            if late and is_first():
                logging.getLogger("ledom").warning(
                    "waiting for %d of %d processes; if one has stopped, end the run and start it "
                    "again to resume",
                    *(late, size()),
                )


def from_first(text: str) -> str:
    """Send the first process's text to every process; all of them must call this.

    >>> from_first("alone")
    'alone'
    """
    if size() == 1:
        return text
    name = f"ledom-text-{next(_texts)}"
    with _connected() as store:
        if is_first():
            store.set(name, text)
        store.wait([name], _LONGEST_WAIT)
        found: bytes = store.get(name)
    return found.decode()


def is_first_failure() -> bool:
    """Whether this process is the first to fail; only that one prints the shared error.

    torchrun stops the other processes once one exits with an error.

    >>> is_first_failure()  # alone
    True
    """
    return size() == 1 or _store().add("ledom-failures", 1) == 1


@contextmanager
def _connected() -> Iterator[Any]:
    """The store; within this block, its loss raises `WorkerError`."""
    from torch.distributed import DistNetworkError

    try:
        yield _store()
    except DistNetworkError as error:
        raise WorkerError(
            f"process {rank()} of {size()} lost contact with torchrun, or with process 0; start "
            "all processes again to resume"
        ) from error


@lru_cache(maxsize=1)
def _store() -> Any:
    """The key-value store that all processes share."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, *_ = next(iter(rendezvous("env://")))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"RANK and WORLD_SIZE are set, but the other processes cannot be found ({error}); "
            "start ledom with torchrun, or without these variables"
        ) from None
    return store


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_MOST_THREADS = 1024


def default_threads() -> int:
    """The default number of threads, from the environment or this process's share of the CPUs.

    `OMP_NUM_THREADS` takes precedence over `MKL_NUM_THREADS`. torchrun itself sets
    `OMP_NUM_THREADS=1` for several processes; this value is ignored, because no user chose it.

    >>> default_threads() >= 1
    True
    """
    processes_here = _number("LOCAL_WORLD_SIZE", 1)
    for name in _THREAD_VARIABLES:
        value = os.environ.get(name, "").partition(",")[0].strip()  # "4,2" is for two nested levels
        by_torchrun = value == "1" and processes_here > 1 and "TORCHELASTIC_RUN_ID" in os.environ
        if value.isdecimal() and int(value) and not by_torchrun:
            return min(int(value), _MOST_THREADS)
    return max(1, available_cpus() // processes_here)


def available_cpus(root: Path = Path("/")) -> int:
    """The number of CPUs that this process may use, from its affinity and cgroup quotas.

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
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = groups / "cpu" if controllers else groups
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            quota, period = (_read(folder / f"cpu.cfs_{key}_us") for key in ("quota", "period"))
            values = (_read(folder / "cpu.max") or f"{quota} {period}").split()
            if len(values) == 2 and all(map(str.isdecimal, values)) and int(values[1]):
                yield int(values[0]) / int(values[1])
            if folder == base:
                break


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""


def lower_limit(name: str, most: int) -> None:
    """Limit this process's use of a resource: "AS" for `RLIMIT_AS`, in that limit's unit.

    A limit that is already lower stays. A system that refuses the limit is left without it: macOS
    refuses those on memory.

    >>> lower_limit("CORE", 0)
    """
    import resource  # here, because `ledom.evaluate.programs` runs a copy of this function

    kind = getattr(resource, "RLIMIT_" + name)
    present = [value for value in resource.getrlimit(kind) if value != resource.RLIM_INFINITY]
    most = min([most, *present])
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (most, most))


_SPINS = "10000"
"""How often an idle OpenMP thread looks for work before it sleeps, for about 0.3 ms. If other
programs use the CPUs too, libgomp's default of 300,000 costs busy threads milliseconds.
"""


def set_threads(threads: int | None) -> None:
    """Set the number of threads for torch, BLAS and tokenizers, imported or not.

    None means `default_threads()`, and leaves `RAYON_NUM_THREADS` as it is if set. If torch is not
    imported yet, its idle threads will soon sleep, unless the environment says how they wait.

    >>> before = os.environ.copy()
    >>> set_threads(1)
    >>> os.environ["OMP_NUM_THREADS"], os.environ["RAYON_NUM_THREADS"]
    ('1', '1')
    >>> os.environ.update(before)
    """
    count = threads or default_threads()
    for name in (*_THREAD_VARIABLES, "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if threads is not None or "RAYON_NUM_THREADS" not in os.environ:
        os.environ["RAYON_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:  # otherwise torch reads the environment on import
        sys.modules["torch"].set_num_threads(count)


def torch_threads() -> int:
    """The number of threads that torch uses for one operation, outside `merged`.

    >>> torch_threads() >= 1
    True
    """
    import torch

    with _lock:
        return _threads_outside[0] if _threads_outside else torch.get_num_threads()


@cache
def survive_forks() -> None:
    """Make later forks of this process use one thread in torch.

    OpenMP's other threads do not survive a fork, and torch would wait for them forever.

    >>> survive_forks()
    """
    os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    if "torch" in sys.modules:  # otherwise it has no threads yet
        sys.modules["torch"].set_num_threads(1)


_lock = Lock()
_threads_outside: list[int] = []  # torch's threads, once for each `merged` that runs


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within this block, torch uses one thread per operation, in the whole process."""
    import torch

    with _lock:
        _threads_outside.append((_threads_outside or [torch.get_num_threads()])[0])
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            before = _threads_outside.pop()
            if not _threads_outside:
                torch.set_num_threads(before)


def merged(streams: Sequence[Iterator[_T]]) -> Iterator[_T]:
    """Yield the items of all streams as they arrive; several streams each run in a thread.

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
    with _one_thread():
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
