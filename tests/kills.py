"""SIGKILLs at moments chosen by a seed, so that failures are reproducible.

What a kill leaves on disk depends on the file operations before it. A moment is therefore the n-th
file operation plus a few calls, during which an open file is partly written.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from waiting import SECONDS

__all__ = ["contents", "die_at", "in_a_child", "run_through_kills"]

_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
_OPERATIONS |= {"shutil.rmtree"}
_MOST_CALLS_LATER = 30

Work = Callable[[Path], object]
"""The work to be killed; it writes into the folder that it gets."""


def run_through_kills(work: Work, whole: Path, killed: Path, seed: int, kills: int = 3) -> int:
    """Run `work` into `whole` without a stop, and into `killed`, restarting after each kill.

    Returns the number of kills; a resumed run may end before its kill is due.
    """
    moments = random.Random(seed)
    counted, counter = os.pipe()

    def count_operations() -> None:
        found = count()
        _on_operation(whole, lambda: next(found))
        work(whole)
        os.write(counter, str(next(found)).encode())

    assert in_a_child(count_operations) == 0
    total = int(os.read(counted, 20))
    deaths = 0
    for _ in range(kills):
        # At most twice its share of the run, so that the kills together cover all of it.
        moment = moments.randrange(max(1, 2 * total // kills))
        later = moments.randrange(_MOST_CALLS_LATER)

        def run(moment: int = moment, later: int = later) -> None:
            die_at(killed, moment, later)
            work(killed)

        deaths += in_a_child(run) == signal.SIGKILL
    assert in_a_child(lambda: work(killed)) == 0
    return deaths


def die_at(folder: Path, moment: int, calls_later: int = 0) -> None:
    """Kill this process `calls_later` calls after the `moment`-th file operation in a folder."""
    seen = count()
    _on_operation(folder, lambda: _die_after(calls_later) if next(seen) == moment else None)


def in_a_child(run: Callable[[], object]) -> int:
    """Run this in a forked process; returns 0, the signal that killed it, or 256.

    A process that takes too long prints its stacks and dies of SIGALRM.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(int(SECONDS))
        # A fork has none of its parent's threads; tokenizers would wait for them forever.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # Torch recreates its thread pool on first use, which two threads must not do at once.
        torch.set_num_threads(torch.get_num_threads())
        try:
            run()
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(1)
    return os.waitpid(child, 0)[1]


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder by path, without hidden leftovers of temporary files."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    }


def _on_operation(folder: Path, action: Callable[[], object]) -> None:
    """Call `action` at each file operation in a folder; this cannot be undone."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and str(arguments[0]).startswith(str(folder)):
            action()

    sys.addaudithook(hook)


def _die_after(calls: int) -> None:
    left = count(calls, -1)

    def on_call(*_: Any) -> None:
        if next(left) <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(on_call)
