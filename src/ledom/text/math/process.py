"""Compares answers that need algebra, with sympy, in a separate process with a time limit.

Answers come from models, so simplifying one can take forever or fill the memory. A worker that
exceeds the limit for a pair dies, and another is started for the next pair, so no answer can hold
up a run. Answers that cannot be decided count as different. The limit counts the worker's own CPU
time, so a verdict does not depend on the load of the machine. If something else kills the worker,
as the system does when memory is short, the pair is tried once more.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import select
import signal
import subprocess
import sys
from functools import cache, lru_cache
from threading import Lock

from ledom.core.errors import LedomError
from ledom.core.processes import lower_limit

__all__ = ["same_value"]

SECONDS_PER_PAIR = 5.0
"""The CPU time limit for one comparison."""

_PATIENCE = 24  # wall-clock seconds per CPU second of the limit; then the worker counts as stuck
_START_SECONDS = 60.0  # limit for importing sympy on a busy machine
_MEMORY_BYTES = 4 * 2**30
_READY = "ready"


class MathChecker:
    """Compares answers in a worker process, which is started by the first comparison.

    Threads may share it; a forked process needs its own.
    """

    def __init__(self, seconds: float = SECONDS_PER_PAIR) -> None:
        self.seconds = seconds
        self._worker: subprocess.Popen[str] | None = None
        self._lock = Lock()  # one pair at a time, so that each verdict belongs to its pair

    def equal(self, first: str, second: str) -> bool:
        """Whether both answers have the same value; False if this cannot be decided in time."""
        with self._lock:
            for _ in range(2):
                worker = self._worker or self._start()
                verdict = self._ask(worker, json.dumps([first, second]))
                if verdict:
                    return verdict == "true"
                self.close()
                if verdict is None or worker.returncode == -signal.SIGPROF:
                    break  # it exceeded its limits
            return False

    def _start(self) -> subprocess.Popen[str]:
        # The worker imports the same modules as this process, not others in the current folder.
        program = (
            f"import sys; sys.path = {sys.path!r}; "
            f"from ledom.text.math.process import serve; serve({self.seconds})"
        )
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._read(self._worker, _START_SECONDS) != _READY:
            self.close()
            raise LedomError(
                "the process that compares answers did not start; check this system's limits on "
                "memory and processes (ulimit -a), and run the same command again to resume"
            )
        return self._worker

    def _ask(self, worker: subprocess.Popen[str], pair: str) -> str | None:
        """The worker's verdict; None if it takes too long, and empty if it is dead."""
        assert worker.stdin is not None  # because Popen gets PIPE
        try:
            worker.stdin.write(f"{pair}\n")
            worker.stdin.flush()
        except OSError:
            return ""
        return self._read(worker, self.seconds * _PATIENCE)

    @staticmethod
    def _read(worker: subprocess.Popen[str], seconds: float) -> str | None:
        """The worker's next line; None if it takes too long, and empty if it is dead."""
        assert worker.stdout is not None
        # In short waits: a pause of both processes (Ctrl-Z) uses up only one of them.
        for _ in range(math.ceil(seconds)):
            if select.select([worker.stdout], [], [], 1.0)[0]:
                return worker.stdout.readline().strip()
        return None

    def close(self) -> None:
        """Kill the worker; the next comparison starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


def serve(seconds: float) -> None:
    """Run the worker, which reads a JSON pair per line and writes `true` or `false` per line.

    It exits on a pair that takes more than `seconds` of CPU time, even if no one waits for it.
    """
    from ledom.text.math.algebra import Sympy
    from ledom.text.math.expressions import read

    lower_limit("AS", _MEMORY_BYTES)
    compare = Sympy().same

    def reply(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    reply(_READY)
    for line in sys.stdin:
        first, second = json.loads(line)  # no file: the other end writes it
        signal.setitimer(signal.ITIMER_PROF, seconds)  # the timer's signal ends this process
        try:
            left, right = read(first), read(second)
            equal = left is not None and right is not None and compare(left, right)
        except (Exception, RecursionError, MemoryError):
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply(json.dumps(equal))


@cache
def _shared(process: int) -> MathChecker:
    """The checker of this process: after a fork, a shared one would mix up the replies."""
    checker = MathChecker()
    atexit.register(lambda: checker.close() if os.getpid() == process else None)
    return checker


@lru_cache(maxsize=2**16)
def same_value(first: str, second: str) -> bool:
    """Whether two answers are equal by algebra; cached, because candidates repeat answers."""
    return _shared(os.getpid()).equal(first, second)
