"""The option --out: a folder or a file to write, refused at once if the path holds the other kind.

The check runs when options are read, so before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from ledom.core.errors import InputError
from ledom.core.reading import exists

__all__ = ["Out", "OutForFile", "out_file", "out_folder", "results_folder"]


def out_folder(help: str) -> Any:
    """An option for a folder to write; a file in its place, or above it, is refused."""
    return typer.Option(help=help, callback=_check_folder)


def out_file(help: str) -> Any:
    """An option for a file to write; a folder in its place, or a file above it, is refused."""
    return typer.Option(help=help, callback=_check_file)


def _check_folder(path: Path | None) -> Path | None:
    for place in () if path is None else (path, *path.parents):
        if exists(place) and not place.is_dir():
            raise InputError("this is a file, but --out needs a folder; give another", path=place)
    return path


def _check_file(path: Path | None) -> Path | None:
    if path is not None:
        if path.is_dir():
            raise InputError("this is a folder, but --out needs a file; add a name", path=path)
        _check_folder(path.parent)
    return path


Out = Annotated[Path, out_folder("Folder for the results. Finished work found there is reused.")]
OutForFile = Annotated[
    Path | None,
    out_folder("Folder for the results, required for JSONL. Finished work is reused."),
]


@contextmanager
def results_folder(out: Path | None) -> Iterator[Path]:
    """The user's folder for the results, or a temporary one that is removed at the end.

    >>> with results_folder(Path("out")) as named, results_folder(None) as unnamed:
    ...     named, unnamed.is_dir()
    (PosixPath('out'), True)
    >>> unnamed.exists()
    False
    """
    with TemporaryDirectory() as unnamed:
        yield out or Path(unnamed)
