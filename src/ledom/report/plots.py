"""Draws the report's figures as inline SVG.

Each function takes one part of the report object and returns an `<svg>` element as a string, or an
empty string where there is nothing to draw. Text stays text, ids are prefixed with the figure's
name (so that several figures can stand in one page) and every colour is a CSS variable with a
fallback (`var(--fig-ink, #1c2024)`), so a page may restyle a figure for a dark background.
The output depends on nothing but the input. This module knows nothing of HTML pages, models or
how the numbers came about; it never touches pyplot.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "KINDS",
    "by_lambda_figure",
    "by_n_figure",
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

_COLOURS = {
    "ink": "#1c2024",
    "muted": "#667080",
    "grid": "#e3e6ea",
    "baseline": "#5f6b7a",
    "pick": "#d9480f",
    "vote": "#1c6fc9",
    "bound": "#8a94a3",
    "pick-2": "#e09400",
    "pick-3": "#b0234f",
    "pick-4": "#96602c",
    "vote-2": "#0b8a80",
    "vote-3": "#6a4fc4",
    "vote-4": "#3f8f3a",
    "baseline-2": "#97a0ad",
}
_MARKERS = "osD^vP"
_LONGEST_NAME = 44
_WIDE, _HALF = 8.4, 4.1  # inches; both are shown at the same scale

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.usetex": False,
    "text.parse_math": False,  # a strategy's name may contain dollar signs
    "text.color": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["muted"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.titlecolor": _COLOURS["muted"],
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.solid_capstyle": "round",
}


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
    return _svg("strategies", (_WIDE, height), lambda axes: _draw_strategies(axes, rows))


def _is_drawable(strategy: dict[str, Any]) -> bool:
    return (strategy.get("accuracy") or {}).get("mean") is not None


def _draw_strategies(axes: Axes, rows: Sequence[dict[str, Any] | str]) -> None:
    for row, strategy in enumerate(rows):
        if isinstance(strategy, str):
            continue
        accuracy, colour = strategy["accuracy"], _COLOURS[strategy["kind"]]
        mean = 100 * accuracy["mean"]
        _draw_interval(axes, accuracy, [row, row], colour, horizontal=True)
        axes.plot([mean], [row], "o", color=colour, markersize=5.5)
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
    labels = [row if isinstance(row, str) else _short(row["name"]) for row in rows]
    axes.set_yticks(range(len(rows)), labels=labels)
    for label, named in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(_COLOURS["muted" if isinstance(named, str) else "ink"])
        label.set_fontweight("bold" if isinstance(named, str) else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.grid(False, axis="y")
    axes.margins(x=0.03)
    axes.set_xlabel("accuracy, % of problems")


def _draw_interval(
    axes: Axes, bounds: dict[str, Any], across: list[float], colour: str, horizontal: bool
) -> None:
    if bounds.get("low") is None or bounds.get("high") is None:
        return
    along = [100 * bounds["low"], 100 * bounds["high"]]
    x, y = (along, across) if horizontal else (across, along)
    axes.plot(x, y, color=colour, linewidth=1.6, alpha=0.55)


def _draw_reference(axes: Axes, x: float, label: str) -> None:
    axes.axvline(x, color=_COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        label,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=_COLOURS["muted"],
    )


def by_n_figure(by_n: dict[str, Any], kinds: dict[str, str]) -> str:
    """Accuracy of strategies against the number of candidates N (log2 axis).

    `by_n` has `n` and `strategies` (name -> a share for each N, None for a gap); `kinds` gives the
    kind of a strategy by its name. Each line is labelled at its end.
    """
    lines = {
        name: [(n, 100 * share) for n, share in _pairs(by_n.get("n"), shares) if n >= 1]
        for name, shares in (by_n.get("strategies") or {}).items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    height = max(3.3, 1.0 + 0.19 * len(lines))
    return _svg("by-n", (_WIDE, height), lambda axes: _draw_by_n(axes, lines, kinds, height))


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
    _label_ends(axes, ends, [style["color"] for style in styles], right, label)


def _label_ends(
    axes: Axes,
    ends: dict[str, tuple[float, float]],
    colours: Sequence[str],
    right: float,
    gap: float,
) -> None:
    """Name each line at x = `right`, at its last value or as near as the other names allow."""
    heights = _spread([value for _, value in ends.values()], gap)
    for (name, (n, value)), y, colour in zip(ends.items(), heights, colours, strict=True):
        axes.plot([n, right], [value, y], color=colour, linewidth=0.7, clip_on=False)
        axes.annotate(
            f"{_short(name)}  {value:.1f}",
            (right, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def _line_styles(kinds: Sequence[str]) -> list[dict[str, Any]]:
    """A colour of its kind's family, a marker and a dash for each line."""
    seen: dict[str, int] = {}
    styles = []
    for kind in kinds:
        family = [name for name in _COLOURS if name == kind or name.startswith(f"{kind}-")]
        count = seen[kind] = seen.get(kind, -1) + 1
        styles.append(
            {
                "color": _COLOURS[family[count % len(family)] if family else "muted"],
                "marker": _MARKERS[count % len(_MARKERS)],
                "linestyle": "--" if kind in ("baseline", "bound") else "-",
            }
        )
    return styles


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions as near as possible to those wanted, in the same order, at least `gap` apart."""
    clusters: list[list[int]] = []

    def centre(cluster: list[int]) -> float:
        return sum(wanted[index] for index in cluster) / len(cluster)

    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        clusters.append([index])
        while len(clusters) > 1:
            below, above = clusters[-2:]
            if centre(above) - centre(below) >= gap * (len(above) + len(below)) / 2:
                break
            clusters[-2:] = [below + above]
    placed = list(wanted)
    for cluster in clusters:
        for place, index in enumerate(cluster):
            placed[index] = centre(cluster) + gap * (place - (len(cluster) - 1) / 2)
    return placed


def by_lambda_figure(by_lambda: dict[str, Any]) -> str:
    """Accuracy against lambda, the weight of the reverse model, with its band and the chosen one.

    `by_lambda` has the lists `lambda` and `accuracy`, and perhaps `low`, `high` and `chosen`.
    """
    if not _pairs(by_lambda.get("lambda"), by_lambda.get("accuracy")):
        return ""
    return _svg("by-lambda", (_HALF, 2.9), lambda axes: _draw_by_lambda(axes, by_lambda))


def _draw_by_lambda(axes: Axes, by_lambda: dict[str, Any]) -> None:
    lambdas = by_lambda.get("lambda")
    low, high = (dict(_pairs(lambdas, by_lambda.get(key))) for key in ("low", "high"))
    both = sorted(low.keys() & high.keys())
    if both:
        bottom, top = [100 * low[x] for x in both], [100 * high[x] for x in both]
        axes.fill_between(both, bottom, top, color=_COLOURS["pick"], alpha=0.14, linewidth=0)
    points = [(x, 100 * share) for x, share in _pairs(lambdas, by_lambda.get("accuracy"))]
    axes.plot(
        *zip(*points, strict=True), "o-", color=_COLOURS["pick"], linewidth=1.5, markersize=3.5
    )
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
    score = _short(str(reliability.get("score") or "score"))
    return _svg("reliability", (_HALF, 2.9), lambda axes: _draw_reliability(axes, bins, score))


def _draw_reliability(axes: Axes, bins: Sequence[dict[str, Any]], score: str) -> None:
    colour = _COLOURS["vote"]
    largest = max((b.get("count") or 1) for b in bins)
    for b in bins:
        x = b["mean_score"]
        _draw_interval(axes, b, [x, x], colour, horizontal=False)
        size = 3.0 + 3.5 * ((b.get("count") or 1) / largest) ** 0.5
        axes.plot([x], [100 * b["accuracy"]], "o", color=colour, markersize=size)
    in_order = sorted((b["mean_score"], 100 * b["accuracy"]) for b in bins)
    axes.plot(*zip(*in_order, strict=True), color=colour, linewidth=0.8, alpha=0.5)
    axes.grid(False, axis="x")
    axes.margins(x=0.05)
    axes.set_xlabel(f"mean score in the bin: {score}")
    axes.set_title("right answers, %", pad=20)


def _pairs(xs: Sequence[Any] | None, ys: Sequence[Any] | None) -> list[tuple[float, float]]:
    """The points that have both numbers."""
    return [(x, y) for x, y in zip(xs or [], ys or [], strict=False) if None not in (x, y)]


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _svg(name: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Let `draw` fill the axes of a new figure of `size` inches; the figure as an SVG element."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    style: Any = {**_STYLE, "svg.hashsalt": name}
    # matplotlib lacks glyphs that the reader's browser has; it needs them for measuring alone
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Strip the XML prolog, make ids unique in a page, and turn colours into CSS variables."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'(\bid=")', rf"\1{name}-", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    for colour, value in _COLOURS.items():
        svg = svg.replace(f": {value}", f": var(--fig-{colour}, {value})")
    label = f"Figure: {name.replace('-', ' ')}"
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", f'<svg class="figure" role="img" aria-label="{label}" ', 1)
