"""Folders that are written as a whole, and temporary ones."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ledom.core.errors import OutputError
from ledom.core.files import real_path, remove, replacing

__all__ = ["temporary_folder", "write_folder"]


@contextmanager
def write_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Create a folder to write into; it becomes `path` only when the block ends without an error.

    Links are followed, and files get the permissions of the user's umask. With `replace`, an
    earlier folder at `path` is removed. Raises `OutputError` if `path` cannot be written or the
    disk is full; the new folder is then removed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with write_folder(f"{parent}/new") as folder:
    ...         _ = (folder / "hello.txt").write_text("hello")
    ...     Path(parent, "new", "hello.txt").read_text()
    'hello'
    """
    named, path = path, real_path(path)
    with replacing(path, named) as temporary:
        temporary.mkdir()
        yield temporary
        _follow_umask(temporary)
        old = temporary.with_name(f"{temporary.name}.old")
        if replace and path.is_dir():
            try:  # not removed yet, because a kill would lose both
                os.replace(path, old)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # Overlay file systems (Docker) cannot rename a folder of a lower layer.
                shutil.copytree(path, old, symlinks=True)
                shutil.rmtree(path)
        os.replace(temporary, path)
        remove(old)


def _follow_umask(folder: Path) -> None:
    """Let those read the new files who can read the folder; safetensors makes files private."""
    allowed = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        if file.is_file() and file.stat().st_mode & 0o666 != allowed:
            with suppress(OSError):  # a file system without permissions
                file.chmod(allowed)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end. Raises `OutputError` if none can be created.

    >>> with temporary_folder() as folder:
    ...     folder.is_dir()
    True
    """
    try:
        created = TemporaryDirectory(prefix="ledom-")
    except OSError as error:
        reason = f"no temporary folder can be created ({error.strerror or error})"
        raise OutputError(f"{reason}; set TMPDIR to a folder that has room") from error
    with created as folder:
        yield Path(folder)
