"""Where a run's metrics go: metrics.jsonl always, trackers where the recipe asks for them.

A row is what was measured in one step. A run that resumes from a checkpoint drops the rows after
it. Nothing here knows what the numbers mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ledom.core.errors import InputError, MissingExtraError, OutputError
from ledom.core.files import write_atomically
from ledom.core.reading import read_jsonl

__all__ = ["Row", "open_metrics", "read_metrics"]

Row = dict[str, Any]  # numbers; at validations also text, and numbers by name or in a list
Log = Callable[[Row], None]


@contextmanager
def open_metrics(
    folder: Path, step: int, trackers: Iterable[str] = (), settings: dict[str, Any] | None = None
) -> Iterator[Log]:
    """A function that writes rows (each with its `step`) of a run that resumes at `step`.

    `settings` is what trackers show as the run's. Raises `OutputError` when the file cannot be
    written, `MissingExtraError` when a tracker is not installed.
    """
    file = folder / "metrics.jsonl"
    with ExitStack() as stack:
        logs = [
            stack.enter_context(_TRACKERS[name](name, folder, step, settings or {}))
            for name in trackers
        ]
        try:
            _forget_after(file, step)
            out = stack.enter_context(file.open("a", encoding="utf-8"))
        except OSError as error:
            raise OutputError(f"{file}: cannot be written: {error}") from error

        def log(row: Row) -> None:
            try:
                out.write(json.dumps(row) + "\n")
                out.flush()
            except OSError as error:
                raise OutputError(f"{file}: cannot be written: {error}") from error
            for tracker in logs:
                tracker(_scalars(row))

        yield log


def read_metrics(file: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl, finished or not.

    A last line that a run has not finished writing is left out. Raises `InputError` for a file
    that is missing or empty, and names the line that is damaged.
    """
    rows = list(_rows(file))
    if not rows:
        raise InputError("no rows yet: the first step has not finished", path=file)
    return rows


def _scalars(row: Row) -> dict[str, float]:
    """What trackers draw: the numbers, those by name as `key/name`."""
    scalars: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            scalars |= {f"{key}/{name}": number for name, number in value.items()}
        elif isinstance(value, (int, float)):
            scalars[key] = value
    return scalars


@contextmanager
def _tensorboard(name: str, folder: Path, step: int, settings: dict[str, Any]) -> Iterator[Log]:
    try:
        module = import_module("torch.utils.tensorboard")
    except ImportError:
        raise MissingExtraError(name, name) from None
    with module.SummaryWriter(str(folder / name), purge_step=step + 1) as writer:

        def log(row: Row) -> None:
            for key, value in row.items():
                if key != "step":
                    writer.add_scalar(key, value, int(row["step"]))

        yield log


@contextmanager
def _hosted(name: str, folder: Path, step: int, settings: dict[str, Any]) -> Iterator[Log]:
    """Weights & Biases, or trackio, which speaks its language."""
    try:
        module = import_module(name)
    except ImportError:
        raise MissingExtraError(name, name) from None
    run = "-".join(folder.absolute().parts[-2:])
    module.init(project="ledom", name=run, config=settings, resume="allow")
    try:
        yield lambda row: module.log(row, step=int(row["step"]))
    finally:
        module.finish()


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _hosted, "trackio": _hosted}


def _forget_after(metrics: Path, step: int) -> None:
    """Drop the rows that a stopped run wrote after its last checkpoint."""
    if metrics.is_file():
        kept = [row for row in _rows(metrics) if row["step"] <= step]
        with write_atomically(metrics) as out:
            out.writelines(json.dumps(row) + "\n" for row in kept)


def _rows(metrics: Path) -> Iterator[Row]:
    last = -1
    for number, row in read_jsonl(metrics, unfinished=True):
        if not _is_row(row):
            raise InputError(
                "not a row with the numbers step, loss and tokens; remove the line to read the "
                "rest",
                path=metrics,
                line=number,
            )
        if row["step"] <= last:
            raise InputError(
                f"step {row['step']} comes after step {last}; remove the rows that do not belong",
                path=metrics,
                line=number,
            )
        last = row["step"]
        yield row


def _is_row(row: Row) -> bool:
    numbers = [row.get("step"), row.get("loss"), row.get("tokens"), row.get("valid_loss", 0.0)]
    # A count of a run's fits 64 bits, and no array holds a larger one.
    if not all(isinstance(n, (int, float)) and not abs(n) > 2**62 for n in numbers):
        return False
    return bool(row["step"] >= 0 and row["tokens"] >= 0)
