"""The figures of a selection's report as inline SVG.

Each function returns an `<svg>` element as a string, or an empty string if there is nothing to
draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ledom.report.figures import COLORS, HALF, MARKERS, WIDE, LineStyle, draw_svg, label_ends, short
from ledom.report.results import (
    AccuracyByLambda,
    AccuracyByN,
    Bin,
    Interval,
    Reliability,
    StrategyResult,
)

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
"""Headings by kind of strategy, in the order of the report."""


def differences_figure(rows: Mapping[str, Interval], opponent: str) -> str:
    """Each row's paired difference from the opponent, in points, with its interval.

    A line marks zero.

    >>> svg = differences_figure({"reverse": Interval(0.02, -0.01, 0.05)}, "the greedy answer")
    >>> svg.startswith("<svg"), "reverse" in svg
    (True, True)
    """
    if not rows:
        return ""
    return draw_svg(
        "differences",
        (HALF + 0.6, 0.75 + 0.36 * len(rows)),
        lambda axes: _draw_differences(axes, rows, opponent),
    )


def _draw_differences(axes: Axes, rows: Mapping[str, Interval], opponent: str) -> None:
    colors = {"better": "good", "worse": "bad", "open": "baseline"}
    for row, interval in enumerate(rows.values()):
        color = COLORS[colors[interval.verdict]]
        axes.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=2.2)
        axes.plot([100 * interval.mean], [row], "o", color=color, markersize=6)
    axes.axvline(0, color=COLORS["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), labels=[short(label) for label in rows])
    for label in axes.get_yticklabels():
        label.set_color(COLORS["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    low = 100 * min(0.0, *(interval.low for interval in rows.values()))
    high = 100 * max(0.0, *(interval.high for interval in rows.values()))
    margin = 0.06 * (high - low) or 1.0  # matplotlib warns about equal limits
    axes.set_xlim(low - margin, high + margin)
    axes.set_xlabel(f"points above {opponent}", loc="right")  # names are on the left


def strategies_figure(strategies: Sequence[StrategyResult]) -> str:
    """Accuracy of each strategy as a dot with its interval, grouped by kind.

    A dashed line marks the greedy one. Strategies are drawn in the given order within
    their kind.

    >>> strategies_figure([])  # nothing to draw
    ''
    """
    rows: list[StrategyResult | str] = []
    for kind, heading in KINDS.items():
        of_kind = [s for s in strategies if s.kind == kind]
        rows += [heading, *of_kind] if of_kind else []
    if not rows:
        return ""
    height = 0.8 + 0.25 * max(len(rows), 3)
    return draw_svg("strategies", (WIDE, height), lambda axes: _draw_strategies(axes, rows))


def _draw_strategies(axes: Axes, rows: Sequence[StrategyResult | str]) -> None:
    for row, strategy in enumerate(rows):
        if not isinstance(strategy, str):
            _draw_strategy(axes, row, strategy)
    labels = [row if isinstance(row, str) else short(row.label) for row in rows]
    axes.set_yticks(range(len(rows)), labels=labels)
    for label, named in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(COLORS["muted" if isinstance(named, str) else "ink"])
        label.set_fontweight("bold" if isinstance(named, str) else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.grid(False, axis="y")
    axes.margins(x=0.03)
    axes.set_xlabel("accuracy, % of problems")


def _draw_strategy(axes: Axes, row: int, strategy: StrategyResult) -> None:
    accuracy, color = strategy.accuracy, COLORS[strategy.kind]
    mean = 100 * accuracy.mean
    along = [100 * accuracy.low, 100 * accuracy.high]
    axes.plot(along, [row, row], color=color, linewidth=1.6, alpha=0.55)
    axes.plot([mean], [row], "o", color=color, markersize=5.5)
    axes.annotate(
        f"{mean:.1f}",
        (1, row),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
    )
    if strategy.id == "greedy":
        _draw_reference(axes, mean, "greedy")


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


def by_n_figure(by_n: AccuracyByN | None, strategies: Sequence[StrategyResult]) -> str:
    """Accuracy of strategies against the number of candidates N (log2 axis).

    Each line is labeled at its end.

    >>> by_n_figure(None, [])  # nothing was measured
    ''
    """
    if by_n is None:
        return ""
    known = {strategy.id: strategy for strategy in strategies}
    kinds = [known[name].kind for name in by_n.strategies]
    lines = {
        known[name].label: [(n, 100 * share) for n, share in zip(by_n.n, shares, strict=True)]
        for name, shares in by_n.strategies.items()
    }
    height = max(3.3, 1.0 + 0.19 * len(lines))
    return draw_svg("by_n", (WIDE, height), lambda axes: _draw_by_n(axes, lines, kinds, height))


def _draw_by_n(
    axes: Axes,
    lines: Mapping[str, list[tuple[int, float]]],
    kinds: Sequence[str],
    height: float,
) -> None:
    styles = _line_styles(kinds)
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
    axes.set_xlabel("N, candidates per problem")
    axes.set_title("accuracy, % of problems")
    octaves = max(math.log2(ticks[-1] / ticks[0]), 1.0)
    axes.set_xlim(ticks[-1] / 2 ** (1.02 * octaves), ticks[-1])
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    if low == high:  # the names need a height to spread over
        low, high = low - 0.5, high + 0.5
    span = high - low
    axes.set_ylim(low - 0.06 * span, high + 0.06 * span)
    label = 1.12 * span * (10 / 72) / (0.78 * height)  # 10 points; the axes are 0.78 of the figure
    ends = {name: points[-1] for name, points in lines.items()}
    right = ticks[-1] * 2 ** (0.025 * octaves)
    label_ends(axes, ends, [style["color"] for style in styles], right, label)


def _line_styles(kinds: Sequence[str]) -> list[LineStyle]:
    """For each line a color of its kind's family, a marker and a dash."""
    seen: dict[str, int] = {}
    styles: list[LineStyle] = []
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


def by_lambda_figure(curve: AccuracyByLambda | None) -> str:
    """Accuracy against lambda, the weight of the reverse model, with its interval as a band.

    A line marks the chosen lambda.

    >>> by_lambda_figure(None)
    ''
    """
    if curve is None:
        return ""
    return draw_svg("by_lambda", (HALF, 2.9), lambda axes: _draw_by_lambda(axes, curve))


def _draw_by_lambda(axes: Axes, curve: AccuracyByLambda) -> None:
    accuracy, low, high = (
        [100 * share for share in shares] for shares in (curve.accuracy, curve.low, curve.high)
    )
    axes.fill_between(curve.lambda_, low, high, color=COLORS["pick"], alpha=0.14, linewidth=0)
    axes.plot(curve.lambda_, accuracy, "o-", color=COLORS["pick"], linewidth=1.5, markersize=3.5)
    _draw_reference(axes, curve.chosen, f"chosen {curve.chosen:.3g}")
    axes.grid(False, axis="x")
    axes.margins(x=0.03)
    axes.set_xlabel("λ, weight of the reverse model")
    axes.set_title("accuracy, %", pad=20)


def reliability_figure(reliability: Reliability | None) -> str:
    """Accuracy of the choices in each bin of a score, with intervals; fuller bins, larger dots.

    >>> reliability_figure(None)  # not measured
    ''
    """
    if reliability is None:
        return ""
    bins, score = reliability.bins, short(reliability.score)
    return draw_svg("reliability", (HALF, 2.9), lambda axes: _draw_reliability(axes, bins, score))


def _draw_reliability(axes: Axes, bins: Sequence[Bin], score: str) -> None:
    color = COLORS["vote"]
    largest = max(b.count for b in bins)
    for b in bins:
        across, bounds = [b.mean_score, b.mean_score], [100 * b.low, 100 * b.high]
        axes.plot(across, bounds, color=color, linewidth=1.6, alpha=0.55)
        size = 3.0 + 3.5 * (b.count / largest) ** 0.5
        axes.plot([b.mean_score], [100 * b.accuracy], "o", color=color, markersize=size)
    in_order = sorted((b.mean_score, 100 * b.accuracy) for b in bins)
    axes.plot(*zip(*in_order, strict=True), color=color, linewidth=0.8, alpha=0.5)
    axes.grid(False, axis="x")
    axes.margins(x=0.05)
    axes.set_xlabel(f"mean score in the bin: {score}")
    axes.set_title("right answers, %", pad=20)
