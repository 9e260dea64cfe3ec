"""Draws the report's figures as inline SVG.

Each function takes one part of the report object and returns an `<svg>` element as a string, or an
empty string where there is nothing to draw. This module knows nothing of HTML pages, models or how
the numbers came about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ledom.report.figures import COLORS, HALF, MARKERS, WIDE, draw_svg, label_ends, pairs, short
from ledom.report.numbers import Bounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "KINDS",
    "by_lambda_figure",
    "by_n_figure",
    "differences_figure",
    "reliability_figure",
    "strategies_figure",
]

KINDS = {
    "baseline": "Baselines",
    "pick": "Pick one answer",
    "vote": "Vote among the answers",
    "bound": "Bounds",
}
"""The kinds of strategy, in the order in which they are shown, with their headings."""


def differences_figure(rows: Sequence[tuple[str, Bounds]], opponent: str) -> str:
    """Each row's paired difference from the opponent, in points, with its interval.

    A line marks no difference; a row without bounds is left out.
    """
    drawn = [(label, b) for label, b in rows if None not in (b.mean, b.low, b.high)]
    if not drawn:
        return ""
    height = 0.75 + 0.36 * len(drawn)
    return draw_svg(
        "differences", (HALF + 0.6, height), lambda axes: _draw_differences(axes, drawn, opponent)
    )


def _draw_differences(axes: Axes, rows: Sequence[tuple[str, Bounds]], opponent: str) -> None:
    colors = {"better": "good", "worse": "bad", "open": "baseline"}
    for row, (_, bounds) in enumerate(rows):
        color = COLORS[colors[bounds.verdict]]
        low, mean, high = (100 * (b or 0.0) for b in (bounds.low, bounds.mean, bounds.high))
        axes.plot([low, high], [row, row], color=color, linewidth=2.2)
        axes.plot([mean], [row], "o", color=color, markersize=6)
    axes.axvline(0, color=COLORS["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), labels=[short(label) for label, _ in rows])
    for label in axes.get_yticklabels():
        label.set_color(COLORS["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    ends = [100 * (b or 0.0) for _, bounds in rows for b in (bounds.low, bounds.high)]
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    margin = 0.06 * (high - low) or 1.0  # equal ends would be stretched with a warning
    axes.set_xlim(low - margin, high + margin)
    axes.set_xlabel(f"points above {opponent}")


def strategies_figure(strategies: Sequence[dict[str, Any]]) -> str:
    """Accuracy of each strategy as a dot with its interval, grouped by kind.

    A dashed line marks the strategy named "greedy". Strategies are drawn in the given order within
    their kind; one without an accuracy is left out.
    """
    rows: list[dict[str, Any] | str] = []
    for kind, heading in KINDS.items():
        of_kind = [s for s in strategies if s.get("kind") == kind and _is_drawable(s)]
        rows += [heading, *of_kind] if of_kind else []
    if not rows:
        return ""
    height = 0.8 + 0.25 * max(len(rows), 3)
    return draw_svg("strategies", (WIDE, height), lambda axes: _draw_strategies(axes, rows))


def _is_drawable(strategy: dict[str, Any]) -> bool:
    return (strategy.get("accuracy") or {}).get("mean") is not None


def _draw_strategies(axes: Axes, rows: Sequence[dict[str, Any] | str]) -> None:
    for row, strategy in enumerate(rows):
        if isinstance(strategy, str):
            continue
        accuracy, color = strategy["accuracy"], COLORS[strategy["kind"]]
        mean = 100 * accuracy["mean"]
        _draw_interval(axes, accuracy, [row, row], color, horizontal=True)
        axes.plot([mean], [row], "o", color=color, markersize=5.5)
        axes.annotate(
            f"{mean:.1f}",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
        if strategy["name"] == "greedy":
            _draw_reference(axes, mean, "greedy")
    labels = [row if isinstance(row, str) else short(row["name"]) for row in rows]
    axes.set_yticks(range(len(rows)), labels=labels)
    for label, named in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(COLORS["muted" if isinstance(named, str) else "ink"])
        label.set_fontweight("bold" if isinstance(named, str) else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.grid(False, axis="y")
    axes.margins(x=0.03)
    axes.set_xlabel("accuracy, % of problems")


def _draw_interval(
    axes: Axes, bounds: dict[str, Any], across: list[float], color: str, horizontal: bool
) -> None:
    if bounds.get("low") is None or bounds.get("high") is None:
        return
    along = [100 * bounds["low"], 100 * bounds["high"]]
    x, y = (along, across) if horizontal else (across, along)
    axes.plot(x, y, color=color, linewidth=1.6, alpha=0.55)


def _draw_reference(axes: Axes, x: float, label: str) -> None:
    axes.axvline(x, color=COLORS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        label,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=COLORS["muted"],
    )


def by_n_figure(by_n: dict[str, Any], kinds: dict[str, str]) -> str:
    """Accuracy of strategies against the number of candidates N (log2 axis).

    `by_n` has `n` and `strategies` (name -> a share for each N, None for a gap); `kinds` gives the
    kind of a strategy by its name. Each line is labeled at its end.
    """
    lines = {
        name: [(n, 100 * share) for n, share in pairs(by_n.get("n"), shares) if n >= 1]
        for name, shares in (by_n.get("strategies") or {}).items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    height = max(3.3, 1.0 + 0.19 * len(lines))
    return draw_svg("by-n", (WIDE, height), lambda axes: _draw_by_n(axes, lines, kinds, height))


def _draw_by_n(
    axes: Axes,
    lines: dict[str, list[tuple[float, float]]],
    kinds: dict[str, str],
    height: float,
) -> None:
    styles = _line_styles([kinds.get(name, "pick") for name in lines])
    for points, style in zip(lines.values(), styles, strict=True):
        axes.plot(
            *zip(*points, strict=True),
            markersize=4,
            linewidth=1.5,
            clip_on=False,
            zorder=3,
            **style,
        )
    ticks = sorted({n for points in lines.values() for n, _ in points})
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xticks(ticks, labels=[f"{n:g}" for n in ticks])
    axes.grid(False, axis="x")
    axes.set_xlabel("N, candidates a problem")
    axes.set_title("accuracy, % of problems")
    octaves = max(math.log2(ticks[-1] / ticks[0]), 1.0)
    axes.set_xlim(ticks[-1] / 2 ** (1.02 * octaves), ticks[-1])
    values = [value for points in lines.values() for _, value in points]
    span = max(values) - min(values) or 1.0
    axes.set_ylim(min(values) - 0.06 * span, max(values) + 0.06 * span)
    label = 1.12 * span * (10 / 72) / (0.78 * height)  # 10 points; the axes are 0.78 of the figure
    ends = {name: points[-1] for name, points in lines.items()}
    right = ticks[-1] * 2 ** (0.025 * octaves)
    label_ends(axes, ends, [style["color"] for style in styles], right, label)


def _line_styles(kinds: Sequence[str]) -> list[dict[str, Any]]:
    """A color of its kind's family, a marker and a dash for each line."""
    seen: dict[str, int] = {}
    styles = []
    for kind in kinds:
        family = [name for name in COLORS if name == kind or name.startswith(f"{kind}-")]
        count = seen[kind] = seen.get(kind, -1) + 1
        styles.append(
            {
                "color": COLORS[family[count % len(family)] if family else "muted"],
                "marker": MARKERS[count % len(MARKERS)],
                "linestyle": "--" if kind in ("baseline", "bound") else "-",
            }
        )
    return styles


def by_lambda_figure(by_lambda: dict[str, Any]) -> str:
    """Accuracy against lambda, the weight of the reverse model, with its band and the chosen one.

    `by_lambda` has the lists `lambda` and `accuracy`, and perhaps `low`, `high` and `chosen`.
    """
    if not pairs(by_lambda.get("lambda"), by_lambda.get("accuracy")):
        return ""
    return draw_svg("by-lambda", (HALF, 2.9), lambda axes: _draw_by_lambda(axes, by_lambda))


def _draw_by_lambda(axes: Axes, by_lambda: dict[str, Any]) -> None:
    lambdas = by_lambda.get("lambda")
    low, high = (dict(pairs(lambdas, by_lambda.get(key))) for key in ("low", "high"))
    both = sorted(low.keys() & high.keys())
    if both:
        bottom, top = [100 * low[x] for x in both], [100 * high[x] for x in both]
        axes.fill_between(both, bottom, top, color=COLORS["pick"], alpha=0.14, linewidth=0)
    points = [(x, 100 * share) for x, share in pairs(lambdas, by_lambda.get("accuracy"))]
    axes.plot(*zip(*points, strict=True), "o-", color=COLORS["pick"], linewidth=1.5, markersize=3.5)
    if by_lambda.get("chosen") is not None:
        _draw_reference(axes, by_lambda["chosen"], f"chosen {by_lambda['chosen']:.3g}")
    axes.grid(False, axis="x")
    axes.margins(x=0.03)
    axes.set_xlabel("λ, weight of the reverse model")
    axes.set_title("accuracy, %", pad=20)


def reliability_figure(reliability: dict[str, Any]) -> str:
    """Accuracy of the candidates in each bin of a score, with intervals and counts."""
    bins = [
        b
        for b in reliability.get("bins") or []
        if b.get("mean_score") is not None and b.get("accuracy") is not None
    ]
    if not bins:
        return ""
    score = short(str(reliability.get("score") or "score"))
    return draw_svg("reliability", (HALF, 2.9), lambda axes: _draw_reliability(axes, bins, score))


def _draw_reliability(axes: Axes, bins: Sequence[dict[str, Any]], score: str) -> None:
    color = COLORS["vote"]
    largest = max((b.get("count") or 1) for b in bins)
    for b in bins:
        x = b["mean_score"]
        _draw_interval(axes, b, [x, x], color, horizontal=False)
        size = 3.0 + 3.5 * ((b.get("count") or 1) / largest) ** 0.5
        axes.plot([x], [100 * b["accuracy"]], "o", color=color, markersize=size)
    in_order = sorted((b["mean_score"], 100 * b["accuracy"]) for b in bins)
    axes.plot(*zip(*in_order, strict=True), color=color, linewidth=0.8, alpha=0.5)
    axes.grid(False, axis="x")
    axes.margins(x=0.05)
    axes.set_xlabel(f"mean score in the bin: {score}")
    axes.set_title("right answers, %", pad=20)
