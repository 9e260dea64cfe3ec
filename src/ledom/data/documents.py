"""Reads documents in parts, from files of many formats or a dataset on the hub.

Part k of n holds the documents that begin in the k-th of n equal parts of the files' bytes.
Together, the parts contain every document once and in order, and no part reads another part's
documents. Bad input raises an `InputError` that names the file and the line. This module does not
know about tokens.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

from ledom.core.errors import InputError, in_one_line, needs_extra
from ledom.core.options import key_values
from ledom.core.reading import JsonObject, check_regular
from ledom.data.folders import FileFinder
from ledom.data.formats import FORMATS, SUFFIXES, Given, format_of, text_and_source

__all__ = ["Documents", "open_documents"]

HUB = "hub:"
TEXT_KEY = "text"
_SAMPLE_BYTES = 1 << 16  # bytes hashed at a file's start, middle and end, to notice changes


class Documents(Protocol):
    """Texts in a fixed order."""

    @property
    def num_bytes(self) -> int | None:
        """The size of the files to read; None if unknown."""

    @property
    def source(self) -> str:
        """Where the documents come from, for cards."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what is not read, one line per reason."""

    def settings(self) -> JsonObject:
        """Identifies the documents, so that a resumed run notices changes."""

    def check(self) -> None:
        """Raise `InputError` for faults of whole files, such as a missing column."""

    def read(self, part: int = 0, num_parts: int = 1) -> Iterator[Given]:
        """The documents of one part: each text, with its source if the key `source` names one."""

    def texts(self, part: int = 0, num_parts: int = 1) -> Iterator[str]:
        """The texts of one part."""
        return (text for text, _ in self.read(part, num_parts))


def open_documents(
    named: Sequence[str], format: str | None = None, text_key: str = TEXT_KEY
) -> Documents:
    """The documents of some files and folders, or of one dataset `hub:NAME[,key=value...]`.

    `format` is one of `FORMATS`; None means that each file's name decides. Raises `InputError` for
    a missing file or an unknown format.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
    ...     _ = Path(file.name).write_text('{"text": "Hello."}')
    ...     list(open_documents([file.name]).texts())
    ['Hello.']
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if not all(name.strip() for name in named):
        raise InputError("the name of a file or folder is empty; . is the current folder")
    if any(name.startswith(HUB) for name in named):
        if len(named) > 1:
            raise InputError(
                f"{HUB}NAME must be the only source; tokenize other documents to another folder"
            )
        if format is not None:
            raise InputError(f"format {format!r}: a dataset on the hub has its own; leave it out")
        return HubDocuments.parse(named[0], text_key)
    finder = FileFinder()
    files = [
        (file, format or format_of(file) or "")
        for name in named
        for file in _find(Path(name).absolute(), format, finder)
    ]
    if text_key != TEXT_KEY and not any(FORMATS[kind].has_keys for _, kind in files):
        raise InputError(f"text key {text_key!r}: plain text has no keys; leave it out")
    return FileDocuments(tuple(files), text_key, finder.notes)


def _find(path: Path, format: str | None, finder: FileFinder) -> list[Path]:
    """The file at `path`, or the files of known formats in that folder, each only once."""
    found: list[Path] = []
    if path.is_dir():
        for file in finder.under(path):
            if format_of(file) is None:
                finder.skip("files of other formats, not read", file.suffix or file.name)
            else:
                found.append(file)
        if not found:
            raise InputError(
                f"no files in this folder end in {', '.join(SUFFIXES)} (or these with .gz or "
                ".zst); name the files",
                path=path,
            )
    else:
        check_regular(path)
        found = [path]
        if format is None and format_of(path) is None:
            raise InputError(
                f"its name ends in none of {', '.join(SUFFIXES)} (or these with .gz or .zst); "
                f"give the format: {', '.join(FORMATS)}",
                path=path,
            )
    return [file for file in found if finder.once(file)]


@dataclass(frozen=True)
class FileDocuments(Documents):
    """The documents of files, given as (file, format), in this order; no file may change later."""

    files: tuple[tuple[Path, str], ...]
    text_key: str = TEXT_KEY
    notes: tuple[str, ...] = ()

    @cached_property
    def _states(self) -> list[tuple[int, int]]:
        return [_state(file) for file, _ in self.files]

    @property
    def num_bytes(self) -> int:
        return sum(size for size, _ in self._states)

    @property
    def source(self) -> str:
        files = [file for file, _ in self.files]
        folder = Path(os.path.commonpath(files))
        name = f"{folder.name or folder} ({len(files)} files)" if len(files) > 1 else folder.name
        return os.fsencode(name).decode(errors="replace")  # it may be in another encoding

    def settings(self) -> JsonObject:
        """The text key, and a hash of the files' names, formats, sizes, times and sampled bytes."""
        digest = hashlib.sha256()
        for file, format in self.files:
            with _reading(file), file.open("rb") as source:
                found = file.stat()
                state = f"{file} {format} {found.st_size} {found.st_mtime_ns}\n"
                digest.update(os.fsencode(state))  # a name may be in another encoding
                for start in (0, found.st_size // 2, max(0, found.st_size - _SAMPLE_BYTES)):
                    source.seek(start)
                    digest.update(source.read(_SAMPLE_BYTES))
        files = f"{len(self.files)} files, {self.num_bytes} bytes, state {digest.hexdigest()[:12]}"
        return {"documents": files, "text_key": self.text_key}

    def check(self) -> None:
        """Read the first document of every file, except those that are one document."""
        for file, format in self.files:
            if not FORMATS[format].is_one_document and (size := _state(file)[0]):
                with _reading(file):
                    next(FORMATS[format].read(file, 0, size, self.text_key), None)

    def read(self, part: int = 0, num_parts: int = 1) -> Iterator[Given]:
        total = self.num_bytes
        first, last = total * part // num_parts, total * (part + 1) // num_parts
        for (file, format), (size, time) in zip(self.files, self._states, strict=True):
            start, end = max(first, 0), min(last, size)
            if start < end:
                with _reading(file):
                    yield from FORMATS[format].read(file, start, end, self.text_key)
                if _state(file) != (size, time):  # parts may overlap or miss documents
                    raise InputError("was changed while it was read; run this again", path=file)
            first, last = first - size, last - size


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Within this block, any failure to read the file becomes an `InputError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or in_one_line(error)  # strerror has no path
        raise InputError(f"cannot be read: {reason}", path=file) from None


def _state(file: Path) -> tuple[int, int]:
    with _reading(file):
        return (status := file.stat()).st_size, status.st_mtime_ns


@dataclass(frozen=True)
class HubDocuments(Documents):
    """A dataset on the hub (or a folder that `datasets` can load), streamed.

    Its files are divided among the parts, or its rows if there are fewer files than parts.
    """

    num_bytes: ClassVar[None] = None
    notes: ClassVar[tuple[str, ...]] = ()
    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_key: str = TEXT_KEY

    @classmethod
    def parse(cls, written: str, text_key: str) -> HubDocuments:
        """Parse `hub:NAME,config=...,split=...,revision=...`.

        >>> HubDocuments.parse("hub:wikitext,split=test", "text").split
        'test'
        """
        name, *options = written.removeprefix(HUB).split(",")
        chosen = key_values(options, repr(written), ("config", "revision", "split"))
        for key, value in chosen.items():
            if not value:
                raise InputError(f"{written!r}: {key} is empty; give a value, or leave it out")
        return cls(name, text_key=text_key, **chosen)

    @property
    def source(self) -> str:
        return HUB + self.name

    def settings(self) -> JsonObject:
        return {"documents": self.source, **vars(self)}

    def read(self, part: int = 0, num_parts: int = 1) -> Iterator[Given]:
        with needs_extra("datasets", "hub"):
            from datasets import load_dataset
            from datasets.distributed import split_dataset_by_node
        number = 0
        try:
            rows = load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
            if num_parts > 1:
                rows = split_dataset_by_node(rows, rank=part, world_size=num_parts)
            for number, row in enumerate(rows, start=1):  # noqa: B007
                yield text_and_source(row, self.text_key)
        except InputError as error:
            raise InputError(f"{HUB}{self.name}: row {number} of part {part}: {error}") from None
        except Exception as error:  # without a network, the hub's client raises many error types
            reason = in_one_line(error)
            raise InputError(f"{HUB}{self.name}: cannot be read: {reason}") from error
