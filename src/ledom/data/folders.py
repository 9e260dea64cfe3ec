"""Finds the files under a folder, each once, and lists what was left out.

Hidden files and folders (`.git`, `.ipynb_checkpoints`, `.DS_Store`) belong to other programs and
are skipped. Links are followed, except to a folder that contains the link. A file or folder with
several links is read once. This module does not know about formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ledom.core.errors import InputError
from ledom.core.files import real_path

__all__ = ["FileFinder"]

_SHOWN = 3  # examples shown in a note


class FileFinder:
    """Finds files; `notes` lists what has been left out so far.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b.txt", "a.txt", ".hidden"):
    ...         _ = Path(folder, name).write_text("")
    ...     finder = FileFinder()
    ...     [file.name for file in finder.under(Path(folder))], finder.notes
    (['a.txt', 'b.txt'], ('hidden files and folders, not read: 1 (.hidden)',))
    """

    def __init__(self) -> None:
        self._seen: set[Path] = set()
        self._skipped: dict[str, Counter[str]] = {}

    def once(self, file: Path) -> bool:
        """Whether this file or folder is seen for the first time, under any name.

        >>> finder = FileFinder()
        >>> finder.once(Path("a.txt")), finder.once(Path("./a.txt"))
        (True, False)
        """
        real = real_path(file)
        if real in self._seen:
            self.skip("found twice, by links or on the command line, read once", file.name)
            return False
        self._seen.add(real)
        return True

    def under(self, folder: Path) -> Iterator[Path]:
        """The regular files in a folder and its subfolders, in order of their names.

        Raises `InputError` for a folder that cannot be read.
        """
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=folder) from None
        for path in paths:
            if path.name.startswith("."):
                self.skip("hidden files and folders, not read", path.name)
            elif path.is_dir():
                if path.is_symlink() and real_path(folder).is_relative_to(real_path(path)):
                    self.skip("links to an enclosing folder, not followed", path.name)
                elif self.once(path):
                    yield from self.under(path)
            elif path.is_file():
                yield path
            else:
                self.skip("broken links, pipes and devices, not read", path.name)

    def skip(self, reason: str, example: str) -> None:
        """Count something that is left out."""
        self._skipped.setdefault(reason, Counter())[example] += 1

    @property
    def notes(self) -> tuple[str, ...]:
        """One line per reason, with the number of files and some of their names."""
        return tuple(
            f"{reason}: {found.total()} ({', '.join(sorted(found)[:_SHOWN])}"
            f"{', ...' if len(found) > _SHOWN else ''})"
            for reason, found in self._skipped.items()
        )
