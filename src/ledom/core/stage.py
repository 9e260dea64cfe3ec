"""A resumable JSONL output file: one stage of the pipeline.

Finished chunks of records are appended to `<name>.part`, one line per chunk; its first line holds
the settings. Once all records exist, they are written to `<name>` in one step, and the settings,
with a hash of that file, to `<name>.settings.json`. A later run with the same settings resumes from
the part file, or uses the finished file. If several processes share the work, each appends to its
own part file, `<name>.part.<rank>`; a resumed run reads them all, with any number of processes.

Only the input decides which items are computed together: `Work.groups` splits all items into
groups. If the last bits of a model's results depend on the other items in a batch, the model gets
only whole groups, and a group's records are kept all or none. So the file has the same bytes after
any interruption and with any number of processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from ledom.core import processes
from ledom.core.errors import InputError, OutputError
from ledom.core.files import check_processes, check_settings, file_hash, lock_for_group, write_json
from ledom.core.reading import JsonObject, as_type, exists, read_json, read_jsonl
from ledom.core.records import Key, Record, read_records, write_records

__all__ = [
    "Stage",
    "Track",
    "Work",
    "at_once",
    "even_groups",
    "no_progress",
    "read_finished",
    "read_settings",
    "read_timings",
]


class Keyed(Protocol):
    """An item for which a stage makes records; its key starts with the problem's id."""

    @property
    def key(self) -> Key: ...


ItemT = TypeVar("ItemT", bound=Keyed)
T = TypeVar("T")
RecordT = TypeVar("RecordT", bound=Record)

Track = Callable[[Iterable[Any], str, int, int], Iterator[Any]]
"""Wraps a stage's chunks to show progress. Arguments: chunks, name, items done, items in total."""

Check = Callable[[], Callable[[RecordT], object]]
"""Returns a new check for one file, which is called with each record and raises `InputError`."""

Make = Callable[
    [Sequence[ItemT], Mapping[Key, Sequence[RecordT]]], Iterable[tuple[Sequence[RecordT], bool]]
]
"""Takes items and the existing records by item key; yields (new records of one item, whether
these complete the item)."""

_TIMINGS = "timings.json"  # seconds by file name, the only difference between two equal runs
_HASH = "sha256"  # key in the settings file for the hash of the finished file


@dataclass(frozen=True)
class Work(Generic[ItemT, RecordT]):
    """The items of a stage, and the functions that make their records.

    A record's key starts with its item's key; the rest of the key orders the records of one item.
    """

    items: Sequence[ItemT]
    make: Make[ItemT, RecordT]
    groups: Callable[[Sequence[ItemT]], Sequence[Sequence[ItemT]]]
    """Splits the items into groups; one call of `make` gets one group."""
    together: bool
    """Whether a result may depend on the rest of its group; if so, only whole groups are made."""
    is_done: Callable[[Sequence[RecordT]], bool] = bool
    """Whether these are all the records of an item."""


@dataclass(frozen=True)
class _Chunk:
    """One line of a part file."""

    chunk: list[JsonObject]
    seconds: float = 0.0
    """How long it took. The finished file contains no times, so that its bytes do not vary."""


class Stage(Generic[RecordT]):
    """A resumable file of records; `records` are those made so far.

    `check` is called with every record read. Raises `InputError` if the file was made with other
    settings, is damaged or was changed later, and `OutputError` if it cannot be written; chunks
    appended earlier are kept.
    """

    def __init__(
        self,
        path: Path,
        record_type: type[RecordT],
        settings: JsonObject,
        check: Check[RecordT] | None = None,
    ) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        check_processes(self.settings, path)
        self._type = record_type
        self._check = check or (lambda: lambda record: None)
        own = f".{processes.rank()}" if processes.rank() else ""
        self._part = path.with_name(f"{path.name}.part{own}")
        self._kept = 0  # bytes of whole lines in the part file
        self._check_folder: Callable[[], None] = lambda: None
        self.seconds = 0.0
        """The wall-clock time spent making the records, summed over processes."""
        self._since = monotonic()
        parts = self._parts()
        self.complete = path.is_file() and (_settings_file(path).is_file() or not parts)
        if self.complete:
            made_with = read_settings(path)
            check_settings(made_with, self.settings | {_HASH: made_with[_HASH]}, path)
            self.records = read_finished(path, record_type, self._check)
        else:
            self.records = self._read_parts() if parts else []
        processes.wait()  # all processes have read before one writes
        if self.complete and processes.is_first():
            for part in parts:
                part.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        """The part files of all processes, including an earlier run's; copies do not count."""
        name = rf"{re.escape(self.path.name)}\.part(\.\d+)?"
        found = self.path.parent.glob("*")  # none if there is no such folder
        return sorted(path for path in found if re.fullmatch(name, path.name))

    def _read_parts(self) -> list[RecordT]:
        records: list[RecordT] = []
        self.seconds = 0.0
        check = self._check()
        for part in self._parts():
            number, settings = 0, self.settings
            try:
                for number, row in read_jsonl(part, unfinished=True):
                    if number == 1:
                        settings = row
                    else:
                        records += self._chunk(row, check)
            except InputError as error:
                raise InputError(
                    f"damaged ({error.reason}); remove it to start again",
                    path=part,
                    line=error.line or number,
                ) from None
            check_settings(settings, self.settings, part)
            if part == self._part:
                self._kept = part.read_bytes().rfind(b"\n") + 1
        return records

    def _chunk(self, row: JsonObject, check: Callable[[RecordT], object]) -> list[RecordT]:
        """The records in a line of a part file; raises an `InputError` without file and line."""
        read = as_type(row, _Chunk)
        self.seconds += read.seconds
        records = [self._type.from_json(record) for record in read.chunk]
        for record in records:
            check(record)
        return records

    def append(self, records: Sequence[RecordT]) -> None:
        """Append a chunk of finished records to the part file, all or none.

        >>> import tempfile
        >>> from ledom.core.records import Document
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "out.jsonl")
        ...     Stage(path, Document, {"seed": 1}).append([Document(id="a", text="Hello.")])
        ...     [record.id for record in Stage(path, Document, {"seed": 1}).records]  # after a stop
        ['a']
        """
        self._check_folder()
        now = monotonic()
        seconds, self._since = round(now - self._since, 3), now
        rows = {"chunk": [record.to_json() for record in records], "seconds": seconds}
        chunk = json.dumps(rows, ensure_ascii=False)
        header = "" if self._kept else json.dumps(self.settings) + "\n"
        added = f"{header}{chunk}\n".encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._part.open("ab") as part:
                part.truncate(self._kept)
                part.write(added)
        except OSError as error:
            raise OutputError(
                f"{self._part}: cannot be written: {error.strerror}; earlier results are kept, "
                "run the same command again to resume"
            ) from error
        self._kept += len(added)
        self.seconds += seconds
        self.records.extend(records)

    def finish(self, key: Callable[[RecordT], Any], timed: bool = False) -> None:
        """Write all records, sorted by `key`, to the finished file, and remove the part files.

        If `timed`, the stage's seconds are added to timings.json; see `read_timings`.
        """
        processes.wait()  # for the other processes' parts
        self._check_folder()
        if processes.is_first():
            if processes.size() > 1:
                self.records = self._read_parts()
            if timed:  # first, because a finished file has no times
                known = read_timings(self.path.parent) | {self.path.name: round(self.seconds, 2)}
                write_json(self.path.with_name(_TIMINGS), known)
            self.records.sort(key=key)
            write_records(self.path, self.records)
            write_json(_settings_file(self.path), self.settings | {_HASH: file_hash(self.path)})
            for part in self._parts():
                part.unlink(missing_ok=True)
        processes.wait()  # for the file
        if not processes.is_first():
            self.records = read_records(self.path, self._type, allow_none=True)
        self.complete = True

    def fill(
        self, work: Work[ItemT, RecordT], track: Track, name: str, timed: bool = False
    ) -> list[RecordT]:
        """Make the missing records and finish the file; returns all records in the items' order.

        `name` is shown with the progress. `timed` is as in `finish`. Raises `OutputError` if
        another run is making the same file.

        >>> import tempfile
        >>> from ledom.core.records import Document, Problem
        >>> copy = at_once(lambda items: ([Document(id=i.id, text=i.question)] for i in items))
        >>> work = Work([Problem(id="a", question="2 + 2?")], copy, lambda items: [items], False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stage = Stage(Path(folder, "out.jsonl"), Document, {"seed": 1})
        ...     stage.fill(work, no_progress, "copying")[0].text
        ...     sorted(path.name for path in Path(folder).iterdir())
        '2 + 2?'
        ['out.jsonl', 'out.jsonl.settings.json']
        """
        if self.complete:
            return self.records
        self._since = monotonic()
        have: dict[Key, list[RecordT]] = {item.key: [] for item in work.items}
        length = len(next(iter(have), ()))
        for record in self.records:
            have[record.key[:length]].append(record)
        mine = self._share(work, have)
        done = sum(map(work.is_done, have.values()))
        place = {key: i for i, key in enumerate(have)}
        file = self.path.name
        lock = lock_for_group(self.path.parent, f"makes {file}", f".{file}.lock")
        with lock as self._check_folder:
            for _ in track(self._made(work, mine, have), name, done, done + sum(map(len, mine))):
                pass
            self.finish(lambda record: (place[record.key[:length]], record.key[length:]), timed)
        return self.records

    def _share(
        self, work: Work[ItemT, RecordT], have: Mapping[Key, Sequence[RecordT]]
    ) -> list[Sequence[ItemT]]:
        """The groups that this process still has to make, without finished items."""
        if not work.together:
            missing = [item for item in work.items if not work.is_done(have[item.key])]
            return [*work.groups(processes.share(missing, lambda item: item.key[0]))]
        open_groups = []
        for group in work.groups(work.items):
            if any(have[item.key] for item in group):
                if all(work.is_done(have[item.key]) for item in group):
                    continue
                raise InputError(
                    "holds only part of a group of items, so it was made by another version or "
                    "changed; remove it to start again",
                    path=self._parts()[0],
                )
            open_groups.append(group)
        return processes.share(open_groups, lambda group: group[0].key)

    def _made(
        self,
        work: Work[ItemT, RecordT],
        groups: Sequence[Sequence[ItemT]],
        have: Mapping[Key, Sequence[RecordT]],
    ) -> Iterator[Sequence[RecordT]]:
        """Make and keep the records of some groups; yields once per item, to show progress."""
        for group in groups:
            whole: list[RecordT] = []
            for records, is_last in work.make(group, have):
                if work.together:
                    whole += records
                else:
                    self.append(records)
                if is_last:
                    yield records
            if whole:
                self.append(whole)


def no_progress(chunks: Iterable[T], *_: object) -> Iterator[T]:
    """A `Track` that shows nothing."""
    return iter(chunks)


def at_once(make: Callable[[Sequence[ItemT]], Iterable[Sequence[RecordT]]]) -> Make[ItemT, RecordT]:
    """A `Work.make` from a function that yields all records of one item at a time.

    >>> make = at_once(lambda items: ([item.upper()] for item in items))
    >>> list(make(["a", "b"], {}))
    [(['A'], True), (['B'], True)]
    """
    return lambda items, have: ((records, True) for records in make(items))


def read_timings(folder: Path) -> dict[str, float]:
    """The seconds that it took to make each file of a folder; empty if unknown.

    >>> read_timings(Path("no such folder"))
    {}
    """
    path = folder / _TIMINGS
    try:
        known = read_json(path) if exists(path) else {}
    except InputError:
        return {}
    return {k: float(v) for k, v in known.items() if isinstance(v, int | float) and v >= 0}


def even_groups(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split items into the fewest groups of at most `size` neighbors, of nearly equal sizes.

    >>> even_groups("abcdefg", 3)
    ['ab', 'cd', 'efg']
    """
    count = -(-len(items) // size)
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]


def read_settings(path: Path) -> JsonObject:
    """The settings that a finished file was made with.

    Raises `InputError` if they are missing or damaged.

    >>> import tempfile
    >>> from ledom.core.records import Document
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "out.jsonl")
    ...     Stage(path, Document, {"seed": 1}).finish(key=lambda record: record.id)
    ...     sorted(read_settings(path))
    ['seed', 'sha256']
    """
    file = _settings_file(path)
    remedy = f"remove {path.name} and {file.name} to make them again"
    if not exists(file):
        raise InputError(
            f"its settings are missing ({file.name}), so it is unknown how it was made; move the "
            "file away, or give another output folder",
            path=path,
        )
    try:
        settings = read_json(file)
    except InputError as error:
        raise InputError(f"damaged ({error.reason}); {remedy}", path=file) from None
    if not isinstance(settings.get(_HASH), str):
        raise InputError(f"damaged (no {_HASH} of {path.name}); {remedy}", path=file)
    return settings


def read_finished(path: Path, record_type: type[RecordT], check: Check[RecordT]) -> list[RecordT]:
    """The records of a finished file, which may have none.

    Raises `InputError` for a bad record (with its line) and for a file that was changed later.
    """
    expected = read_settings(path)[_HASH]
    records = read_records(path, record_type, check(), allow_none=True)
    if file_hash(path) != expected:
        raise InputError(
            f"was changed after it was finished (its {_HASH} is not the one in "
            f"{_settings_file(path).name}); restore it, or remove it to make it again",
            path=path,
        )
    return records


def _settings_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.settings.json")
