"""Writes files atomically, locks folders, computes hashes, compares settings."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

from filelock import BaseFileLock, FileLock, Timeout

from ledom.core import processes
from ledom.core.errors import InputError, OutputError
from ledom.core.reading import JsonObject, read_json

__all__ = [
    "LARGEST_SEED",
    "cache_folder",
    "check_processes",
    "check_settings",
    "differences",
    "digest",
    "file_hash",
    "fingerprint",
    "lock_folder",
    "lock_for_group",
    "real_path",
    "remove",
    "replacing",
    "write_atomically",
    "write_json",
    "writing",
]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_LOG_AFTER = (5.0, 30.0)  # seconds to wait before the first log line, and before each later one

LARGEST_SEED = 2**62
"""The upper limit of seeds that users give."""

_PRECISIONS = {"", "bfloat16", "float16", "int8"}
"""Suffixes that may follow the hash of a model's weights after a dash; fp32 has none."""


@contextmanager
def write_atomically(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file that replaces `path` only when the block ends without an error.

    Links are followed, and an earlier file's permissions are kept. Raises `OutputError` if `path`
    cannot be written or the disk is full; an earlier file is then unchanged. Files that a killed
    process on this machine left next to `path` are removed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with write_atomically(f"{folder}/hello.txt") as out:
    ...         _ = out.write("hello")
    ...     Path(folder, "hello.txt").read_text()
    'hello'
    """
    named, path = path, real_path(path)
    with replacing(path, named) as temporary:
        if path.exists() and not path.is_file():  # a rename would replace even /dev/null
            raise OutputError(f"{named}: cannot be written: not a regular file")
        with temporary.open("x", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        with suppress(OSError):  # no earlier file, or a file system without permissions
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


def write_json(path: str | Path, contents: Mapping[str, Any], sort_keys: bool = False) -> None:
    """Write a JSON object to a file, atomically; see `write_atomically`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(f"{folder}/new/a.json", {"seed": 1})
    ...     print(Path(folder, "new", "a.json").read_text(), end="")
    {
     "seed": 1
    }
    """
    with write_atomically(path) as out:
        json.dump(contents, out, indent=1, sort_keys=sort_keys)
        out.write("\n")


def _prefix(path: Path) -> str:
    """The prefix of this machine's temporary files for `path`; they are in the same folder."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    return f".{path.name}.{host}-"


@contextmanager
def replacing(path: Path, named: str | Path) -> Iterator[Path]:
    """A name next to `path` for a file or folder that will replace it; removed after an error.

    An `OSError` in the block becomes an `OutputError` about `named`, the path as the user wrote it.

    >>> with replacing(Path("out"), "out") as new:
    ...     new.name.startswith(".out."), new.parent, new.exists()
    (True, PosixPath('.'), False)
    """
    temporary = path.parent / f"{_prefix(path)}{os.getpid()}.{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            yield temporary
        except BaseException:
            remove(temporary)
            raise
    except OutputError as error:  # about a file in the new folder
        raise OutputError(str(error).replace(str(temporary), str(named))) from error
    except OSError as error:
        raise _cannot_write(named, error) from error


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists.

    >>> remove(Path("no such file"))
    """
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove files that killed processes on this machine have left next to `path`."""
    prefix = _prefix(path)
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        process = left.name.removeprefix(prefix).partition(".")[0]
        if process.isdigit() and not _is_running(int(process)):
            remove(left)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except PermissionError:  # another user's process
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Within this block, an `OSError` becomes an `OutputError`: `path` cannot be written.

    >>> with writing("out"):
    ...     raise OSError("the disk is full")
    Traceback (most recent call last):
    ledom.core.errors.OutputError: out: cannot be written: the disk is full
    """
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: str | Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")


@contextmanager
def lock_folder(
    folder: Path, work: str, wait: bool = False, name: str = ".ledom.lock"
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
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _cannot_write(folder, error) from error
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
                remedy = "stop it, or write to another folder"
                if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "RANK" not in os.environ:
                    remedy = (
                        "if srun started both, start one task per machine, see ledom docs footguns"
                    )
                raise OutputError(f"{folder}: in use by {who}; {remedy}") from None
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


@contextmanager
def lock_for_group(folder: Path, work: str, name: str) -> Iterator[Callable[[], None]]:
    """Like `lock_folder`, for work that a group of processes shares: the first holds the lock.

    In the other processes, the check does nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with lock_for_group(Path(folder), "reranks", ".rerank.lock") as check_folder:
    ...         check_folder()
    """
    lock = lock_folder(folder, work, name=name)
    with lock if processes.is_first() else nullcontext(lambda: None) as check:
        yield check


def fingerprint(rows: Iterable[tuple[str, ...]]) -> str:
    """A hash (16 hexadecimal digits) of rows of texts; all rows have the same number of texts.

    >>> fingerprint([("a", "b")]) == fingerprint([("ab", "")])
    False
    """
    hashed = hashlib.sha256()
    for row in rows:
        # NUL ends each text, so it is escaped inside a text.
        escaped = (text.replace("\1", "\1\1").replace("\0", "\1\2") for text in row)
        hashed.update("".join(f"{text}\0" for text in escaped).encode())
    return hashed.hexdigest()[:16]


def digest(text: str) -> int:
    """A 64-bit hash of a text, for use in seeds.

    >>> hex(digest(""))
    '0xe3b0c44298fc1c14'
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def cache_folder() -> Path | None:
    """The user's cache folder for ledom, which may not exist yet; None without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ledom"
    except RuntimeError:
        return None


def real_path(path: str | Path) -> Path:
    """Resolve a path's links; unlike `Path.resolve`, a link to itself is not an error.

    >>> real_path("/usr/../usr")
    PosixPath('/usr')
    """
    return Path(os.path.realpath(path))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits.

    >>> file_hash(Path(os.devnull))[:8]
    'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_settings(
    found: JsonObject,
    wanted: JsonObject,
    path: Path,
    remedy: str = "give another output folder, or remove it",
    problem: str = "was made with other settings",
) -> None:
    """Raise `InputError` if the settings that `path` was made with differ from the wanted ones.

    The message names the first three differences.

    >>> check_settings({"seed": 1}, {"seed": 2}, Path("out"), "choose")
    Traceback (most recent call last):
    ledom.core.errors.InputError: out: was made with other settings (seed: 1 there, 2 now); choose
    """
    if different := list(differences(found, wanted)):
        raise InputError(f"{problem} ({'; '.join(different[:3])}); {remedy}", path=path)


def check_processes(settings: JsonObject, path: Path) -> None:
    """Raise `InputError` if this process would use other settings for `path` than the first one.

    Machines differ: `--dtype auto` may choose a different precision on each. All processes must
    call this before they start the shared work.

    >>> check_processes({"seed": 1}, Path("out"))  # alone
    """
    own = json.dumps(settings)
    problem = f"process {processes.rank()} would make it with other settings than process 0"
    first, own = map(json.loads, (processes.from_first(own), own))  # no file
    check_settings(first, own, path, "give all processes the same", problem)


def differences(there: Any, now: Any, key: str = "") -> Iterator[str]:
    """One line per setting that differs. Models (`LanguageModel.identity`) are compared by hash.

    >>> list(differences({"seed": 1, "optim": {"steps": 30}}, {"seed": 1, "optim": {"steps": 31}}))
    ['optim.steps: 30 there, 31 now']
    """
    if _is_model(there) and _is_model(now):
        if there["hash"] != now["hash"]:
            yield f"{key}: {_shown(there)} there, {_shown(now)} now{_same_weights(there, now)}"
    elif isinstance(there, dict) and isinstance(now, dict):
        for name in {**there, **now}:
            path = f"{key}.{name}" if key else name
            yield from differences(there.get(name), now.get(name), path)
    elif there != now:
        yield f"{key}: {_shown(there)} there, {_shown(now)} now"


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and {*value} == {"name", "hash"}


def _same_weights(there: JsonObject, now: JsonObject) -> str:
    """A remedy, if two hashes differ only in the precision of the same weights (`-bfloat16`)."""
    (weights, _, before), (same, _, after) = (m["hash"].partition("-") for m in (there, now))
    if weights != same or not {before, after} <= _PRECISIONS:
        return ""
    precision = before or "float32"
    return f", the same weights in another precision: write ,dtype={precision} after its name"


def _shown(value: Any) -> str:
    return f"{value['name']} ({value['hash']})" if _is_model(value) else repr(value)
