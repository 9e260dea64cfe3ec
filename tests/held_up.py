"""`ledom tokenize` held up so that a test can stop it; its processes import little else."""

from __future__ import annotations

import os
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
    """Documents where all parts but the first wait longer than any test.

    A file that holds the process id signals this.
    """

    def __init__(self, documents: Documents, folder: Path) -> None:
        self.documents, self.folder = documents, folder
        self.num_bytes, self.source = documents.num_bytes, documents.source
        self.notes = documents.notes

    def settings(self) -> JsonObject:
        return self.documents.settings()

    def check(self) -> None:
        self.documents.check()

    def read(self, part: int = 0, num_parts: int = 1) -> Iterator[tuple[str, str | None]]:
        if part > 0:
            Path(f"{self.folder}/held.{part}").write_text(f"{os.getpid()}")
            time.sleep(2 * SECONDS)
        yield from self.documents.read(part, num_parts)


def ledom_held_up(*arguments: str) -> None:
    """Run a ledom command that reads such documents in its own process."""
    opened = reading.open_documents
    reading.open_documents = lambda *given: HeldUp(opened(*given), Path(given[0][0]).parent)
    ledom(*arguments)
