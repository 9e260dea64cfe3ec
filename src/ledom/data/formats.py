"""The formats of files with documents, and a reader for each.

A reader yields the documents that begin in a range of a file's bytes. Plain files are split between
lines, Parquet between row groups; a compressed file cannot be split and belongs to one part. A
faulty line or row raises an `InputError` that names it.
"""

from __future__ import annotations

import gzip
import io
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ledom.core.errors import InputError, in_one_line, needs_extra
from ledom.core.reading import check_surrogates, not_utf8, parse_json

__all__ = ["FORMATS", "SUFFIXES", "Given", "format_of", "text_and_source"]

_SOURCE_KEY = "source"
_COMPRESSED = {".gz", ".zst"}
_BLANK = " \t\n\r\v\f"  # characters of a blank line, as in bytes.strip
_BLOCK_BYTES = 1 << 20
_ROWS = 256  # Parquet rows in memory at a time

Given = tuple[str, object]  # a document's text, and its source as given


@dataclass(frozen=True)
class Format:
    """A format of files with documents."""

    read: Callable[[Path, int, int, str], Iterator[Given]]
    """Yields the documents that begin in the bytes [start, end) of a file. The last argument is the
    key, or column, of the text."""
    suffixes: tuple[str, ...] = ()
    """The endings of names that tell the format, in lower case."""
    has_keys: bool = False
    """Whether the text is under a key, or in a column."""
    is_one_document: bool = False
    """Whether a whole file is one document."""


def _read_jsonl(file: Path, start: int, end: int, key: str) -> Iterator[Given]:
    for line, place in _lines(file, start, end):
        if line.strip():
            try:
                row = parse_json(line, non_finite=True)  # as Python writes them under other keys
                given = text_and_source(row, key)
            except InputError as error:
                raise _error_at(file, place, str(error)) from None
            yield given


def _read_lines(file: Path, start: int, end: int, key: str) -> Iterator[Given]:
    for line in _texts(file, start, end):
        if line.strip(_BLANK):
            yield line.rstrip("\r\n"), None


def _read_text(file: Path, start: int, end: int, key: str) -> Iterator[Given]:
    if start == 0:  # a document belongs to the part that it begins in
        yield "".join(_texts(file, 0, file.stat().st_size)), None


def _read_parquet(file: Path, start: int, end: int, key: str) -> Iterator[Given]:
    with needs_extra("pyarrow", "data"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    size, row = file.stat().st_size, 0
    try:
        with ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            if key not in names:
                raise InputError(_missing(key, names), path=file)
            if names.count(key) > 1:
                raise InputError(f"several columns are called {key!r}; rename them", path=file)
            columns = [name for name in dict.fromkeys((key, _SOURCE_KEY)) if name in names]
            for group in range(parquet.num_row_groups):
                if not start <= size * group // parquet.num_row_groups < end:
                    row += parquet.metadata.row_group(group).num_rows
                    continue
                for batch in parquet.iter_batches(_ROWS, row_groups=[group], columns=columns):
                    for found in batch.to_pylist():
                        row += 1
                        yield text_and_source(found, key)
    except UnicodeDecodeError as error:
        raise InputError(f"row {row}: {not_utf8(error)}", path=file) from None
    except ArrowException as error:
        reason = in_one_line(error)
        raise InputError(f"cannot be read as Parquet: {reason}", path=file) from None
    except InputError as error:
        raise (InputError(f"row {row}: {error}", path=file) if row else error) from None


FORMATS = {
    "jsonl": Format(_read_jsonl, (".jsonl", ".ndjson"), has_keys=True),
    "parquet": Format(_read_parquet, (".parquet",), has_keys=True),
    "text": Format(_read_text, (".txt",), is_one_document=True),
    "lines": Format(_read_lines),
}
"""Every format by its name: JSON objects, one per line; Parquet rows; the whole text; lines. Blank
lines are skipped."""

SUFFIXES = {suffix: name for name, format in FORMATS.items() for suffix in format.suffixes}
"""The format of each ending of a file's name."""


def format_of(file: Path) -> str | None:
    """The name of a file's format by the file's name; None if it is unknown.

    >>> format_of(Path("a.JSONL.gz")), format_of(Path("a"))
    ('jsonl', None)
    """
    name = Path(file.stem) if _is_compressed(file) else file
    return SUFFIXES.get(name.suffix.lower())


def _is_compressed(file: Path) -> bool:
    return file.suffix.lower() in _COMPRESSED


def _lines(file: Path, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """The lines that begin in the bytes [start, end) of a file, and where each begins.

    A compressed file is decompressed; it yields all of its lines if `start` is 0, otherwise none.
    """
    if _is_compressed(file):
        if start > 0:
            return
        end = sys.maxsize
    place = 0
    with _unpack(file) as source:
        if start > 0:
            source.seek(start - 1)
            source.readline()  # the rest of the previous part's last line
            place = source.tell()
        for line in source:
            if place >= end:
                return
            yield line if place else line.removeprefix(BOM_UTF8), place
            place += len(line)


def _texts(file: Path, start: int, end: int) -> Iterator[str]:
    """Like `_lines`, as text; raises `InputError` for a line that is not UTF-8."""
    for line, place in _lines(file, start, end):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _error_at(file, place, not_utf8(error)) from None
        yield text


def _error_at(file: Path, place: int, reason: str) -> InputError:
    """The error for the line that begins at a byte; only now are the lines before it counted."""
    number = 1
    with _unpack(file) as source:
        while place and (block := source.read(min(place, _BLOCK_BYTES))):
            number += block.count(b"\n")
            place -= len(block)
    return InputError(reason, path=file, line=number)


def _unpack(file: Path) -> IO[bytes]:
    if not _is_compressed(file):
        return file.open("rb")
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    with needs_extra("pyarrow", "data"):
        import pyarrow
    return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))


def text_and_source(row: Mapping[str, Any], key: str) -> Given:
    """The text under a row's key, and the row's source; raises `InputError` without a text.

    >>> text_and_source({"body": "Hello.", "source": "web"}, "body")
    ('Hello.', 'web')
    """
    if key not in row:
        raise InputError(_missing(key, row))
    text = row[key]
    if not isinstance(text, str):
        raise InputError(f"key {key!r} is {text!r:.40}, expected a text")
    check_surrogates(text)
    return text, row.get(_SOURCE_KEY) if key != _SOURCE_KEY else None


def _missing(key: str, found: Mapping[str, Any] | Sequence[str]) -> str:
    return f"no key {key!r}, only {', '.join(found) or 'nothing'}; give the key of the text"
