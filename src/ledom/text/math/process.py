"""Compares two answers where that takes algebra: by sympy, in a separate process.

Answers come from models: an expression can be endless to simplify, or fill the memory. Each pair
has a time limit. A worker that exceeds it dies, and another is started for the next pair, so no
answer can hold up a run. What cannot be decided is not equal. The limit counts the
worker's own CPU time, so that a verdict does not depend on what else runs on the machine.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from functools import cache, lru_cache
from threading import Lock
from typing import IO

__all__ = ["MathChecker", "same_value"]

SECONDS_PER_PAIR = 5.0
"""CPU time limit of one comparison."""

_PATIENCE = 24  # wall clock seconds per CPU second, after which the worker counts as stuck
_START_SECONDS = 60.0  # importing sympy on a busy machine
_MEMORY_BYTES = 4 * 2**30
_READY = "ready"


class MathChecker:
    """Compares answers in a worker process, which the first comparison starts.

    Threads may share it; a forked process needs its own.
    """

    def __init__(self, seconds: float = SECONDS_PER_PAIR) -> None:
        self.seconds = seconds
        self._worker: subprocess.Popen[str] | None = None
        self._lock = Lock()  # an answer belongs to the last question

    def equal(self, first: str, second: str) -> bool:
        """Whether both have the same value; False when it cannot be told in time."""
        with self._lock:
            worker = self._worker or self._start()
            try:
                _pipe(worker.stdin).write(json.dumps([first, second]) + "\n")
                _pipe(worker.stdin).flush()
                verdict = self._read(worker, self.seconds * _PATIENCE)
            except OSError:  # the worker died of the last pair
                verdict = None
            if verdict is None:
                self.close()
            return verdict == "true"

    def _start(self) -> subprocess.Popen[str]:
        self._worker = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from ledom.text.math.process import serve; serve({self.seconds})",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._read(self._worker, _START_SECONDS) != _READY:
            self.close()
            raise RuntimeError("the process that compares answers did not start")
        return self._worker

    @staticmethod
    def _read(worker: subprocess.Popen[str], seconds: float) -> str | None:
        """The worker's next line; None if it takes too long or is dead."""
        out = _pipe(worker.stdout)
        if not select.select([out], [], [], seconds)[0]:
            return None
        return out.readline().strip() or None

    def close(self) -> None:
        """End the worker; the next question starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # both ends were asked for
    return stream


def serve(seconds: float) -> None:
    """The worker: a JSON pair per line in, `true` or `false` per line out.

    It exits at a pair that takes more than `seconds` of CPU time, even if nothing waits for it.
    """
    import resource

    from ledom.text.math.algebra import Sympy
    from ledom.text.math.equality import Comparison
    from ledom.text.math.expressions import read

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    compare = Comparison(Sympy()).same

    def reply(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    reply(_READY)
    for line in sys.stdin:
        first, second = json.loads(line)  # no file: the other end writes it
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        try:
            left, right = read(first), read(second)
            equal = left is not None and right is not None and compare(left, right)
        except (Exception, RecursionError, MemoryError):
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply(json.dumps(equal))


@cache
def _shared(process: int) -> MathChecker:
    """The checker of this process: a forked one would read answers to its parent's questions."""
    checker = MathChecker()
    atexit.register(lambda: checker.close() if os.getpid() == process else None)
    return checker


@lru_cache(maxsize=2**16)
def same_value(first: str, second: str) -> bool:
    """Whether two answers have the same value; cached, since candidates repeat answers."""
    return _shared(os.getpid()).equal(first, second)
