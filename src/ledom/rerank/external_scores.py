"""Columns: numbers that come with the candidates, such as a trained verifier's scores.

A column is a key of candidates.jsonl that holds a finite number, the larger the better, for every
candidate but the greedy ones. Under its own name it is a feature like any other. `self_certainty`,
which sampling writes where the backend sees whole distributions, is one. This module says which
columns are in use and whether they will do; it knows nothing of how they are weighed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ledom.core.errors import InputError
from ledom.core.records import SELF_CERTAINTY, Candidate, read_records
from ledom.rerank.candidate_table import FEATURES
from ledom.rerank.strategies import STRATEGIES

__all__ = ["check_columns", "check_names", "choose_columns", "read_candidates"]

_NAME = re.compile(r"\w[\w .-]*")


def read_candidates(
    path: Path,
    columns: Sequence[str] = (),
    check: Callable[[Candidate], object] | None = None,
) -> list[Candidate]:
    """The candidates in a file; raises `InputError` with file and line for a bad column.

    `check` may raise it for a candidate too.
    """
    check_names(columns)

    def check_both(candidate: Candidate) -> None:
        check_columns(candidate, columns)
        if check is not None:
            check(candidate)

    return read_records(path, Candidate, check_both)


def choose_columns(
    candidates: Sequence[Candidate], asked: Sequence[str] | None = None, needed: Iterable[str] = ()
) -> tuple[str, ...]:
    """The columns in use: those asked for, and those that weights need.

    With `asked` None it is `self_certainty` that is asked for, where every candidate has it. Raises
    `InputError` as `check_names` and `check_columns` do.
    """
    if asked is None:
        has_it = all(SELF_CERTAINTY in c.extra for c in candidates if not c.greedy)
        asked = [SELF_CERTAINTY] if has_it else []
    names = tuple(dict.fromkeys([*asked, *needed]))
    check_names(names)
    for candidate in candidates:
        check_columns(candidate, names)
    return names


def check_names(names: Iterable[str]) -> None:
    """Raise `InputError` for a name that cannot be a column's."""
    for name in names:
        if name in FEATURES or name in STRATEGIES:
            raise InputError(f"a column cannot be called {name!r}: ledom computes that itself")
        if name in Candidate.types:
            raise InputError(f"{name!r} is a part of every candidate, not a column of scores")
        if not _NAME.fullmatch(name):
            raise InputError(
                f"a column cannot be called {name!r}: give a key of the candidates made of "
                "letters, digits, spaces and _ . -"
            )


def check_columns(candidate: Candidate, names: Iterable[str]) -> None:
    """Raise `InputError` for a candidate that lacks one of these numbers; greedy ones may."""
    for name in () if candidate.greedy else names:
        candidate.column(name)
