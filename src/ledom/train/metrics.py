"""The metrics of a run: metrics.jsonl, optional trackers, and validation statistics.

    windows of the validation store -> losses -> ValidationStats -> keys of a row of metrics.jsonl

A row holds the metrics of one step. A run that resumes from a checkpoint drops the rows after it.
Validation reads the same windows and tokens in both directions, so twins can be compared window by
window. This module takes losses as an array and does not know about models, recipes or devices.

Shapes: T predicted tokens of a packed batch, in model order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Required, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from ledom.core.direction import Direction
from ledom.core.errors import InputError, TrainingError, in_one_line, needs_extra
from ledom.core.files import write_atomically, write_json, writing
from ledom.core.reading import JsonObject, as_type, first_problem, read_json, read_jsonl
from ledom.data.packing import PackedBatch, Windows

__all__ = ["Row", "ValidationStats", "load_tracker", "open_metrics", "read_metrics", "thinned"]

_MAX_BLOCKS = 512  # groups of windows in a row of metrics, so that a row has only a few kB
_MAX_SOURCES = 32
_OTHERS = "other sources"
_DIGITS = 6  # decimals of losses: far finer than any difference that is shown


Row = JsonObject  # numbers; at validations also strings, dicts and lists of numbers
Log = Callable[[Row], None]
T = TypeVar("T")

# Every real value is smaller, and a larger one would overflow an array of 64-bit integers.
_Number = Annotated[float, Field(ge=-(2.0**62), le=2.0**62)]
_Count = Annotated[int, Field(gt=0, le=2**62)]
_Position = Annotated[str, StringConstraints(pattern=r"^\d{1,18}$")]


class _CheckedRow(TypedDict, total=False):
    """The keys of a row that are read back, and their types."""

    step: Required[Annotated[int, Field(ge=0, le=2**62)]]
    loss: Required[_Number]
    tokens: Required[_Count]
    tokens_per_second: Annotated[float, Field(gt=0, le=2.0**62)]
    valid_loss: _Number
    valid_tokens: _Count
    valid_data: str
    valid_loss_by_position: dict[_Position, _Number]
    valid_tokens_by_position: dict[_Position, _Count]
    valid_loss_by_source: dict[str, _Number]
    valid_tokens_by_source: dict[str, _Count]
    valid_loss_by_window: list[_Number]
    valid_tokens_by_window: list[_Count]


_CHECK = TypeAdapter(_CheckedRow)
_REMEDY = "remove the line to read the rest"


@contextmanager
def open_metrics(
    folder: Path, step: int, trackers: Iterable[str] = (), settings: JsonObject | None = None
) -> Iterator[Log]:
    """Open a run's metrics.jsonl; yields a function that writes rows, each with its `step`.

    Rows after `step`, at which the run resumes, are dropped first. Trackers show `settings` as the
    run's configuration. Raises `OutputError` if the file cannot be written, `MissingExtraError` if
    a tracker is not installed, and `TrainingError` if it cannot start.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_metrics(Path(folder), step=0) as log:
    ...         log({"step": 1, "loss": 2.5, "tokens": 64})
    ...     read_metrics(Path(folder, "metrics.jsonl"))
    [{'step': 1, 'loss': 2.5, 'tokens': 64}]
    """
    file = folder / "metrics.jsonl"
    with ExitStack() as stack:
        logs = [
            stack.enter_context(_TRACKERS[name](name, folder, step, settings or {}))
            for name in trackers
        ]
        with writing(file):
            if file.is_file():  # drop what a stopped run wrote after its last checkpoint
                kept = [row for row in _rows(file) if row["step"] <= step]
                with write_atomically(file) as shorter:
                    shorter.writelines(json.dumps(row) + "\n" for row in kept)
            file.touch()

        def log(row: Row) -> None:
            with writing(file), file.open("a", encoding="utf-8") as out:  # closing writes too
                out.write(json.dumps(row) + "\n")
            for tracker in logs:
                tracker(_scalars(row))

        yield log


def read_metrics(file: Path) -> list[Row]:
    """The rows of the metrics.jsonl of a finished or running run.

    An incomplete last line is left out. Raises `InputError` for a file that is missing or empty,
    and for a damaged line, which it names.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
    ...     _ = Path(file.name).write_text('{"step": 1, "tokens": 100, "loss": 3.0}' + chr(10))
    ...     read_metrics(Path(file.name))
    [{'step': 1, 'tokens': 100, 'loss': 3.0}]
    """
    rows = list(_rows(file))
    if not rows:
        raise InputError("no rows yet: the first step has not finished", path=file)
    return rows


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced; always the last one.

    >>> thinned("abcdefg", 3)
    ['a', 'd', 'g']
    """
    step = -(-len(items) // most) or 1
    return list(items[::-1][::step][::-1])


def _scalars(row: Row) -> dict[str, float]:
    """The numbers in a row, for trackers; an entry of a dict is named `key/name`."""
    scalars: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            scalars |= {f"{key}/{name}": number for name, number in value.items()}
        elif isinstance(value, (int, float)):
            scalars[key] = value
    return scalars


def load_tracker(name: str) -> Any:
    """The tracker's module. Raises `MissingExtraError` if it is not installed.

    >>> load_tracker("absent")
    Traceback (most recent call last):
    ledom.core.errors.MissingExtraError: absent is not installed; run: pip install 'ledom[absent]'
    """
    with needs_extra(name, name):
        return import_module("torch.utils.tensorboard" if name == "tensorboard" else name)


@contextmanager
def _tensorboard(name: str, folder: Path, step: int, settings: JsonObject) -> Iterator[Log]:
    module = load_tracker(name)
    with module.SummaryWriter(str(folder / name), purge_step=step + 1) as writer:

        def log(row: Row) -> None:
            for key, value in row.items():
                if key != "step":
                    writer.add_scalar(key, value, int(row["step"]))

        yield log


@contextmanager
def _hosted(
    name: str, folder: Path, step: int, settings: JsonObject, **identity: str
) -> Iterator[Log]:
    """Weights & Biases or trackio, which have the same interface.

    A run that starts anew must not continue an earlier one of the same name, which trackio would.
    """
    module = load_tracker(name)
    run, resume = "-".join(folder.absolute().parts[-2:]), "allow" if step else "never"
    try:
        module.init(project="ledom", name=run, config=settings, resume=resume, **identity)
    except Exception as error:  # trackers have their own types of login and network errors
        raise TrainingError(
            f"key train.trackers: {name} cannot start ({in_one_line(error)}); log in to it, or "
            "train without it (train.trackers=[])"
        ) from error
    try:
        yield lambda row: module.log(row, step=int(row["step"]))
    finally:
        module.finish()


@contextmanager
def _wandb(name: str, folder: Path, step: int, settings: JsonObject) -> Iterator[Log]:
    """Weights & Biases resumes a run only by its id, never by its name."""
    file = folder / f"{name}.json"
    known = as_type(read_json(file), _TrackerRun, file) if step and file.is_file() else None
    run = known or _TrackerRun(uuid4().hex)
    with _hosted(name, folder, step, settings, id=run.id) as log:
        write_json(file, asdict(run))
        yield log


@dataclass(frozen=True)
class _TrackerRun:
    id: str


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _hosted}


def _rows(metrics: Path) -> Iterator[Row]:
    last = -1
    for number, row in read_jsonl(metrics, unfinished=True):
        try:
            _CHECK.validate_python(row, strict=True)
        except ValidationError as error:
            problem = first_problem(error).removesuffix("; put it in quotes")
            raise InputError(f"{problem}; {_REMEDY}", path=metrics, line=number) from None
        for part in ("position", "source", "window"):
            losses, tokens = (row.get(f"valid_{what}_by_{part}", ()) for what in ("loss", "tokens"))
            if tokens and _places(losses) != _places(tokens):
                problem = f"the keys valid_loss_by_{part} and valid_tokens_by_{part} do not match"
                raise InputError(f"{problem}; {_REMEDY}", path=metrics, line=number)
        if row["step"] <= last:
            problem = f"step {row['step']} comes after step {last}; remove rows that do not belong"
            raise InputError(problem, path=metrics, line=number)
        last = row["step"]
        yield row


def _places(parts: Collection[Any]) -> set[Any]:
    """The names of a validation's parts or, for a list, their indices."""
    return {*(parts if isinstance(parts, dict) else range(len(parts)))}


class ValidationStats:
    """Sums of losses over validation windows: in total, by position, by source and by window.

    A token's position is its index among the predicted tokens since the last attention boundary, in
    model order. Positions are binned by powers of two: 0, 1, 2-3, 4-7 and so on.
    """

    def __init__(self, windows: Windows, most: int) -> None:
        """Read at most `most` of the store's windows, spread evenly over it."""
        self.windows = windows
        count = min(len(windows), most)
        self.numbers: list[int] = (np.arange(count) * len(windows) // count).tolist()
        self._num_blocks = min(count, _MAX_BLOCKS)
        self._sources, self._source_of = _numbered(windows.store.document_sources())
        # Positions run from 0 to seq_len - 1.
        self._num_positions = 1 + max(windows.seq_len - 1, 0).bit_length()
        groups = self._num_positions + len(self._sources) + self._num_blocks
        self._sums = np.zeros((2, groups))  # of losses, of tokens
        self._digest = hashlib.sha256()

    def read(self, places: Sequence[int]) -> list[NDArray[np.int64]]:
        """The ids of the windows at `places` in `numbers`; read each place once, in order."""
        read = [self.windows[self.numbers[place]] for place in places]
        for window in read:
            self._digest.update(len(window).to_bytes(8, "little"))
            self._digest.update(window.astype("<i8").tobytes())
        return read

    def add(
        self,
        places: Sequence[int],
        batch: PackedBatch,
        losses: NDArray[np.float64],
        direction: Direction,
    ) -> None:
        """Add the losses [T] of the windows at `places`, packed in that order."""
        lengths = np.diff(batch.boundaries)
        positions = np.arange(len(losses)) - np.repeat(batch.boundaries[:-1], lengths)
        groups = [np.frexp(positions)[1]]  # the binary exponent is the number of the bin
        documents = [self.windows.documents(self.numbers[place]) for place in places]
        if self._sources:
            of_token = np.concatenate([direction.to_model_order(d) for d in documents])
            groups.append(self._source_of[of_token] + self._num_positions)
        blocks = np.array(places) * self._num_blocks // len(self.numbers)
        first_block = self._num_positions + len(self._sources)
        groups.append(np.repeat(blocks, [len(d) for d in documents]) + first_block)
        for group in groups:
            size = self._sums.shape[1]
            self._sums[0] += np.bincount(group, losses, size)
            self._sums[1] += np.bincount(group, minlength=size)

    def row(self, total: Callable[..., list[float]]) -> JsonObject:
        """The validation keys of a row of metrics; see docs/formats.md.

        `total` sums numbers over the processes of a run. Losses are in nats per token.
        """
        losses, tokens = np.array(total(*self._sums.ravel())).reshape(self._sums.shape)
        boundaries = np.cumsum([self._num_positions, len(self._sources)])
        by_position, by_source, by_window = (
            _means(*part)
            for part in zip(np.split(losses, boundaries), np.split(tokens, boundaries), strict=True)
        )
        # Every token is in exactly one bin.
        position_tokens = tokens[: self._num_positions].sum()
        starts = [str((1 << bits) >> 1) for bits in range(self._num_positions)]
        row: JsonObject = {
            "valid_loss": float(losses[: self._num_positions].sum() / position_tokens),
            "valid_tokens": int(position_tokens),
            "valid_data": self._digest.hexdigest()[:16],
        }
        for name, labels, (means, counts) in (
            ("position", starts, by_position),
            ("source", self._sources, by_source),
        ):
            read = [place for place, count in enumerate(counts) if count]
            if read:
                row[f"valid_loss_by_{name}"] = {labels[place]: means[place] for place in read}
                row[f"valid_tokens_by_{name}"] = {labels[place]: counts[place] for place in read}
        row["valid_loss_by_window"], row["valid_tokens_by_window"] = by_window
        return row


def _means(losses: NDArray[np.float64], tokens: NDArray[np.float64]) -> tuple[Any, Any]:
    means = np.round(losses / np.maximum(tokens, 1), _DIGITS)
    return means.tolist(), tokens.astype(int).tolist()


def _numbered(sources: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The names of the largest sources, and for each document the index of its source's name."""
    names = [name for name, _ in Counter(sources).most_common()]
    if len(names) > _MAX_SOURCES:
        names = [*names[: _MAX_SOURCES - 1], _OTHERS]
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places.get(name, len(names) - 1) for name in sources], np.int64)
