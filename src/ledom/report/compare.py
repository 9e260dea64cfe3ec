"""Direction in training: what the metrics of forward and reverse runs say side by side.

    runs/NAME/{forward,reverse}/metrics.jsonl -> compare_runs -> a report object

The gap is the reverse model's validation loss less its forward twin's, in nats a token over the
same tokens: the "arrow of time" (Papadopoulos et al. 2024), which is above 0 where a text is easier
to learn forwards. This module reads files that training wrote. It loads no model, and knows nothing
of how a report is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.reading import exists, read_yaml, real_path
from ledom.report.intervals import Interval, paired_interval
from ledom.train.metrics import Row, read_metrics

__all__ = ["TrainingCurve", "compare_runs", "gap_of", "read_courses", "tokens_to_reach"]

_FORWARD, _REVERSE = str(Direction.FORWARD), str(Direction.REVERSE)
_LOSS = "valid_loss"
_TRAINING_POINTS = 200  # of a curve of training losses; each is a mean over neighboring steps
_RESAMPLES_ON_THE_WAY = 2000
_UNSAID = (
    "{}: its metrics do not say on which tokens it was validated; they are taken to be the same as "
    "its peers'"
)


@dataclass(frozen=True)
class TrainingCurve:
    """The course of one training: rows of metrics, and the tokens seen by the end of each."""

    run: str
    direction: str
    rows: list[Row]

    @property
    def tokens(self) -> list[int]:
        """Tokens seen up to and with each row."""
        return list(accumulate(int(row["tokens"]) for row in self.rows))

    @property
    def validations(self) -> list[tuple[int, Row]]:
        """Rows with a validation, and the tokens seen by then."""
        return [(t, row) for t, row in zip(self.tokens, self.rows, strict=True) if _LOSS in row]

    @property
    def valid_data(self) -> str | None:
        """The hash of what the last validation read; None where the metrics do not say."""
        return next((row.get("valid_data") for _, row in reversed(self.validations)), None)


def read_courses(folder: Path, name: str | None = None) -> dict[str, TrainingCurve]:
    """The courses of a run's folder by direction, forward first; at least one.

    Raises `InputError` for a folder that is no run, and for damaged metrics.
    """
    found = {}
    for direction in (_FORWARD, _REVERSE):
        file = folder / direction / "metrics.jsonl"
        if exists(file):
            found[direction] = TrainingCurve(name or folder.name, direction, read_metrics(file))
    if not found:
        raise InputError(
            "no metrics of a run: neither forward/metrics.jsonl nor reverse/metrics.jsonl; give a "
            "folder that ledom train made, such as runs/NAME",
            path=folder,
        )
    return found


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """The report object of one or more runs; its keys are set out in docs/formats.md.

    Raises `InputError` as `read_courses` does, and where two courses were validated on different
    tokens.
    """
    paths = [real_path(folder) for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("a run is named twice; name each once")
    names = _names(paths)
    runs = [read_courses(path, name) for path, name in zip(paths, names, strict=True)]
    courses = [course for run in runs for course in run.values()]
    notes = _check_same_tokens(courses)
    notes += [
        f"{course.run}, {course.direction}: no validation yet"
        for course in courses
        if not course.validations
    ]
    reports = [_run_report(*run) for run in zip(names, runs, paths, strict=True)]
    return {
        "title": "Direction in training",
        "runs": reports,
        "seeds": list(_seeds(reports)),
        "crossings": list(_crossings(courses)),
        "notes": notes,
    }


def _names(paths: Sequence[Path]) -> list[str]:
    """As few last parts of the paths as tell them apart."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _check_same_tokens(courses: Sequence[TrainingCurve]) -> list[str]:
    """Notes on the courses of which it is not known what they were validated on."""
    known = [course for course in courses if course.valid_data]
    for course in known[1:]:
        if course.valid_data != known[0].valid_data:
            first, second = (f"{c.run}, {c.direction}" for c in (known[0], course))
            counts = [c.validations[-1][1].get("valid_tokens") for c in (known[0], course)]
            raise InputError(
                f"{first} and {second} were validated on different tokens ({counts[0]} and "
                f"{counts[1]} of them); runs can be compared that share data.valid, tokenizer, "
                "train.seq_len, data.packing and train.batch_size"
            )
    return [
        _UNSAID.format(f"{course.run}, {course.direction}")
        for course in courses
        if course.validations and not course.valid_data
    ]


def _run_report(name: str, courses: dict[str, TrainingCurve], folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = {
        "name": name,
        "directions": {way: _course_report(course) for way, course in courses.items()},
        "settings": _settings(folder / "recipe.yaml"),
    }
    if len(courses) == 2:
        report |= _gap_report(courses[_FORWARD], courses[_REVERSE])
    return report


def _settings(recipe: Path) -> dict[str, Any]:
    """The recipe's keys with dots, such as optim.steps."""
    if not exists(recipe):
        return {}
    return dict(_flat(read_yaml(recipe)))


def _flat(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, tree


def _course_report(course: TrainingCurve) -> dict[str, Any]:
    tokens, validations = course.tokens, course.validations
    rows = [row for _, row in validations]
    speeds = [row["tokens_per_second"] for row in course.rows if "tokens_per_second" in row]
    return {
        "steps": int(course.rows[-1]["step"]),
        "tokens": tokens[-1],
        "tokens_per_second": median(speeds) if speeds else None,
        "training": _training_curve(tokens, course.rows),
        "validation": {
            "step": [int(row["step"]) for row in rows],
            "tokens": [seen for seen, _ in validations],
            "loss": [row[_LOSS] for row in rows],
            **{part: _over_time(rows, part) for part in ("by_position", "by_source")},
        },
        "final_loss": rows[-1][_LOSS] if rows else None,
    }


def _training_curve(tokens: list[int], rows: list[Row]) -> dict[str, list[float]]:
    """Mean loss of neighboring steps, weighted by their tokens, at the end of each stretch."""
    stretches = np.array_split(np.arange(len(rows)), min(len(rows), _TRAINING_POINTS))
    losses, weights = (np.array([row[key] for row in rows]) for key in ("loss", "tokens"))
    return {
        "tokens": [tokens[stretch[-1]] for stretch in stretches],
        "loss": [float(np.average(losses[s], weights=weights[s])) for s in stretches],
    }


def _over_time(rows: list[Row], part: str) -> dict[str, list[float | None]]:
    """By name, a loss a validation; None where one has none."""
    parts: list[dict[str, float]] = [row.get(f"{_LOSS}_{part}", {}) for row in rows]
    names = dict.fromkeys(name for losses in parts for name in losses)
    return {name: [losses.get(name) for losses in parts] for name in names}


def _gap_report(forward: TrainingCurve, reverse: TrainingCurve) -> dict[str, Any]:
    """The gap at every step at which both were validated, and its parts at the last of these."""
    backward = {int(row["step"]): row for _, row in reverse.validations}
    both = [
        (seen, row, backward[int(row["step"])])
        for seen, row in forward.validations
        if int(row["step"]) in backward
        and row.get("valid_data") == backward[int(row["step"])].get("valid_data")
    ]
    if not both:
        return {}
    _, first, second = both[-1]
    gaps = [
        {"step": int(row["step"]), "tokens": seen, **_gap_json(row, other, last=row is first)}
        for seen, row, other in both
    ]
    return {
        "gap": gaps,
        "final_gap": {
            **gaps[-1],
            "forward": first[_LOSS],
            "reverse": second[_LOSS],
            "relative": second[_LOSS] / first[_LOSS] - 1,
            "num_tokens": first.get("valid_tokens"),
            "num_windows": len(first.get(f"{_LOSS}_by_window", [])) or None,
        },
        **{f"gap_{part}": _gap_parts(first, second, part) for part in ("by_position", "by_source")},
    }


def _gap_json(forward: Row, reverse: Row, last: bool) -> dict[str, float | None]:
    gap = gap_of(forward, reverse, 10_000 if last else _RESAMPLES_ON_THE_WAY)
    if gap is None:
        return {"mean": reverse[_LOSS] - forward[_LOSS], "low": None, "high": None}
    return {**gap.to_json()}


def gap_of(forward: Row, reverse: Row, num_resamples: int = 10_000) -> Interval | None:
    """Reverse less forward validation loss, nats a token, by a paired bootstrap over windows.

    The mean over tokens is a ratio of two sums over windows, which differ in length; its
    linearization is what is resampled (Cochran, Sampling Techniques, 1977, chapter 6). None where
    the rows hold no losses by window, or a single one.
    """
    losses, weights = (
        [np.array(row.get(f"valid_{what}_by_window", []), float) for row in (forward, reverse)]
        for what in ("loss", "tokens")
    )
    if len(losses[0]) < 2:
        return None
    if len({len(values) for values in (*losses, *weights)}) > 1:
        raise InputError(
            f"step {forward['step']}: the two directions have other numbers of windows"
        )
    sides = [_linearized(*side) for side in zip(losses, weights, strict=True)]
    return paired_interval(sides[1], sides[0], num_resamples)


def _linearized(losses: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values [num_windows] whose plain mean is the mean over tokens, and varies as it does."""
    mean = np.average(losses, weights=tokens)
    values: NDArray[np.float64] = mean + (losses - mean) * tokens / tokens.mean()
    return values


def _seeds(runs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pairs whose recipes differ in name and seed alone: how far apart their final gaps lie."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.get("final_gap") and run["settings"]:
            settings = {k: v for k, v in run["settings"].items() if k not in ("name", "seed")}
            step = run["final_gap"]["step"]
            alike.setdefault(json.dumps([step, settings], sort_keys=True), []).append(run)
    for group in alike.values():
        if len(group) > 1:
            gaps = [run["final_gap"]["mean"] for run in group]
            yield {
                "runs": [run["name"] for run in group],
                "mean": fmean(gaps),
                "deviation": stdev(gaps),
                "lowest": min(gaps),
                "highest": max(gaps),
            }


def _gap_parts(forward: Row, reverse: Row, part: str) -> list[dict[str, Any]]:
    """Losses and gap of each part that both rows know, in the forward row's order."""
    losses, others = (row.get(f"{_LOSS}_{part}", {}) for row in (forward, reverse))
    tokens = forward.get(f"valid_tokens_{part}", {})
    return [
        {
            "name": name,
            "num_tokens": tokens.get(name),
            _FORWARD: loss,
            _REVERSE: others[name],
            "gap": others[name] - loss,
        }
        for name, loss in losses.items()
        if name in others
    ]


def _crossings(courses: Sequence[TrainingCurve]) -> Iterator[dict[str, Any]]:
    """For each pair of twins or of runs in one direction: when one reaches the other's end."""
    for course in courses:
        for other in courses:
            related = (course.run == other.run) != (course.direction == other.direction)
            if related and course.validations and other.validations:
                seen, row = other.validations[-1]
                reached, exact = tokens_to_reach(course, row[_LOSS])
                yield {
                    "run": course.run,
                    "direction": course.direction,
                    "other_run": other.run,
                    "other_direction": other.direction,
                    "loss": row[_LOSS],
                    "other_tokens": seen,
                    "tokens": reached,
                    "at_first_validation": not exact,
                    "share": None if reached is None else reached / seen,
                    "lowest": min(r[_LOSS] for _, r in course.validations),
                }


def tokens_to_reach(course: TrainingCurve, loss: float) -> tuple[float | None, bool]:
    """Tokens after which validation loss is first at most `loss`, and whether that is exact.

    Interpolated linearly between validations. None where it never is; not exact where it is at the
    first validation already, so that it may have been before.
    """
    points = [(seen, row[_LOSS]) for seen, row in course.validations]
    if points and points[0][1] <= loss:
        return float(points[0][0]), False
    for (start, above), (end, below) in pairwise(points):
        if below <= loss:
            return start + (end - start) * (above - loss) / (above - below), True
    return None, True
