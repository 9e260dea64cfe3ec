"""The report of `ledom compare` as files: compare.json, compare.md, compare.html."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ledom.report import curves, results
from ledom.report.formatting import (
    MISSING,
    clean,
    count,
    interval,
    number,
    render_template,
    to_json,
    verdict,
    write_pages,
)
from ledom.train.metrics import thinned

__all__ = ["claims", "render", "write_comparison"]

Rows = list[list[str]]
"""Rows of cells; the first row is the head."""

_GAP_ROWS = 12  # in the table of gaps over training
_VERDICTS = {  # by `verdict`, which calls a gap above 0 better
    "better": "shown for this pair: the reverse model's loss is higher; the interval excludes 0",
    "worse": "shown for this pair: the reverse model's loss is lower; the interval excludes 0",
    "open": "nothing shown: the interval includes 0",
    "unknown": "no interval: these metrics have the losses of fewer than ten windows",
}

_CAUTION = (
    "The interval is a paired bootstrap over the validation windows. It shows whether these two "
    "models differ on text like this. Another seed gives another gap; runs that differ only in "
    "name and seed show how much it varies."
)


def write_comparison(folder: Path, report: results.Comparison) -> Path:
    """Write compare.json, compare.md and compare.html into `folder`; returns the page's path.

    Raises `OutputError` if the folder cannot be written.
    """
    return write_pages(folder, "compare", to_json(report), partial(render, report))


def render(report: results.Comparison, kind: str = "html") -> str:
    """The report as one `html` page that needs no network and no script, or as Markdown (`md`).

    The page needs at least one run. The Markdown has the same tables, but no figures.

    >>> print(render(results.Comparison(title="Direction in training", runs=[]), "md"), end="")
    # Direction in training
    """
    report = clean(report)
    drawn = _figures(report.runs) if kind == "html" else {}
    view = {
        "report": report,
        "claims": _claims(report),
        "tables": _tables(report),
        "caution": _CAUTION,
    }
    return render_template(f"compare.{kind}", view, drawn)


def _figures(runs: Sequence[results.RunComparison]) -> dict[str, str]:
    return {
        "loss": curves.loss_figure(runs),
        "gap": curves.gap_figure(runs),
        "loss_by_position": curves.loss_by_position_figure(runs),
        "gap_by_position": curves.gap_by_position_figure(runs),
        "by_source": curves.parts_figure(runs[0], "by_source"),
        "by_position": curves.parts_figure(runs[0], "by_position"),
    }


def claims(report: results.Comparison) -> list[str]:
    """The gaps in words: a line per run with both directions, and a line per group of seeds.

    >>> claims(results.Comparison(title="", runs=[]))
    []
    """
    return [f"{c.claim}: {c.value}; {c.verdict}" for c in _claims(clean(report))]


@dataclass(frozen=True)
class _Claim:
    """A gap in words."""

    claim: str
    value: str
    verdict: str
    is_shown: bool


def _claims(report: results.Comparison) -> list[_Claim]:
    of_runs = [_claim(run, run.final_gap) for run in report.runs if run.final_gap]
    return of_runs + [_claim_of_seeds(group) for group in report.seeds]


def _claim(run: results.RunComparison, gap: results.FinalGap) -> _Claim:
    shown = verdict(gap.interval) if gap.interval else "unknown"
    others = (
        "nothing shown: these are not twins, as they differ in more than direction: "
        f"{'; '.join(run.differing)}"
    )
    share = "" if gap.relative is None else f", {number(100 * gap.relative, 2, '+')}%"
    windows = f" in {gap.num_windows:,} windows" if gap.num_windows else ""
    tokens = f", on {gap.num_tokens:,} tokens{windows}" if gap.num_tokens else ""
    return _Claim(
        claim=f"{run.name}: after step {gap.step:,} the reverse model is at "
        f"{number(gap.reverse, 3)} nats per token, its forward twin at "
        f"{number(gap.forward, 3)}{tokens}",
        value=_gap_text(gap) + share,
        verdict=others if run.differing else _VERDICTS[shown],
        is_shown=shown in ("better", "worse") and not run.differing,
    )


def _claim_of_seeds(group: results.SeedGroup) -> _Claim:
    low, high = (number(end, 4, "+") for end in (group.lowest, group.highest))
    one_sign = group.lowest > 0 or group.highest < 0
    return _Claim(
        claim=f"{len(group.runs)} pairs that differ only in their seed "
        f"({', '.join(group.runs)}): the mean of their gaps",
        value=f"{number(group.mean, 4, '+')}, from {low} to {high}",
        verdict=f"{'all of the same sign' if one_sign else 'of both signs'}; standard deviation "
        f"between pairs {number(group.deviation, 4)}",
        is_shown=one_sign,
    )


def _gap_text(gap: results.Gap) -> str:
    """`+0.0182 [+0.0098, +0.0266]`."""
    return interval(gap.interval, 4, "+") if gap.interval else number(gap.mean, 4, "+")


# --- tables ---


def _tables(report: results.Comparison) -> dict[str, Rows]:
    runs = report.runs
    made = {
        "Models": _models_table(runs),
        "The gap over training": _gap_table(runs),
        "The gap by source": _parts_table("source", [(r.name, r.gap_by_source) for r in runs]),
        "The gap by position": _parts_table(
            "tokens read before", [(r.name, r.gap_by_position) for r in runs], curves.position_label
        ),
        "Tokens to another's final loss": _crossings_table(report.crossings),
        "Settings": _settings_table(runs),
    }
    return {heading: rows for heading, rows in made.items() if len(rows) > 1}


def _models_table(runs: Sequence[results.RunComparison]) -> Rows:
    rows = [["run", "direction", "steps", "tokens seen", "tokens/s", "validation loss"]]
    for run in runs:
        planned = run.settings.get("optim.steps")
        for direction, result in run.directions.items():
            unfinished = isinstance(planned, int) and result.steps < planned
            steps = f"{result.steps:,}" + (f" of {planned:,}" if unfinished else "")
            speed, loss = count(result.tokens_per_second), number(result.final_loss, 4)
            rows.append([run.name, direction, steps, count(result.tokens), speed, loss])
    return rows


def _gap_table(runs: Sequence[results.RunComparison]) -> Rows:
    rows = [["run", "step", "tokens seen", "reverse minus forward, nats per token"]]
    for run in runs:
        rows += [
            [run.name, f"{point.step:,}", count(point.tokens), _gap_text(point)]
            for point in thinned(run.gap, _GAP_ROWS)
        ]
    return rows


def _parts_table(
    heading: str,
    by_run: Sequence[tuple[str, Sequence[results.PartGap]]],
    label: Callable[[str], str] = str,
) -> Rows:
    rows = [["run", heading, "tokens", "forward", "reverse", "reverse minus forward"]]
    for run, parts in by_run:
        for part in parts:
            losses = [number(part.forward, 3), number(part.reverse, 3), number(part.gap, 4, "+")]
            rows.append([run, label(part.name), count(part.num_tokens), *losses])
    return rows


def _crossings_table(crossings: Sequence[results.Crossing]) -> Rows:
    rows = [["model", "reaches the final loss of", "loss", "after tokens", "the other's tokens"]]
    for row in crossings:
        reached = f"never; its lowest is {number(row.lowest, 4)}"
        if row.tokens is not None and row.share is not None:
            early = "at most " if row.at_first_validation else ""
            reached = f"{early}{count(row.tokens)} ({number(100 * row.share, 0)}%)"
        model, other = f"{row.run}, {row.direction}", f"{row.other_run}, {row.other_direction}"
        rows.append([model, other, number(row.loss, 4), reached, count(row.other_tokens)])
    return rows


def _settings_table(runs: Sequence[results.RunComparison]) -> Rows:
    """A column per run; settings that differ come first."""
    known = [run for run in runs if run.settings]
    keys = list(dict.fromkeys(key for run in known for key in run.settings))
    found = {key: [run.settings.get(key) for run in known] for key in keys}
    rows = [[key, *(MISSING if v is None else str(v) for v in found[key])] for key in keys]
    rows.sort(key=lambda row: len(set(row[1:])) < 2)
    return [["setting", *(run.name for run in known)], *rows]
