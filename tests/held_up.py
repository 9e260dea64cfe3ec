"""`ledom tokenize` that a test stops in the midst of; its processes import little more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ledom.core.reading import JsonObject
from ledom.data import documents as reading
from ledom.data.documents import Documents
from started import ledom
from waiting import SECONDS

__all__ = ["HeldUp", "ledom_held_up"]


class HeldUp:
    """Documents of which all but the first part wait, for longer than any test; a file says so."""

    def __init__(self, documents: Documents, folder: Path) -> None:
        self.documents, self.folder = documents, folder
        self.num_bytes, self.source = documents.num_bytes, documents.source
        self.notes = documents.notes

    def settings(self) -> JsonObject:
        return self.documents.settings()

    def read(self, part: int = 0, num_parts: int = 1) -> Iterator[tuple[str, str | None]]:
        if part > 0:
            Path(f"{self.folder}/held.{part}").touch()
            time.sleep(2 * SECONDS)
        yield from self.documents.read(part, num_parts)


def ledom_held_up(*arguments: str) -> None:
    """A command of ledom, in a process of its own, which reads such documents."""
    opened = reading.open_documents
    reading.open_documents = lambda *given: HeldUp(opened(*given), Path(given[0][0]).parent)
    ledom(*arguments)
