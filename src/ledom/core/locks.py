"""Locks on folders, so that two runs never write to one folder at once."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ledom.core.errors import InputError, OutputError
from ledom.core.files import cannot_write, write_json
from ledom.core.reading import JsonObject, read_json

__all__ = ["lock_folder"]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_LOG_AFTER = (5.0, 30.0)  # seconds to wait before the first log line, and before each later one


@contextmanager
def lock_folder(
    folder: Path, work: str, wait: bool = False, name: str = ".lock"
) -> Iterator[Callable[[], None]]:
    """Create a folder and hold a lock in it, which the system releases if this process is killed.

    Yields a check that raises `OutputError` once the folder has been removed: another run may have
    created it again, and must not get this run's files.

    `work` is a verb phrase for messages that says what the holder does. If another process holds
    the lock, `wait` waits for it and logs a line now and then. Raises `OutputError` if another
    process holds it (without `wait`), if the folder cannot be written, or if its file system has no
    locks.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock_folder(Path(folder), "trains"):
    ...     with lock_folder(Path(folder), "trains"):
    ...         pass  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.OutputError: ...: in use by process ... on ..., which trains there; ...
    """
    lock, holder = FileLock(folder / name), folder / f"{name}.holder"
    own = {"process": os.getpid(), "host": socket.gethostname()}

    def check() -> None:
        if _owner(holder) != own:
            raise OutputError(
                f"{folder}: was removed or replaced while this run was using it; run the same "
                "command again"
            )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, holder, work, wait)
        write_json(holder, own)
    except (NotImplementedError, OSError) as error:  # the first is for older versions of filelock
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise cannot_write(folder, error) from error
        raise OutputError(
            f"{folder}: its file system has no file locks (flock), without which two runs could "
            "write there at once; give a folder on another file system"
        ) from None
    try:
        yield check
    finally:
        if _owner(holder) == own:  # in a new folder, they are another run's
            holder.unlink(missing_ok=True)
            if not wait:  # a waiting process would then hold a lock on a removed file
                (folder / name).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, folder: Path, holder: Path, work: str, wait: bool) -> None:
    for seconds in chain(_LOG_AFTER, repeat(_LOG_AFTER[-1])) if wait else (0,):
        try:
            lock.acquire(timeout=seconds)
            break
        except Timeout:
            other = _owner(holder)
            who = "process {process} on {host}".format(**other) if other else "another process"
            who += f", which {work} there"
            if not wait:
                raise OutputError(
                    f"{folder}: in use by {who}; stop it, or write to another folder"
                ) from None
            logging.getLogger("ledom").warning(
                "%s: waiting for %s; to start without it, stop it or write to another folder",
                *(folder, who),
            )


def _owner(holder: Path) -> JsonObject:
    """The process that wrote this file; empty if the file is gone or damaged."""
    try:
        return read_json(holder)
    except InputError:
        return {}
