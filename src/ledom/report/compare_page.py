"""Writes the report of `ledom compare`: compare.json, and from it compare.md and compare.html.

The JSON object is the single source; the two renderings are pure functions of it. Its keys are set
out in docs/formats.md. This module computes no statistics, and knows nothing of metrics files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ledom.report import curves
from ledom.report.numbers import MISSING, number
from ledom.report.page import clean, escape, markdown_table, plain, render_template, write_pages

__all__ = ["claims", "render_html", "render_markdown", "write_comparison"]

_GAP_ROWS = 12  # of the table of gaps over training
_VERDICTS = {
    "higher": "shown for this pair: the reverse model's loss is higher; the interval excludes 0",
    "lower": "shown for this pair: the reverse model's loss is lower; the interval excludes 0",
    "open": "nothing shown: the interval includes 0",
    "unknown": "no interval: these metrics hold no losses by window",
}

_CAUTION = (
    "The interval is a paired bootstrap over the validation windows: it says whether these two "
    "models differ on text like this. Twins of another seed differ by another gap: runs that "
    "differ in name and seed alone show by how much."
)


def write_comparison(folder: Path, report: dict[str, Any]) -> Path:
    """Write compare.json, compare.md and compare.html into `folder`; returns the page's path.

    Raises `OutputError` where the folder cannot be written.
    """
    return write_pages(folder, "compare", report, render_markdown, render_html)


def render_html(report: dict[str, Any]) -> str:
    """The report as one page that needs no network and no script."""
    view = _view(report)
    runs = view["runs"]
    figures = {
        "loss": curves.loss_figure(runs),
        "gap": curves.gap_figure(runs),
        "loss_by_position": curves.loss_by_position_figure(runs),
        "gap_by_position": curves.gap_by_position_figure(runs),
    }
    for part in ("by_source", "by_position"):
        figures[part] = curves.parts_figure(runs[0], part)
    return render_template("compare.html", {}, view, figures)


def render_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the same tables, without the figures."""
    view = _view(report)
    parts = [f"# {escape(view['title'])}"]
    parts += [
        "\n".join(f"- **{escape(row['claim'])}** ({row['verdict']})" for row in view["claims"])
    ]
    parts += ["\n".join(f"* {escape(note)}" for note in view["notes"])]
    parts += [view["caution"]] if view["claims"] else []
    for heading, table in view["tables"].items():
        parts += [f"## {heading}", markdown_table(table)]
    return "\n\n".join(part for part in parts if part) + "\n"


def claims(report: dict[str, Any]) -> list[str]:
    """A line for each run with both directions, and for runs of several seeds: what the gap is."""
    return [f"{row['claim']}: {row['verdict']}" for row in _view(report)["claims"]]


def _verdict(gap: dict[str, Any]) -> str:
    """`higher` or `lower` where the gap's interval excludes 0, `open` where it includes it."""
    if gap["low"] is None or gap["high"] is None:
        return "unknown"
    return "higher" if gap["low"] > 0 else "lower" if gap["high"] < 0 else "open"


def _view(report: dict[str, Any]) -> dict[str, Any]:
    view: dict[str, Any] = clean(plain(report))
    runs: list[dict[str, Any]] = view["runs"]
    tables: dict[str, Callable[[Sequence[dict[str, Any]]], list[list[str]]]] = {
        "Models": _models_table,
        "The gap over training": _gap_table,
        "The gap by source": lambda runs: _parts_table(runs, "by_source"),
        "The gap by position": lambda runs: _parts_table(runs, "by_position"),
    }
    made = {heading: table(runs) for heading, table in tables.items()}
    made["Tokens to another's final loss"] = _crossings_table(view["crossings"])
    made["Settings"] = _settings_table(runs)
    return view | {
        "claims": [_claim(run) for run in runs if run.get("final_gap")]
        + [_claim_of_seeds(group) for group in view["seeds"]],
        "caution": _CAUTION,
        "tables": {heading: rows for heading, rows in made.items() if len(rows) > 1},
    }


def _claim(run: dict[str, Any]) -> dict[str, str]:
    """What a run's gap comes to, in words."""
    gap = run["final_gap"]
    found = _verdict(gap)
    windows = f" in {gap['num_windows']:,} windows" if gap.get("num_windows") else ""
    tokens = f", on {gap['num_tokens']:,} tokens{windows}" if gap.get("num_tokens") else ""
    return {
        "claim": f"{run['name']}: after step {gap['step']:,} the reverse model is at "
        f"{number(gap['reverse'], 3)} nats a token, its forward twin at "
        f"{number(gap['forward'], 3)}{tokens}",
        "verdict": f"{_interval(gap)}, {number(100 * gap['relative'], 2, '+')} %; "
        f"{_VERDICTS[found]}",
        "words": _VERDICTS[found],
        "value": _interval(gap),
        "relative": f"{number(100 * gap['relative'], 2, '+')} %",
        "class": "better" if found in ("higher", "lower") else "open",
    }


def _claim_of_seeds(group: dict[str, Any]) -> dict[str, str]:
    """What the gaps of pairs come to that differ in their seed alone, in words."""
    ends = [number(group[key], 4, "+") for key in ("lowest", "highest")]
    one_sign = group["lowest"] > 0 or group["highest"] < 0
    value = f"{number(group['mean'], 4, '+')}, from {ends[0]} to {ends[1]}"
    words = (
        f"{'all of one sign' if one_sign else 'of either sign'}; standard deviation between pairs "
        f"{number(group['deviation'], 4)}"
    )
    return {
        "claim": f"{len(group['runs'])} pairs that differ in their seed alone "
        f"({', '.join(group['runs'])}): the mean of their gaps",
        "verdict": f"{value}; {words}",
        "words": words,
        "value": value,
        "relative": "",
        "class": "better" if one_sign else "open",
    }


def _interval(gap: dict[str, Any]) -> str:
    """`+0.0182 [+0.0098, +0.0266]`."""
    mean, low, high = (number(gap[key], 4, "+") for key in ("mean", "low", "high"))
    return mean if MISSING in (low, high) else f"{mean} [{low}, {high}]"


# --- tables: rows of cells, the head first ---


def _models_table(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["run", "direction", "steps", "tokens seen", "tokens/s", "validation loss"]]
    for run in runs:
        planned = run["settings"].get("optim.steps")
        for way, course in run["directions"].items():
            steps = f"{course['steps']:,}"
            if isinstance(planned, int) and course["steps"] < planned:
                steps += f" of {planned:,}"
            loss = number(course["final_loss"], 4)
            speed = _count(course["tokens_per_second"])
            rows.append([run["name"], way, steps, _count(course["tokens"]), speed, loss])
    return rows


def _gap_table(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["run", "step", "tokens seen", "reverse less forward, nats a token"]]
    for run in runs:
        points = run.get("gap") or []
        step = -(-len(points) // _GAP_ROWS) or 1
        rows += [
            [run["name"], f"{point['step']:,}", _count(point["tokens"]), _interval(point)]
            for point in points[::-1][::step][::-1]
        ]
    return rows


def _parts_table(runs: Sequence[dict[str, Any]], part: str) -> list[list[str]]:
    name = {"by_source": "source", "by_position": "tokens read before"}[part]
    rows = [["run", name, "tokens", "forward", "reverse", "reverse less forward"]]
    for run in runs:
        for row in run.get(f"gap_{part}") or []:
            label = row["name"] if part == "by_source" else curves.position_label(row["name"])
            losses = [number(row["forward"], 3), number(row["reverse"], 3)]
            gap = number(row["gap"], 4, "+")
            rows.append([run["name"], label, _count(row["num_tokens"]), *losses, gap])
    return rows


def _crossings_table(crossings: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["model", "to reach the end of", "which is", "needs tokens", "that one took"]]
    for row in crossings:
        reached = f"never; its lowest is {number(row['lowest'], 4)}"
        if row["tokens"] is not None:
            share = f" ({number(100 * row['share'], 0)} %)"
            early = "at most " if row["at_first_validation"] else ""
            reached = f"{early}{_count(row['tokens'])}{share}"
        rows.append(
            [
                f"{row['run']}, {row['direction']}",
                f"{row['other_run']}, {row['other_direction']}",
                number(row["loss"], 4),
                reached,
                _count(row["other_tokens"]),
            ]
        )
    return rows


def _settings_table(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A column a run; what differs comes first."""
    known = [run for run in runs if run["settings"]]
    keys = list(dict.fromkeys(key for run in known for key in run["settings"]))
    rows = [[key, *(_setting(run, key) for run in known)] for key in keys]
    rows.sort(key=lambda row: len(set(row[1:])) < 2)
    return [["setting", *(run["name"] for run in known)], *rows] if rows else []


def _setting(run: dict[str, Any], key: str) -> str:
    value = run["settings"].get(key)
    return MISSING if value is None else str(value)


def _count(value: Any) -> str:
    """`1.31M`: three digits, with thousands, millions, billions or trillions."""
    if not isinstance(value, (int, float)):
        return MISSING
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.3g}{name}"
    return f"{value:,.0f}"
