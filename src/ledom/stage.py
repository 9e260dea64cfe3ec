"""One arrow of the pipeline: a JSONL file that is made in parts and survives any stop.

While it is made, records are appended to `<name>.part`, whose first line holds the settings that
they were made with; when all are there, they go to `<name>` in one step, the settings beside it in
`<name>.settings.json`. A later run with equal settings goes on from the part, or uses the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ledom.errors import InputError, OutputError
from ledom.records import (
    Candidate,
    Problem,
    Record,
    read_records,
    write_atomically,
    write_records,
)

__all__ = ["Stage", "Track", "candidates_by_problem"]

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
        self._part = path.with_name(path.name + ".part")
        self._settings_file = path.with_name(path.name + ".settings.json")
        self.complete = path.is_file() and self._settings_file.is_file()
        self.records: list[RecordT] = []
        if self.complete:
            self._compare(json.loads(self._settings_file.read_text()), path)
            self.records = read_records(path, record_type)
        elif self._part.is_file():
            self._resume(record_type)

    def _resume(self, record_type: type[RecordT]) -> None:
        lines = self._part.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # cut short by a kill or a full disk
        if not lines:
            self._part.unlink()
            return
        try:
            self._compare(json.loads(lines[0]), self._part)
            self.records = [record_type.from_json(json.loads(line)) for line in lines[1:]]
        except ValueError as error:
            raise InputError(
                f"damaged ({error}); remove it to start again", path=self._part
            ) from None
        self._write(lambda: self._part.write_bytes(b"".join(lines)))

    def _compare(self, found: dict[str, Any], path: Path) -> None:
        different = [
            f"{key}: {found.get(key)!r} there, {self.settings.get(key)!r} now"
            for key in sorted({*found, *self.settings})
            if found.get(key) != self.settings.get(key)
        ]
        if different:
            raise InputError(
                f"was made with other settings ({'; '.join(different[:3])}); give another output "
                "folder, or remove the file",
                path=path,
            )

    def append(self, records: Sequence[RecordT]) -> None:
        """Keep some finished records, on disk before this returns."""
        rows = [json.dumps(record.to_json(), ensure_ascii=False) for record in records]
        if not self._part.is_file():
            rows.insert(0, json.dumps(self.settings))

        def write() -> None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._part.open("a", encoding="utf-8") as part:
                part.write("".join(row + "\n" for row in rows))

        self._write(write)
        self.records.extend(records)

    def finish(self, key: Callable[[RecordT], Any] | None = None) -> None:
        """All records are there: put them, sorted by `key`, in their final place."""
        if key is not None:
            self.records.sort(key=key)
        write_records(self.path, self.records)
        with write_atomically(self._settings_file) as out:
            json.dump(self.settings, out, indent=1)
        self._part.unlink(missing_ok=True)
        self.complete = True

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            raise OutputError(
                f"{self._part}: cannot be written: {error.strerror}; what was written before is "
                "kept, run the same command again to go on"
            ) from error


def candidates_by_problem(
    path: Path,
    problems: Sequence[Problem],
    settings: dict[str, Any],
    make: Callable[[Sequence[Problem]], Iterable[Sequence[Candidate]]],
    track: Track,
    name: str,
) -> list[Candidate]:
    """The candidates in `path`; those of problems that it lacks are made, a problem at a time.

    They stand in the problems' order, whatever order they were made in.
    """
    settings = settings | {"problems": len(problems), "first_problem": problems[0].id}
    stage = Stage(path, Candidate, settings)
    if not stage.complete:
        done = {candidate.problem_id for candidate in stage.records}
        waiting = [problem for problem in problems if problem.id not in done]
        for chunk in track(make(waiting), name, len(done), len(problems)):
            stage.append(chunk)
        place = {problem.id: i for i, problem in enumerate(problems)}
        stage.finish(key=lambda candidate: (place[candidate.problem_id], candidate.index))
    return stage.records
