"""`ledom` in its own process, started in milliseconds.

It is a fork of a process that has imported what commands import and has run nothing. So no threads
of the parent are missing, and signals, exit codes and output are those of any process.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import ledom.data.tokenize  # uses the same fork server and sets its imports
from waiting import SECONDS, until

__all__ = ["PROCESSES", "Started", "ledom", "port_of_a_group", "prepare_server", "started"]

PROCESSES = get_context("forkserver")
_IMPORTED = [
    ledom.data.tokenize.__name__,
    "ledom.cli.app",
    "ledom.train.loop",
    "ledom.rerank.pipeline",
    "ledom.serve.server",
    "openai",
    "transformers.models.llama.modeling_llama",
    "torch.distributed.fsdp",
    "pytest",  # of test modules whose functions run in the processes
]


def prepare_server() -> None:
    """Set what the fork server imports, before the first process starts it.

    Only in the process that runs tests: any other that imports this has its own server.
    """
    PROCESSES.set_forkserver_preload(_IMPORTED)


class Started:
    """A process that may still be running; its output on both streams goes to a file."""

    def __init__(self, process: BaseProcess, output: Path) -> None:
        self._process, self._output = process, output

    @property
    def pid(self) -> int:
        """The process id, also that of its group, which includes its children."""
        assert self._process.pid is not None
        return self._process.pid

    def said(self) -> str:
        return self._output.read_text()

    def first_line(self) -> str:
        """Wait for the first line of output."""
        until(lambda: "\n" in self.said() or not self._process.is_alive(), self.said)
        assert "\n" in self.said(), "it ended without a line"
        return self.said().splitlines()[0]

    def wait(self) -> int:
        """Wait for the exit code, or minus the signal that ended the process."""
        self._process.join(SECONDS)
        assert self._process.exitcode is not None, f"still running: {self.said()}"
        return self._process.exitcode


def ledom(*arguments: str) -> None:
    """Run a command of ledom."""
    sys.argv = ["ledom", *arguments]
    runpy.run_module("ledom", run_name="__main__")


@contextmanager
def started(
    output: Path,
    *arguments: object,
    run: Callable[..., object] = ledom,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Started]:
    """A process that runs a command; killed at the end if it is still running."""
    output.touch()
    given = [*map(str, arguments)], dict(environment or {})
    process = PROCESSES.Process(target=_run, args=(run, *given, output))
    process.start()
    try:
        yield Started(process, output)
    finally:
        process.kill()
        process.join(SECONDS)


@contextmanager
def port_of_a_group() -> Iterator[int]:
    """A port on which the first process of a group may listen and that no one else gets meanwhile.

    It is bound but not listened on, with port reuse, which torch also sets.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def _run(
    run: Callable[..., object], arguments: list[str], environment: dict[str, str], output: Path
) -> None:
    os.setsid()
    os.environ.update(environment)
    printed = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    run(*arguments)
