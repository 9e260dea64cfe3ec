"""The errors that ledom raises for problems that a user can fix.

Every message states the problem, the offending value, its place (file and line, if any) and the
remedy. The command line prints the message alone and exits with code 2; anything that is not a
`LedomError` is a defect of ledom and shows its traceback.

    LedomError
    |- InputError        a record, a file or an argument
    |  `- HubError       data that cannot be fetched from the hub, for example without a network
    |- RecipeError       a recipe's key or value
    |- CheckpointError   a model folder that is missing, damaged or unsuitable
    |  `- DirectionError a model used in the direction it was not trained for
    |- OutputError       a file or folder that cannot be written
    |- TrainingError     a run that cannot continue
    |  `- WorkerError    another process of the run was lost
    |- ServerError       a server that gives no valid response
    `- MissingExtraError an optional dependency that is not installed, or too old
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = [
    "CheckpointError",
    "DirectionError",
    "HubError",
    "InputError",
    "LedomError",
    "MissingExtraError",
    "OutputError",
    "RecipeError",
    "ServerError",
    "TrainingError",
    "WorkerError",
    "in_one_line",
    "is_out_of_memory",
    "needs_extra",
]


class LedomError(Exception):
    """The base class of all errors that a user can fix.

    >>> issubclass(InputError, LedomError), issubclass(DirectionError, CheckpointError)
    (True, True)
    """


class InputError(LedomError, ValueError):
    """A bad record, file or argument; `path` and `line` (1-based) are prepended if given.

    `reason` is the message without them.

    >>> raise InputError("the file is empty", path="a.jsonl", line=3)
    Traceback (most recent call last):
    ledom.core.errors.InputError: a.jsonl:3: the file is empty
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, line: int | None = None
    ) -> None:
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)
        self.reason, self.line = message, line


class HubError(InputError):
    """Data that cannot be fetched from the hub: no network, no such dataset, or no permission."""


class RecipeError(LedomError, ValueError):
    """A recipe with an unknown key, a wrong type or a value out of range."""


class CheckpointError(LedomError):
    """A model folder that is missing, damaged or unsuitable for its use."""


class DirectionError(CheckpointError):
    """A checkpoint used in the direction that it was not trained for."""


class OutputError(LedomError):
    """An output file or folder that cannot be written (no permission, disk full)."""


class TrainingError(LedomError):
    """A run that cannot continue: its loss or gradient is not finite."""


class WorkerError(TrainingError):
    """Another process of the run was lost; the run can resume from its last checkpoint."""


class ServerError(LedomError):
    """A server that cannot be reached, refuses a request, or breaks its protocol.

    `finished` holds the results of those requests of the same call that succeeded, by index.

    >>> ServerError("no answer", finished={0: "4"}).finished
    {0: '4'}
    """

    def __init__(self, message: str, finished: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.finished = dict(finished or {})


class MissingExtraError(LedomError, ImportError):
    """An optional dependency that is missing or unusable; the message gives the pip command."""


@contextmanager
def needs_extra(
    package: str, extra: str, needed_by: str = "", otherwise: str = ""
) -> Iterator[None]:
    """Within this block, a failed import of an optional dependency raises `MissingExtraError`.

    `needed_by` names the feature that needs it, `otherwise` an alternative to installing it.

    >>> with needs_extra("absent", "data"):
    ...     import absent
    Traceback (most recent call last):
    ledom.core.errors.MissingExtraError: absent is not installed; run: pip install 'ledom[data]'
    """
    try:
        yield
    except ImportError as error:
        if is_out_of_memory(error):
            raise
        problem = f"is not installed; run: pip install 'ledom[{extra}]'"
        if find_spec(package.replace("-", "_")):
            failure = in_one_line(error)
            problem = f"cannot be imported ({failure}); run: pip install --upgrade {package}"
        where = f"{needed_by}: " if needed_by else ""
        instead = f"; {otherwise}" if otherwise else ""
        raise MissingExtraError(f"{where}{package} {problem}{instead}") from None


def in_one_line(error: object, most: int = 200) -> str:
    """The first `most` characters of another package's error, or of a text, for ledom's messages.

    >>> in_one_line(ValueError("no such\\n  file")), in_one_line(KeyboardInterrupt())
    ('no such file', 'KeyboardInterrupt')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",
    "Cannot allocate memory",
    "failed to map segment",  # of a library that is imported
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory: of the machine, of a GPU, or under `ulimit -v`.

    torch, the system and its library loader say so only in words.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA out of memory"))
    (True, True)
    """
    can_tell = isinstance(error, RuntimeError | ImportError | OSError)
    by_words = can_tell and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or by_words
