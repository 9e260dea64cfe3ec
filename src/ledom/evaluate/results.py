"""The results of an evaluation: values with intervals, differences, and notes.

Intervals are bootstrapped over documents, those with a common source together. Differences are
paired by document. This module does not know about models or the harness.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.evaluate.suites import Published
from ledom.report.intervals import bootstrap_interval, paired_share_interval, share_interval
from ledom.report.results import Interval

__all__ = [
    "ENTROPY",
    "Evaluation",
    "Measured",
    "Row",
    "TaskResult",
    "compare",
    "is_main",
    "reciprocal_ranks",
    "right_firsts",
]

ENTROPY = "cond. entropy"
"""The entropy of the choice given the question (forward), or of the question given the choice."""
_SHARE = re.compile(r"(\w+_)?acc(_\w+)?|exact_match|em|f1|mc[12]|pass@\d+")
"""Names of metrics, ours and the harness's, whose value for a document is from 0 to 1."""

Key = tuple[str, int]
"""A document: (task, number)."""


@dataclass(frozen=True)
class Measured:
    """One metric of one model with one scoring."""

    direction: Direction
    scoring: str
    metric: str
    values: Mapping[Key, float]
    """By document; empty if the metric has no value per document."""
    total: float | None = None
    """The metric of all documents together, if it is not the mean of `values`."""
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.direction} {self.scoring}".strip()


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    metric: str
    model: str
    scoring: str
    value: float | None
    interval: Interval | None = None
    less_forward: Interval | None = None
    """Paired difference from the forward model's default scoring."""
    less_reversed: Interval | None = None
    """Paired difference from the same model's reversed-prompt control."""
    note: str = ""
    unit: Literal["share", "nats", ""] = ""
    """Unit of the value and the intervals; empty for other metrics, such as perplexity."""


@dataclass(frozen=True)
class TaskResult:
    """The result of one benchmark."""

    task: str
    num_documents: int
    chance: float | None
    rows: list[Row]
    published: Sequence[Published] = ()
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The content of results.json."""

    ledom_version: str
    command: str
    limit: int | None
    models: Mapping[str, Mapping[str, str]]
    """Name and hash by direction."""
    tasks: Sequence[TaskResult]
    notes: Sequence[str]


def reciprocal_ranks(
    right: Mapping[str, Collection[str]], ranking: Iterable[tuple[str, str, float]]
) -> NDArray[np.float64]:
    """1 / (rank of the best right item) for each list; 0 if none is ranked. Their mean is MRR.

    `right` has the right items by list; `ranking` has (list, item, score), the best item of a list
    first. Items of equal score have no order: the mean over all of their orders counts.

    >>> ranking = [("q", "a", -1.0), ("q", "b", -2.0), ("q", "c", -2.0)]
    >>> reciprocal_ranks({"q": ["c"]}, ranking)  # (1/2 + 1/3) / 2
    array([0.41666667])
    """
    every = _chances_of_ranks(right, ranking)
    return np.array([sum(chance / rank for rank, chance in own.items()) for own in every], float)


def right_firsts(
    right: Mapping[str, Collection[str]], ranking: Iterable[tuple[str, str, float]]
) -> NDArray[np.float64]:
    """The chance that a right item is first, for each list; see `reciprocal_ranks`.

    >>> right_firsts({"q": ["b"]}, [("q", "a", -1.0), ("q", "b", -1.0)])
    array([0.5])
    """
    return np.array([own.get(1, 0.0) for own in _chances_of_ranks(right, ranking)], float)


def _chances_of_ranks(
    right: Mapping[str, Collection[str]], ranking: Iterable[tuple[str, str, float]]
) -> list[dict[int, float]]:
    """The chance of each rank of the best right item, for each list."""
    ranked: dict[str, list[tuple[bool, float]]] = {name: [] for name in right}
    for name, item, score in ranking:
        if name in ranked:
            ranked[name].append((item in right[name], score))
    return [_chances(own) for own in ranked.values()]


def _chances(ranked: Sequence[tuple[bool, float]]) -> dict[int, float]:
    """The chance of each rank of the best right item, from (is right, score), best first."""
    first = 1
    for _, tied in groupby(ranked, key=lambda one: one[1]):
        hits = [is_right for is_right, _ in tied]
        size, count = len(hits), sum(hits)
        if count:
            return {
                first + before: comb(size - 1 - before, count - 1) / comb(size, count)
                for before in range(size - count + 1)
            }
        first += size
    return {}


def is_main(metric: str) -> bool:
    """Whether the differences of a metric are shown; a filter of its answers does not matter.

    >>> is_main("acc"), is_main("exact_match (strict-match)"), is_main("acc_norm")
    (True, True, False)
    """
    return metric.partition(" ")[0] in ("acc", "exact_match")


def compare(
    measured: Sequence[Measured], groups: Mapping[Key, Hashable] | None = None
) -> list[Row]:
    """A row for each metric, model and scoring; `groups` names the source of each document.

    >>> right = {("task", 0): 1.0, ("task", 1): 0.0}
    >>> row, = compare([Measured(Direction.FORWARD, "conditional", "acc", right)])
    >>> row.model, row.value
    ('forward', 0.5)
    """
    return [_row(one, measured, groups or {}) for one in measured]


def _row(one: Measured, measured: Sequence[Measured], groups: Mapping[Key, Hashable]) -> Row:
    unit, values = _unit(one), _array(one.values)
    own = [groups.get(key, key) for key in one.values]
    interval = forward = control = None
    if one.values:
        find_interval = share_interval if unit == "share" else bootstrap_interval
        interval = find_interval(values, groups=own)
    if one.values and is_main(one.metric) and not one.note:
        if one.direction is Direction.REVERSE:
            forward = _paired(one, _find(measured, one.metric, Direction.FORWARD, None), own)
        if one.scoring != "reversed prompt":
            reversed_prompt = _find(measured, one.metric, one.direction, "reversed prompt")
            control = _paired(one, reversed_prompt, own)
    value = one.total if interval is None else interval.mean
    way, note = str(one.direction), one.note
    return Row(one.metric, way, one.scoring, value, interval, forward, control, note, unit)


def _unit(one: Measured) -> Literal["share", "nats", ""]:
    """The unit by the metric's name; a metric with values outside [0, 1] is not a share."""
    if one.metric == ENTROPY:
        return "nats"
    named = _SHARE.fullmatch(one.metric.partition(" ")[0]) is not None
    return "share" if named and all(0 <= value <= 1 for value in one.values.values()) else ""


def _find(
    measured: Iterable[Measured], metric: str, direction: Direction, scoring: str | None
) -> Measured | None:
    """The first match, as a model's default scoring comes first; None if it has a note."""
    for one in measured:
        if (one.metric, one.direction) == (metric, direction) and scoring in (None, one.scoring):
            return one if one.values and not one.note else None
    return None


def _paired(one: Measured, other: Measured | None, groups: Sequence[Hashable]) -> Interval | None:
    if other is None:
        return None
    if one.values.keys() != other.values.keys():
        raise InputError(
            f"{one.name} and {other.name} were measured on different documents; give another --out"
        )
    ordered = {key: other.values[key] for key in one.values}
    return paired_share_interval(_array(one.values), _array(ordered), groups)


def _array(values: Mapping[Key, float]) -> NDArray[np.float64]:
    return np.array([*values.values()], np.float64)
