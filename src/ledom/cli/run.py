"""Runs a command: prepares its streams, prints errors as one line, and sets the exit code.

    0    success
    2    an error, in one line on standard error; finished results stay on disk
    130  Ctrl-C
    141  the reader of standard output closed it, as `head -1` does

If SIGINT is ignored when the program starts, as in a background job of a shell, it stays ignored.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

import typer

from ledom.cli.display import log
from ledom.core import processes as parallel
from ledom.core.errors import LedomError, OutputError, in_one_line, is_out_of_memory

DEBUG_VARIABLE = "LEDOM_DEBUG"
"""An environment variable that shows tracebacks, like --debug, unless it is 0 or empty."""

_FAILED, _INTERRUPTED, _PIPE_CLOSED = 2, 130, 141
_SYSTEM_LIMITS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}


class _PipeClosed(Exception):  # noqa: N818 (not an error)
    """The reader of standard output has closed it."""


def prepare_process() -> None:
    """Make the standard streams safe, and silence library warnings.

    A closed stream becomes the null device; otherwise a file opened later could get the stream's
    number and receive its output. Characters that cannot be encoded are escaped. Failed writes to
    standard error are ignored; if standard output fails, the command ends with one line.
    """
    was_closed = sys.stdin is None
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
    if was_closed:
        sys.stdin = None
    sys.stdout = _stream(sys.stdout, _Output(1, "w", closefd=False))
    sys.stderr = _stream(sys.stderr, _Messages(2, "w", closefd=False))
    os.environ.pop("MPLBACKEND", None)  # an unknown name would break matplotlib's import
    if not sys.warnoptions and not _is_debugging():
        warnings.simplefilter("ignore")
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # on unwritable folders


class _Output(io.FileIO):
    """Standard output: the first failed write raises an error, later writes do nothing."""

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            return os.write(self.fileno(), data)
        except OSError as error:
            self._failed = True
            return self._fail(error, len(data))

    def _fail(self, error: OSError, size: int) -> int:
        if isinstance(error, BrokenPipeError):
            raise _PipeClosed from None
        raise OutputError(
            f"cannot write to standard output: {error.strerror}; finished results are on disk"
        ) from None


class _Messages(_Output):
    """Standard error: failed writes are ignored, and the command continues."""

    def _fail(self, error: OSError, size: int) -> int:
        return size


def _stream(given: TextIO | None, raw: _Output) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(given, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=isinstance(raw, _Messages) or raw.isatty(),
    )


def run(app: Callable[..., Any]) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = app(prog_name="ledom", standalone_mode=False) or 0  # typer turns Ctrl-C into 130
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort) as error:
        ended = error.__cause__  # typer aborts on the end of a file, too
        code = _failed(ended) if isinstance(ended, EOFError) else _INTERRUPTED
    except _PipeClosed:
        code = _PIPE_CLOSED
    except SystemExit:
        with suppress(_PipeClosed):
            sys.stdout.flush()
        raise
    except BaseException as error:  # a panic in Rust (tokenizers) is not an Exception
        code = _failed(error)
    if code == _INTERRUPTED:
        log("interrupted; work saved in --out is kept: run the same command again to resume")
    return int(code)


def _is_debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def _failed(error: BaseException) -> int:
    """Print the error in one line, once for all processes; returns the exit code."""
    try:
        is_first = parallel.is_first_failure()
    except Exception:  # the other processes cannot be found, or have ended
        is_first = True
    if is_first:
        if _is_debugging():
            traceback.print_exception(error)
        typer.echo(f"error: {_message(error)}", err=True)
    return _FAILED


def _message(error: BaseException) -> str:
    if isinstance(error, LedomError):
        return str(error).replace("\n", " ")
    if hasattr(error, "format_message"):  # a usage error of typer
        usage = error.format_message().replace("\n", " ")
        command = context.command_path if (context := getattr(error, "ctx", None)) else "ledom"
        return f"{usage.rstrip('.')}. See: {command} --help"
    if is_out_of_memory(error):
        return (
            "out of memory; use fewer or shorter texts at a time (in training, a smaller "
            "parallel.tokens_per_microbatch or train.batch_size), or a smaller model"
        )
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        found = ascii(error.object[error.start : error.end])
        return f"an argument or a file name is not UTF-8 (it contains {found}); convert it first"
    if isinstance(error, OSError) and "temporary directory" in str(error):  # Python, matplotlib
        return "no folder for temporary files can be written; set TMPDIR to one that can"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _SYSTEM_LIMITS:
        return f"{error.strerror}; finished results are on disk"
    if isinstance(error, BlockingIOError) or str(error) == "can't start new thread":
        return "no further process or thread can start; raise the limits on them (ulimit -a)"
    if file := _damaged_bytecode(error):
        return (
            f"{file}: this compiled file of Python is damaged, perhaps since the disk was full "
            "when it was written; remove it"
        )
    what = in_one_line(f"{type(error).__name__}: {error}", 300)
    return f"internal error: {what}; run `ledom --debug ...` to see the traceback, and report it"


def _damaged_bytecode(error: BaseException) -> str | None:
    """The compiled module that could not be read, if the error comes from its import.

    Python itself does not notice if a full disk or a limit on file sizes cuts such a file short.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    reading = [frame for frame in frames if frame.f_code.co_name == "get_code"]
    return reading[-1].f_locals.get("bytecode_path") if reading else None
