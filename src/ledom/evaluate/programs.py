"""Runs programs that a model wrote, to test them.

Each program runs in its own process, in an empty folder, with limits on time, memory, file size and
(unless it runs as root) the number of processes. Where Linux allows it, the program has no network,
cannot look into other processes, and its children end with it. This is not a sandbox: a program can
read and write whatever its user can.
"""

from __future__ import annotations

import inspect
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from ledom.core.errors import LedomError
from ledom.core.processes import lower_limit

__all__ = ["runs_to_its_end"]

_MEMORY = 2**30  # bytes
_LIMITED = f"""
import ctypes, os, sys
from contextlib import suppress

{inspect.getsource(lower_limit)}

def ends_with_its_parent():
    libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL

seconds, memory = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None)
if hasattr(libc, "unshare"):
    # New namespaces for users, processes and network. When the first process ends, all others do.
    apart = libc.unshare(0x70000000) == 0
    ends_with_its_parent()
    if apart and (child := os.fork()):
        os._exit(os.waitpid(child, 0)[1] != 0)
    ends_with_its_parent()
source = open(sys.argv[3]).read()
os.remove(sys.argv[3])  # tells that Python has started; the program cannot undo it by accident
lower_limit("CPU", seconds)
lower_limit("AS", memory)
lower_limit("FSIZE", 2**20)
lower_limit("CORE", 0)
lower_limit("NPROC", 256)
exec(compile(source, "program", "exec"), {{"__name__": "__main__"}})
"""


def runs_to_its_end(program: str, seconds: int = 10) -> bool:
    """Whether a Python program reaches its last line within the limits, without an error.

    A program that exits earlier does not, regardless of its exit code. Raises `LedomError` if this
    system cannot run programs, for example because it allows no more processes.

    >>> runs_to_its_end("assert 1 + 1 == 2"), runs_to_its_end("assert 1 + 1 == 3")
    (True, False)
    >>> runs_to_its_end("raise SystemExit(0)")
    False
    """
    try:
        # What a program leaves must not stop an evaluation.
        with tempfile.TemporaryDirectory(
            prefix="ledom-program-", ignore_cleanup_errors=True
        ) as folder:
            return _runs(program, Path(folder), seconds)
    except OSError as error:
        raise _not_started(error) from error


def _runs(program: str, folder: Path, seconds: int) -> bool:
    reached = folder / secrets.token_hex(16)
    file = folder / "program.txt"
    ending = f"\nopen({str(reached)!r}, 'x').close()\n"
    file.write_text(program + ending, "utf-8", "replace")
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _LIMITED, str(seconds), str(_MEMORY), str(file)],
        cwd=folder,
        env={"PATH": os.defpath},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = _wait(child, 2 * seconds)
    finally:
        _end(child)
    if file.exists():
        raise _not_started(f"exit code {code}")
    return code == 0 and reached.exists()


def _wait(child: subprocess.Popen[bytes], seconds: int) -> int:
    """The program's exit code; 1 if it takes too long."""
    for _ in range(seconds):  # a pause of all processes (of a container) uses up only one of them
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=1)
    return 1


def _not_started(reason: object) -> LedomError:
    return LedomError(
        f"Python did not start to run a program ({reason}); check this system's limits on memory "
        "and processes (ulimit -a), and that there is room for temporary files (TMPDIR)"
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the program and all processes in its group."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
