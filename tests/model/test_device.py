"""Freed memory is kept, the user's settings win, and other C libraries are left alone."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ledom.model import device
from started import started
from waiting import SECONDS

# A block of 48 MB, 20 times, every page written, by the main thread or another one. If mapped again
# each time, the block's 12,288 pages cause 245,760 faults.
_CHILD = """
import ctypes, resource, sys, threading
from ledom.model.device import _keep_pages
print(_keep_pages())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 48 * 2**20
def block():
    place = libc.malloc(size)
    ctypes.memset(place, 1, size)
    libc.free(place)
def work():
    block()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[1] == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


@pytest.mark.slow
@pytest.mark.skipif(device._mallopt() is None, reason="not glibc")
@pytest.mark.parametrize("where", ["main", "other"])
def test_freed_blocks_are_not_mapped_again(where: str) -> None:
    usual = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, where],
        env=usual,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    kept, faults = done.stdout.split()
    assert kept == "True"
    assert int(faults) < 1000


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "1000"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
)
def test_a_users_own_settings_are_kept(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked: list[int] = []
    monkeypatch.setattr(device, "_mallopt", lambda: lambda key, value: asked.append(key) or 1)
    assert not device._keep_pages()
    assert asked == []


@pytest.mark.parametrize(("cpus", "heaps"), [(1, 1), (15, 1), (64, 8)])
def test_threads_share_a_few_heaps(cpus: int, heaps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(device.processes, "available_cpus", lambda: cpus)
    asked: dict[int, int] = {}
    monkeypatch.setattr(
        device, "_mallopt", lambda: lambda key, value: asked.update({key: value}) or 1
    )
    assert device._keep_pages()
    # malloc.h: M_TRIM_THRESHOLD is -1, M_MMAP_MAX -4, M_ARENA_MAX -8.
    assert asked == {-1: -1, -4: 0, -8: heaps}


_APART = """
import ctypes
from ledom.model.device import LARGE, _keep_pages, large_blocks_apart
_keep_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
size = 64 * 2**20
def is_mapped():
    place = libc.malloc(size)
    lines = open("/proc/self/maps").read().splitlines()
    spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in lines]
    # A block that is mapped by itself begins 16 bytes after its pages.
    return any(first + 16 == place for first, _ in spans)
print(is_mapped())
with large_blocks_apart():
    with large_blocks_apart():
        pass
    print(is_mapped())
print(is_mapped())
"""


@pytest.mark.skipif(device._mallopt() is None, reason="not glibc")
def test_large_blocks_are_mapped_until_the_last_block_ends() -> None:
    usual = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _APART],
        env=usual,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout.split() == ["False", "True", "False"]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        """A C library with malloc but neither of these functions."""

    monkeypatch.setattr("ctypes.CDLL", lambda name: Musl())
    assert device._mallopt() is None
    assert not device._keep_pages()


class _Use(ctypes.Structure):
    """glibc's struct mallinfo2, with letters as fields: e is memory mapped, h memory in use."""

    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]


def _multiply() -> None:
    """Run matmuls of 480 shapes; writes the bytes in use after the first 320 and after all."""
    for name in device._CACHES:
        os.environ.pop(name, None)
    device.configure_memory()
    torch.set_num_threads(1)
    read = ctypes.CDLL(None).mallinfo2
    read.restype = _Use
    weight = torch.ones(320, 192)
    for rows in range(1, 481):
        torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 192), weight, None, "none", [], "")
        if rows in (320, 480):
            os.write(sys.stdout.fileno(), b"%d\n" % (read().h + read().e))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or newer")
@pytest.mark.slow
def test_memory_stops_growing_with_the_number_of_shapes(tmp_path: Path) -> None:
    """Unbounded, it would grow by 90 MB here. It needs a process that has run no matmul yet."""
    with started(tmp_path / "said", run=_multiply) as process:
        assert process.wait() == 0, process.said()
    before, after = map(int, process.said().split())
    assert after - before < 10 * 2**20


def test_a_users_cache_size_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = device._CACHES
    monkeypatch.setenv(first, "1000")
    monkeypatch.setenv(second, "")
    monkeypatch.delenv(second)  # and restored after the test
    monkeypatch.setattr(device, "_keep_pages", lambda: True)
    device.configure_memory()
    assert (os.environ[first], os.environ[second]) == ("1000", "256")


@pytest.mark.parametrize(
    ("capabilities", "kind", "fast"),
    [
        ({"avx2": True}, "cpu", False),
        ({"avx512_bf16": True}, "cpu", True),
        ({"amx_bf16": True}, "cpu", True),
        ({}, "cuda", True),
    ],
)
def test_where_bf16_counts_as_fast(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], kind: str, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device.fast_bfloat16(torch.device(kind)) is fast
