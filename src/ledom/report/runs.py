"""Reads a training run's folder: each direction's metrics, and the settings of its training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import JsonObject, exists, read_json
from ledom.core.strict_yaml import read_yaml
from ledom.train.metrics import Row, read_metrics

__all__ = ["LOSS", "TrainingCurve", "read_curves", "recipe_settings", "trained_settings"]

LOSS = "valid_loss"
"""The key of a row with a validation."""


@dataclass(frozen=True)
class TrainingCurve:
    """One training run: rows of metrics, and the tokens seen by the end of each.

    >>> rows = [{"tokens": 100}, {"tokens": 100, "valid_loss": 2.5}]
    >>> curve = TrainingCurve("tiny", "forward", rows)
    >>> curve.tokens, curve.validations
    ([100, 200], [(200, {'tokens': 100, 'valid_loss': 2.5})])
    """

    run: str
    direction: str
    rows: list[Row]

    @property
    def label(self) -> str:
        """The curve's display name."""
        return f"{self.run}, {self.direction}"

    @property
    def steps(self) -> int:
        """Steps taken; some may lack a row, if metrics.jsonl was damaged or removed."""
        return int(self.rows[-1]["step"])

    @cached_property
    def tokens(self) -> list[int]:
        """Tokens seen by the end of each row."""
        return list(accumulate(int(row["tokens"]) for row in self.rows))

    @cached_property
    def validations(self) -> list[tuple[int, Row]]:
        """Rows with a validation: (tokens seen by then, row)."""
        return [(t, row) for t, row in zip(self.tokens, self.rows, strict=True) if LOSS in row]

    @property
    def valid_data(self) -> str | None:
        """The hash of the data of the last validation; None if the metrics do not record it."""
        return next((row.get("valid_data") for _, row in reversed(self.validations)), None)


def read_curves(folder: Path, name: str | None = None) -> dict[str, TrainingCurve]:
    """The curves in a run's folder by direction, forward first; at least one.

    Raises `InputError` for a folder without metrics, and for damaged metrics.

    >>> read_curves(Path("no-run"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: no-run: no metrics of a run: neither forward/metrics.jsonl nor ...
    """
    found = {}
    for direction in map(str, Direction):
        file = folder / direction / "metrics.jsonl"
        if exists(file):
            found[direction] = TrainingCurve(name or folder.name, direction, read_metrics(file))
    if not found:
        raise InputError(
            "no metrics of a run: neither forward/metrics.jsonl nor reverse/metrics.jsonl; give a "
            "folder written by ledom train, such as runs/NAME",
            path=folder,
        )
    return found


def trained_settings(folder: Path) -> JsonObject:
    """The recipe in the newest checkpoint of a direction, by dotted key; empty without one.

    >>> trained_settings(Path("no-run/forward"))
    {}
    """
    files = [file for file in folder.glob("checkpoints/*/run.json") if file.parent.name.isdigit()]
    newest = max(files, key=lambda file: int(file.parent.name), default=None)
    return dict(_dotted(read_json(newest).get("recipe"))) if newest else {}


def recipe_settings(folder: Path) -> JsonObject:
    """The recipe of a run's folder by dotted key, such as optim.steps; empty without one.

    >>> recipe_settings(Path("no-run"))
    {}
    """
    recipe = folder / "recipe.yaml"
    return dict(_dotted(read_yaml(recipe))) if exists(recipe) else {}


def _dotted(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _dotted(value, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, tree
