"""One arrow of the pipeline: a JSONL file that is made in parts and survives any stop.

While it is made, finished chunks of records are appended to `<name>.part`, a line each, the first
line being the settings that they were made with; when all are there, the records go to `<name>` in
one step, the settings beside it in `<name>.settings.json`. A later run with equal settings goes on
from the part, or uses the file. Where several processes share the work, each appends to a part of
its own, `<name>.part.<rank>`; all of them are read, however many processes go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ledom import parallel
from ledom.errors import InputError, OutputError
from ledom.reading import read_json
from ledom.records import (
    Candidate,
    Problem,
    Record,
    read_records,
    write_atomically,
    write_records,
)

__all__ = ["Stage", "Track", "candidates_by_problem", "check_settings", "fingerprint"]

ItemT = TypeVar("ItemT")
RecordT = TypeVar("RecordT", bound=Record)

Track = Callable[[Iterable[Any], str, int, int], Iterator[Any]]
"""Wraps a stage's chunks to show progress: (chunks, name, done already, in all)."""


class Stage(Generic[RecordT]):
    """A file of records being made; `records` are those that are there already.

    Raises `InputError` when the file was made with other settings, and `OutputError` when it
    cannot be written; what was appended before then is kept.
    """

    def __init__(self, path: Path, record_type: type[RecordT], settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self._type = record_type
        own = f".{parallel.rank()}" if parallel.rank() else ""
        self._part = path.with_name(f"{path.name}.part{own}")
        self._kept = 0  # bytes of whole lines in it
        self._settings_file = path.with_name(path.name + ".settings.json")
        self.complete = path.is_file() and self._settings_file.is_file()
        if self.complete:
            check_settings(read_json(self._settings_file), self.settings, path)
            self.records = read_records(path, record_type)
        else:
            self.records = self._read_parts()
        parallel.wait()  # all have read before one writes

    def _parts(self) -> list[Path]:
        """The parts of all processes, of an earlier run's too."""
        name = f"{self.path.name}.part"
        found = self.path.parent.glob("*") if self.path.parent.is_dir() else ()
        return sorted(p for p in found if p.name == name or p.name.startswith(f"{name}."))

    def _read_parts(self) -> list[RecordT]:
        records: list[RecordT] = []
        for part in self._parts():
            lines = part.read_bytes().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()  # cut short by a kill or a full disk
            if part == self._part:
                self._kept = sum(map(len, lines))
            try:
                settings, *chunks = [json.loads(line) for line in lines] or [self.settings]
                found = [self._type.from_json(row) for chunk in chunks for row in chunk]
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(
                    f"damaged ({error}); remove it to start again", path=part
                ) from None
            check_settings(settings, self.settings, part)
            records.extend(found)
        return records

    def append(self, records: Sequence[RecordT]) -> None:
        """Keep a chunk of finished records, all or none, on disk before this returns."""
        chunk = json.dumps([record.to_json() for record in records], ensure_ascii=False)
        header = "" if self._kept else json.dumps(self.settings) + "\n"
        added = f"{header}{chunk}\n".encode()

        def write() -> None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._part.open("ab") as part:
                part.truncate(self._kept)
                part.write(added)

        self._write(write)
        self._kept += len(added)
        self.records.extend(records)

    def finish(self, key: Callable[[RecordT], Any]) -> None:
        """All records are there: put them, sorted by `key`, in their final place."""
        parallel.wait()  # for the other processes' parts
        if parallel.is_first():
            if parallel.size() > 1:
                self.records = self._read_parts()
            self.records.sort(key=key)
            write_records(self.path, self.records)
            with write_atomically(self._settings_file) as out:
                json.dump(self.settings, out, indent=1)
            for part in self._parts():
                part.unlink()
        parallel.wait()  # for the file
        if not parallel.is_first():
            self.records = read_records(self.path, self._type)
        self.complete = True

    def fill(
        self,
        items: Sequence[ItemT],
        item_key: Callable[[ItemT], tuple[Any, ...]],
        record_key: Callable[[RecordT], tuple[Any, ...]],
        make: Callable[[Sequence[ItemT]], Iterable[Sequence[RecordT]]],
        track: Track,
        name: str,
    ) -> list[RecordT]:
        """All items' records, in the items' order; those that are missing are made by chunks.

        Records belong to the item with their key, of which the first part, the problem's id, says
        what one process does.
        """
        if not self.complete:
            done = {record_key(record) for record in self.records}
            missing = [item for item in items if item_key(item) not in done]
            mine = parallel.share(missing, lambda item: item_key(item)[0])
            for chunk in track(make(mine), name, len(done), len(done) + len(mine)):
                self.append(chunk)
            place = {item_key(item): i for i, item in enumerate(items)}
            self.finish(lambda record: place[record_key(record)])
        return self.records

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            raise OutputError(
                f"{self._part}: cannot be written: {error.strerror}; what was written before is "
                "kept, run the same command again to go on"
            ) from error


def check_settings(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raise `InputError` naming what differs between the settings that made `path` and today's."""
    pairs = {key: (found.get(key), wanted.get(key)) for key in sorted({*found, *wanted})}
    different = [
        f"{key}: {_shown(there)} there, {_shown(now)} now"
        for key, (there, now) in pairs.items()
        if _identity(there) != _identity(now)
    ]
    if different:
        raise InputError(
            f"was made with other settings ({'; '.join(different[:3])}); give another output "
            "folder, or remove it",
            path=path,
        )


def fingerprint(rows: Iterable[tuple[str, ...]]) -> str:
    """A hash that stands for texts in a stage's settings."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update("".join(f"{text}\0" for text in row).encode())
    return digest.hexdigest()[:16]


def _identity(value: Any) -> Any:
    """What must not differ: of a model (`LanguageModel.identity`) its hash, wherever it lies."""
    return value.get("hash", value) if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    is_model = isinstance(value, dict) and {*value} == {"name", "hash"}
    return f"{value['name']} ({value['hash']})" if is_model else repr(value)


def candidates_by_problem(
    path: Path,
    problems: Sequence[Problem],
    settings: dict[str, Any],
    make: Callable[[Sequence[Problem]], Iterable[Sequence[Candidate]]],
    track: Track,
    name: str,
) -> list[Candidate]:
    """The candidates in `path`; those of problems that it lacks are made, a problem at a time.

    They stand in the problems' order, whatever order they were made in. The problems go to
    problems.jsonl beside them, once it is sure that the folder is theirs.
    """
    settings = settings | {
        "problems": len(problems),
        "first_problem": problems[0].id,
        "questions": fingerprint((p.id, p.question) for p in problems),
    }
    stage = Stage(path, Candidate, settings)
    if parallel.is_first():
        write_records(path.with_name("problems.jsonl"), problems)
    return stage.fill(
        problems, lambda problem: (problem.id,), lambda c: (c.problem_id,), make, track, name
    )
