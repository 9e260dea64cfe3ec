"""Compares the metrics of training runs in both directions.

    runs/NAME/{forward,reverse}/metrics.jsonl -> compare_runs -> Comparison

The gap is the reverse model's validation loss minus its forward twin's, in nats per token over the
same tokens: the "arrow of time" (Papadopoulos et al. 2024), which is above 0 if a text is easier
to learn forwards. This module reads only the files that training wrote; it loads no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.files import real_path
from ledom.report import results
from ledom.report.intervals import FloatArray, paired_interval
from ledom.report.runs import LOSS, TrainingCurve, read_curves, recipe_settings, trained_settings
from ledom.train.metrics import Row

__all__ = ["compare_runs"]

_FORWARD, _REVERSE = str(Direction.FORWARD), str(Direction.REVERSE)
_TRAINING_POINTS = 200  # per curve of training losses; each is a mean over neighboring steps
_RESAMPLES = 10_000
_RESAMPLES_BEFORE_LAST = 2000
_FEWEST_WINDOWS = 10  # of two windows, both agree on a sign by chance half of the time
_WITHOUT_EFFECT = (  # settings that do not change the loss, or that say where the inputs were
    *("name", "train.trackers", "init_from", "data.train", "data.valid", "data.tokenizer"),
)


def compare_runs(folders: Sequence[Path]) -> results.Comparison:
    """Report on one or more runs.

    Raises `InputError` as `read_curves` does, for a run given twice, and if two models were
    validated on different tokens.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for direction, loss in (("forward", 2.0), ("reverse", 2.1)):
    ...         Path(folder, direction).mkdir()
    ...         _ = Path(folder, direction, "metrics.jsonl").write_text(
    ...             f'{{"step": 1, "tokens": 100, "loss": 3.0, "valid_loss": {loss}}}' + chr(10))
    ...     (run,) = compare_runs([Path(folder)]).runs
    >>> round(run.final_gap.mean, 3)
    0.1
    """
    paths = [real_path(folder) for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("a run is named twice; name each once")
    names = _names(paths)
    runs = [read_curves(path, name) for path, name in zip(paths, names, strict=True)]
    curves = [curve for run in runs for curve in run.values()]
    notes = _check_same_tokens(curves)
    notes += [
        f"{curve.label}: {missing} of {curve.steps} steps have no row in its metrics; their tokens "
        "are not counted"
        for curve in curves
        if (missing := curve.steps - len(curve.rows)) > 0
    ]
    notes += [f"{c.label}: no validation yet" for c in curves if not c.validations]
    reports = [_run_report(*run) for run in zip(names, runs, paths, strict=True)]
    notes += [
        f"{report.name}: there is no gap, as no step has a validation of both directions"
        for report, run in zip(reports, runs, strict=True)
        if len(run) > 1 and report.final_gap is None and all(c.validations for c in run.values())
    ]
    return results.Comparison(
        title="Direction in training",
        runs=reports,
        seeds=list(_seeds(reports)),
        crossings=list(_crossings(curves)),
        notes=notes,
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that distinguish them, such as NAME or runs/NAME."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _check_same_tokens(curves: Sequence[TrainingCurve]) -> list[str]:
    """Raise `InputError` if validation data differ; returns notes on curves without a record."""
    known = [curve for curve in curves if curve.valid_data]
    for curve in known[1:]:
        if curve.valid_data != known[0].valid_data:
            first, second = (c.validations[-1][1].get("valid_tokens") for c in (known[0], curve))
            raise InputError(
                f"{known[0].label} and {curve.label} were validated on different tokens ({first} "
                f"and {second} of them); runs can be compared if they share data.valid, tokenizer, "
                "train.seq_len, data.packing and train.batch_size"
            )
    return [
        f"{curve.label}: its metrics do not say on which tokens it was validated; they are assumed "
        "to be the same as those of the others"
        for curve in curves
        if curve.validations and not curve.valid_data
    ]


def _run_report(name: str, curves: dict[str, TrainingCurve], folder: Path) -> results.RunComparison:
    report = results.RunComparison(
        name=name,
        directions={direction: _direction(curve) for direction, curve in curves.items()},
        settings=recipe_settings(folder),
    )
    if len(curves) < 2:
        return report
    forward, reverse = curves[_FORWARD], curves[_REVERSE]
    return replace(_with_gap(report, forward, reverse), differing=_differing(folder, curves))


def _differing(folder: Path, curves: dict[str, TrainingCurve]) -> list[str]:
    """See `RunComparison.differing`."""
    # From the checkpoints, because recipe.yaml is that of the direction that finished last.
    settings = [trained_settings(folder / way) for way in (_FORWARD, _REVERSE)]
    keys = [key for key in settings[0] if key in settings[1]]  # versions may have other keys
    pairs = [(key, *(own[key] for own in settings)) for key in keys if key not in _WITHOUT_EFFECT]
    seen = [{row["step"]: t for t, row in curve.validations} for curve in curves.values()]
    pairs += [
        (f"tokens seen by step {step}", seen[0][step], seen[1][step])
        for step in sorted(seen[0].keys() & seen[1].keys())[-1:]
    ]
    return [f"{key}: {forward}, {reverse}" for key, forward, reverse in pairs if forward != reverse]


def _direction(curve: TrainingCurve) -> results.DirectionResult:
    tokens, validations = curve.tokens, curve.validations
    rows = [row for _, row in validations]
    speeds = [row["tokens_per_second"] for row in curve.rows if "tokens_per_second" in row]
    return results.DirectionResult(
        steps=curve.steps,
        tokens=tokens[-1],
        tokens_per_second=median(speeds) if speeds else None,
        training=_training_curve(tokens, curve.rows),
        validation=results.ValidationCurve(
            step=[row["step"] for row in rows],
            tokens=[seen for seen, _ in validations],
            loss=[row[LOSS] for row in rows],
            by_position=_over_time(rows, "by_position"),
            by_source=_over_time(rows, "by_source"),
        ),
        final_loss=rows[-1][LOSS] if rows else None,
    )


def _training_curve(tokens: list[int], rows: list[Row]) -> results.LossCurve:
    """Mean loss over stretches of neighboring steps, weighted by tokens; at each stretch's end."""
    stretches = np.array_split(np.arange(len(rows)), min(len(rows), _TRAINING_POINTS))
    losses, weights = (np.array([row[key] for row in rows]) for key in ("loss", "tokens"))
    return results.LossCurve(
        tokens=[tokens[stretch[-1]] for stretch in stretches],
        loss=[float(np.average(losses[s], weights=weights[s])) for s in stretches],
    )


def _over_time(rows: list[Row], part: str) -> dict[str, list[float | None]]:
    """Each part's loss at each validation, by the part's name; None where it is missing."""
    parts: list[dict[str, float]] = [row.get(f"{LOSS}_{part}", {}) for row in rows]
    names = dict.fromkeys(name for losses in parts for name in losses)
    return {name: [losses.get(name) for losses in parts] for name in names}


def _with_gap(
    report: results.RunComparison, forward: TrainingCurve, reverse: TrainingCurve
) -> results.RunComparison:
    """Add the gap at each step where both were validated, and at the last of them its parts."""
    backward = {row["step"]: row for _, row in reverse.validations}
    both = [
        (seen, row, other)
        for seen, row in forward.validations
        if (other := backward.get(row["step"])) and row.get("valid_data") == other.get("valid_data")
    ]
    if not both:
        return report
    _, first, second = both[-1]
    gaps = []
    for seen, row, other in both:
        found = gap_of(row, other, _RESAMPLES if row is first else _RESAMPLES_BEFORE_LAST)
        mean = other[LOSS] - row[LOSS] if found is None else found.mean
        low, high = (found.low, found.high) if found else (None, None)
        gaps.append(results.Gap(step=row["step"], tokens=seen, mean=mean, low=low, high=high))
    return replace(
        report,
        gap=gaps,
        final_gap=results.FinalGap(
            **vars(gaps[-1]),
            forward=first[LOSS],
            reverse=second[LOSS],
            relative=second[LOSS] / first[LOSS] - 1 if first[LOSS] else None,
            num_tokens=first.get("valid_tokens"),
            num_windows=len(first.get(f"{LOSS}_by_window", [])) or None,
        ),
        gap_by_position=_gap_parts(first, second, "by_position"),
        gap_by_source=_gap_parts(first, second, "by_source"),
    )


def gap_of(forward: Row, reverse: Row, num_resamples: int = _RESAMPLES) -> results.Interval | None:
    """Reverse minus forward validation loss, nats per token, by a paired bootstrap over windows.

    Windows differ in length, so the mean over tokens is a ratio of two sums over windows; its
    linearization is resampled (Cochran, Sampling Techniques, 1977, chapter 6). None if the rows
    hold losses of fewer than ten windows, too few to resample. Raises `InputError` if their windows
    differ in number.
    """
    losses, weights = (
        [np.array(row.get(f"valid_{what}_by_window", []), float) for row in (forward, reverse)]
        for what in ("loss", "tokens")
    )
    if len({len(values) for values in (*losses, *weights)}) > 1:
        raise InputError(
            f"step {forward['step']}: the two directions have different numbers of windows"
        )
    if len(losses[0]) < _FEWEST_WINDOWS:
        return None
    sides = [_linearized(*side) for side in zip(losses, weights, strict=True)]
    return paired_interval(sides[1], sides[0], num_resamples)


def _linearized(losses: FloatArray, tokens: FloatArray) -> FloatArray:
    """Values [num_windows] whose plain mean equals the mean over tokens, and varies like it."""
    mean = np.average(losses, weights=tokens)
    values: FloatArray = mean + (losses - mean) * tokens / tokens.mean()
    return values


def _seeds(runs: Sequence[results.RunComparison]) -> Iterator[results.SeedGroup]:
    """The groups of pairs whose recipes differ only in name and seed; of one seed, the first."""
    alike: dict[str, dict[str, tuple[str, results.FinalGap]]] = {}
    for run in runs:
        if run.final_gap and run.settings and not run.differing:
            settings = {k: v for k, v in run.settings.items() if k not in ("name", "seed")}
            key = json.dumps([run.final_gap.step, settings], sort_keys=True)
            seed = json.dumps(run.settings.get("seed"))
            alike.setdefault(key, {}).setdefault(seed, (run.name, run.final_gap))
    for group in alike.values():
        if len(group) > 1:
            gaps = [gap.mean for _, gap in group.values()]
            yield results.SeedGroup(
                runs=[name for name, _ in group.values()],
                mean=fmean(gaps),
                deviation=stdev(gaps),
                lowest=min(gaps),
                highest=max(gaps),
            )


def _gap_parts(forward: Row, reverse: Row, part: str) -> list[results.PartGap]:
    """Losses and gap of each part that both rows have, in the forward row's order."""
    losses, others = (row.get(f"{LOSS}_{part}", {}) for row in (forward, reverse))
    tokens = forward.get(f"valid_tokens_{part}", {})
    return [
        results.PartGap(
            name=name,
            num_tokens=tokens.get(name),
            forward=loss,
            reverse=others[name],
            gap=others[name] - loss,
        )
        for name, loss in losses.items()
        if name in others
    ]


def _crossings(curves: Sequence[TrainingCurve]) -> Iterator[results.Crossing]:
    """When a model reaches the final loss of its twin, or of a model of its direction."""
    for curve, other in product([curve for curve in curves if curve.validations], repeat=2):
        if (curve.run == other.run) == (curve.direction == other.direction):
            continue
        seen, row = other.validations[-1]
        reached, exact = tokens_to_reach(curve, row[LOSS])
        yield results.Crossing(
            run=curve.run,
            direction=curve.direction,
            other_run=other.run,
            other_direction=other.direction,
            loss=row[LOSS],
            other_tokens=seen,
            tokens=reached,
            at_first_validation=not exact,
            share=None if reached is None else reached / seen,
            lowest=min(r[LOSS] for _, r in curve.validations),
        )


def tokens_to_reach(curve: TrainingCurve, loss: float) -> tuple[float | None, bool]:
    """(Tokens after which validation loss is first at most `loss`, whether that is exact).

    The number is interpolated linearly between validations; None if the loss is never reached. It
    is not exact but an upper bound if the loss was already reached at the first validation.
    """
    points = [(seen, row[LOSS]) for seen, row in curve.validations]
    if points and points[0][1] <= loss:
        return float(points[0][0]), False
    for (start, above), (end, below) in pairwise(points):
        if below <= loss:
            return start + (end - start) * (above - loss) / (above - below), True
    return None, True
