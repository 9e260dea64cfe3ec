"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ledom.core.errors import OutputError

__all__ = ["write_atomically", "write_folder"]


@contextmanager
def write_atomically(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file that replaces `path` only when the block ends without an error.

    Raises `OutputError` when the place cannot be written or the disk is full; an earlier file at
    `path` is then unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with write_atomically(f"{folder}/hello.txt") as out:
    ...         _ = out.write("hello")
    ...     Path(folder, "hello.txt").read_text()
    'hello'
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # renaming over /dev/null would replace it for all
        raise OutputError(f"{path}: cannot be written: this is no regular file")
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def write_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """A new folder to write into, which becomes `path` only when the block ends without an error.

    With `replace` it takes the place of an earlier folder. Raises `OutputError` when the place
    cannot be written or the disk is full; nothing is left behind then.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with write_folder(f"{parent}/new") as folder:
    ...         _ = (folder / "hello.txt").write_text("hello")
    ...     Path(parent, "new", "hello.txt").read_text()
    'hello'
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            if replace and path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")
