"""Where the documents of a token store came from."""

from __future__ import annotations

import logging

__all__ = ["SourceRuns"]

_NO_SOURCE = "no source"
_MOST_RUNS = 100_000  # in a manifest, which every reader of the store holds in memory


class SourceRuns:
    """Counts runs of documents that have the same source, for a manifest.

    >>> made = SourceRuns()
    >>> for source in ("web", "web", None):
    ...     made.add(source)
    >>> made.named("my store")
    [('web', 2), ('no source', 1)]
    """

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []

    def add(self, source: str | None, count: int = 1) -> None:
        """Count more documents of one source, or without any."""
        name = source or _NO_SOURCE
        if self.runs and self.runs[-1][0] == name:
            count += self.runs.pop()[1]
        if len(self.runs) <= _MOST_RUNS:  # the others are not counted
            self.runs.append((name, count))

    def named(self, place: object) -> list[tuple[str, int]]:
        """The runs; empty if no document has a source, or if there are too many to keep.

        Then a warning says so; `place` is what the documents are called in it.
        """
        if len(self.runs) > _MOST_RUNS:
            logging.getLogger("ledom").warning(
                "%s: the source changes over %d times from one document to the next, so the store "
                "does not keep it, and a validation cannot tell the sources apart; sort by source",
                *(place, _MOST_RUNS),
            )
            return []
        return self.runs if any(name != _NO_SOURCE for name, _ in self.runs) else []
