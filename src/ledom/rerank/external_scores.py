"""External scores: numbers that come with the candidates, such as those of a trained verifier.

An external score is an extra field of candidates.jsonl: a finite number, larger for better
candidates. Every candidate needs it, except greedy ones. It is used as a feature, under the field's
name. One example is `self_certainty`, which sampling writes if the backend sees whole
distributions. This module chooses the fields to use and checks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ledom.core.errors import InputError
from ledom.core.records import Candidate, read_records
from ledom.rerank.candidate_table import EXTERNAL_LABELS, FEATURES
from ledom.rerank.strategies import STRATEGIES

__all__ = ["check_names", "choose_external_scores", "read_candidates"]

_NAME = re.compile(r"\w[\w .-]*")


def read_candidates(
    path: Path,
    names: Sequence[str] = (),
    check: Callable[[Candidate], object] | None = None,
) -> list[Candidate]:
    """Read a file of candidates, each of which must have the external scores `names`.

    `check` may raise for further reasons. Raises `InputError` with file and line for a bad record.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
    ...     _ = Path(file.name).write_text(
    ...         '{"problem_id": "p", "index": 0, "text": "4", "verifier": 0.9}')
    ...     read_candidates(Path(file.name), ["verifier"])[0].external_score("verifier")
    0.9
    """
    check_names(names)

    def check_both(candidate: Candidate) -> None:
        _check_external_scores(candidate, names)
        if check is not None:
            check(candidate)

    return read_records(path, Candidate, check_both)


def choose_external_scores(
    candidates: Sequence[Candidate], asked: Sequence[str] | None = None, needed: Iterable[str] = ()
) -> tuple[str, ...]:
    """The external scores to use: those `asked` for, and those that the weights `needed`.

    If `asked` is None, those that sampling writes (`self_certainty`, the confidences) are used,
    provided that every candidate has them. Greedy candidates need none. Raises `InputError` as
    `check_names` does, and for a candidate without one of the scores.

    >>> sure = Candidate(problem_id="p", index=0, text="2", extra={"self_certainty": 1.5})
    >>> choose_external_scores([sure])
    ('self_certainty',)
    """
    if asked is None:
        pool = [candidate for candidate in candidates if not candidate.greedy]
        asked = [name for name in EXTERNAL_LABELS if all(name in c.extra for c in pool)]
    names = tuple(dict.fromkeys([*asked, *needed]))
    check_names(names)
    for candidate in candidates:
        _check_external_scores(candidate, names)
    return names


def check_names(names: Iterable[str]) -> None:
    """Raise `InputError` for a name that an external score cannot have.

    >>> check_names(["text"])
    Traceback (most recent call last):
    ledom.core.errors.InputError: 'text' is a key of every candidate, not an extra score field
    """
    for name in names:
        if name in FEATURES or name in STRATEGIES:
            raise InputError(
                f"a score field cannot be called {name!r}: ledom computes a score of that name"
            )
        if name in Candidate.own_keys():
            raise InputError(f"{name!r} is a key of every candidate, not an extra score field")
        if not _NAME.fullmatch(name):
            raise InputError(
                f"a score field cannot be called {name!r}: give a key of the candidates made of "
                "letters, digits, spaces and _ . -"
            )


def _check_external_scores(candidate: Candidate, names: Iterable[str]) -> None:
    """Raise `InputError` if a candidate that is not greedy lacks one of these scores.

    >>> lacking = Candidate(problem_id="p", index=0, text="4")
    >>> _check_external_scores(lacking, ["verifier"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: candidate 0 of problem 'p' has no 'verifier', a score field ...
    """
    for name in () if candidate.greedy else names:
        candidate.external_score(name)
