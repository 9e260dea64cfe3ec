"""Figures as inline SVG: those of a selection, and the style that they share with other figures.

The function of a figure returns an `<svg>` element, or an empty text if there is nothing to draw.
Text stays text. Ids start with the figure's name, so one page can hold several figures. Every color
is a CSS variable with a fallback (`var(--fig-ink, #1c2024)`), so a page can restyle a figure for a
dark background. The output depends only on the input: pyplot, which has global state, is not used.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Required, TypedDict

from ledom.report import results
from ledom.report.formatting import number, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLORS",
    "HALF",
    "KINDS",
    "WIDE",
    "LineStyle",
    "by_lambda_figure",
    "by_n_figure",
    "differences_figure",
    "draw_svg",
    "label_ends",
    "reliability_figure",
    "shade",
    "short",
    "strategies_figure",
]

COLORS = {
    "ink": "#1c2024",
    "muted": "#667080",
    "grid": "#e3e6ea",
    "baseline": "#5f6b7a",
    "pick": "#d9480f",
    "vote": "#1c6fc9",
    "bound": "#8a94a3",
    "good": "#1f7a45",
    "bad": "#b3321b",
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
_Point = tuple[float, float]
WIDE, HALF = 8.4, 4.1  # inches; both are shown at the same scale
KINDS = {
    "baseline": "Baselines",
    "pick": "Pick one answer",
    "vote": "Vote among the answers",
    "bound": "Bounds",
}
"""Headings by kind of strategy, in the order of the report."""


class LineStyle(TypedDict, total=False):
    """How a line is drawn: keywords of matplotlib's `plot`."""

    color: Required[str]
    marker: str
    linestyle: str


_STYLE: Mapping[str, object] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.usetex": False,
    "text.parse_math": False,  # a strategy's name may contain dollar signs
    "text.color": COLORS["ink"],
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), COLORS["muted"]),
    **dict.fromkeys(("xtick.color", "ytick.color"), COLORS["muted"]),
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 9),
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLORS["grid"],
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.7),
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.solid_capstyle": "round",
}


def draw_svg(name: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """A figure of `size` (width, height) inches as an SVG element; `draw` fills its axes.

    The page names it: an element with the id `NAME-title`.

    >>> svg = draw_svg("line", (2, 1), lambda axes: axes.plot([1, 2]))
    >>> svg[:59]
    '<svg class="figure" role="img" aria-labelledby="line-title"'
    """
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    style: Any = {**_STYLE, "svg.hashsalt": name}
    # matplotlib lacks glyphs that the reader's browser has, and needs them only to measure text
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the user's own settings (matplotlibrc) are for other figures
        matplotlib.rcParams.update(style)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Strip the XML prolog, make ids unique in a page, and turn colors into CSS variables."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'(\bid=")', rf"\1{name}-", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    for color, value in COLORS.items():
        svg = svg.replace(f": {value}", f": var(--fig-{color}, {value})")
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    opening = f'<svg class="figure" role="img" aria-labelledby="{name}-title" '
    return svg.replace("<svg ", opening, 1)


def label_ends(
    axes: Axes, ends: Mapping[str, _Point], colors: Sequence[str], height: float, digits: int = 1
) -> None:
    """Name each line on the right, as close to its last value as the other names allow.

    `ends` are the last points (x, y) of the lines by name, `height` is the figure's in inches.
    Names stay within the limits of the axes if they fit; else the axes would shrink.

    >>> def draw(axes):
    ...     axes.plot([1, 8], [40.0, 61.5])
    ...     label_ends(axes, {"majority": (8, 61.5)}, ["#000"], height=2)
    >>> "majority  61.5" in draw_svg("line", (4, 2), draw)
    True
    """
    low, high = axes.get_ylim()
    axes.autoscale(False)
    gap = (high - low) * (10 / 72) / (0.78 * height)  # 10 points; the axes are 0.78 of the figure
    heights = spread([value for _, value in ends.values()], gap, (low, high))
    right = (axes.transScale + axes.transLimits).inverted().transform((1.02, 0))[0]
    last = max(n for n, _ in ends.values())
    for (name, (n, value)), y, color in zip(ends.items(), heights, colors, strict=True):
        dashes = "-" if n == last else ":"  # a line that ends early is far from its name
        axes.plot([n, right], [value, y], dashes, color=color, linewidth=0.7, clip_on=False)
        text = f"{short(name)}  {number(value, digits)}"
        _write(axes, text, (right, y), (3, 0), va="center", color=color, annotation_clip=False)


def _write(axes: Axes, text: str, at: _Point, offset: _Point, **how: Any) -> None:
    """Write a text at a point, moved by an offset in points."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **how)


def shade(kind: str, number: int) -> str:
    """The color of the line with this number, from 0, among those of one kind.

    >>> shade("vote", 0), shade("vote", 4)  # of four colors
    ('#1c6fc9', '#1c6fc9')
    """
    colors = [COLORS[name] for name in COLORS if name == kind or name.startswith(f"{kind}-")]
    return colors[number % len(colors)]


def spread(
    wanted: Sequence[float], gap: float, within: tuple[float, float] = (-math.inf, math.inf)
) -> list[float]:
    """Positions close to those `wanted`, in the same order and at least `gap` apart.

    They lie `within` two bounds if there is room.

    >>> spread([3.0, 3.0], gap=2.0, within=(3.0, 9.0))
    [3.0, 5.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # Positions less `gap` per rank need only be in order: those that are not share their mean.
    clusters: list[list[float]] = []
    for rank, index in enumerate(order):
        clusters.append([wanted[index] - gap * rank])
        while len(clusters) > 1 and fmean(clusters[-2]) > fmean(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    in_order = [fmean(cluster) for cluster in clusters for _ in cluster]
    low, high = within[0], within[1] - gap * (len(wanted) - 1)
    placed = list(wanted)
    for rank, index in enumerate(order):
        placed[index] = min(max(in_order[rank], low), high) + gap * rank
    return placed


def short(name: str) -> str:
    """A name on one line, without its middle if it is too long, as names often differ at the end.

    >>> short("two\\nlines"), short(f"runs/{'x' * 80}-seed-1")
    ('two lines', 'runs/xxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxx-seed-1')
    """
    name, half = " ".join(name.split()), _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


# --- the figures of a selection ---


def differences_figure(rows: Mapping[str, results.Interval], opponent: str) -> str:
    """Each row's paired difference from the opponent, in points, with its interval.

    >>> svg = differences_figure({"reverse": results.Interval(0.02, -0.01, 0.05)}, "greedy")
    >>> svg.startswith("<svg"), "reverse" in svg
    (True, True)
    """

    def draw(axes: Axes) -> None:
        colors = {"better": "good", "worse": "bad", "open": "baseline"}
        for row, found in enumerate(rows.values()):
            color = COLORS[colors[verdict(found)]]
            axes.plot([100 * found.low, 100 * found.high], [row, row], color=color, linewidth=2.2)
            axes.plot([100 * found.mean], [row], "o", color=color, markersize=6)
        axes.axvline(0, color=COLORS["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), labels=[short(label) for label in rows])
        axes.tick_params(axis="y", labelcolor=COLORS["ink"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.margins(x=0.06)
        axes.set_xlabel(f"points above {opponent}", loc="right")  # names are on the left

    return draw_svg("differences", (HALF + 0.6, 0.75 + 0.36 * len(rows)), draw) if rows else ""


def strategies_figure(strategies: Sequence[results.StrategyResult]) -> str:
    """Accuracy of each strategy as a dot with its interval, by kind, in the given order.

    >>> strategies_figure([])  # nothing to draw
    ''
    """
    rows: list[results.StrategyResult | str] = []
    for kind, heading in KINDS.items():
        of_kind = [s for s in strategies if s.kind == kind]
        rows += [heading, *of_kind] if of_kind else []

    def draw(axes: Axes) -> None:
        for row, strategy in enumerate(rows):
            if isinstance(strategy, str):
                continue
            found, color = strategy.accuracy, COLORS[strategy.kind]
            low, mean, high = 100 * found.low, 100 * found.mean, 100 * found.high
            axes.plot([low, high], [row, row], color=color, linewidth=1.6, alpha=0.55)
            axes.plot([mean], [row], "o", color=color, markersize=5.5)
            beside = ("axes fraction", "data")
            _write(axes, f"{mean:.1f}", (1, row), (6, 0), xycoords=beside, va="center")
            if strategy.id == "greedy":
                _draw_reference(axes, mean, "greedy")
        labels = [row if isinstance(row, str) else short(row.label) for row in rows]
        axes.set_yticks(range(len(rows)), labels=labels)
        for label, named in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(COLORS["muted" if isinstance(named, str) else "ink"])
            label.set_fontweight("bold" if isinstance(named, str) else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.8)
        axes.grid(False, axis="y")
        axes.margins(x=0.03)
        axes.set_xlabel("accuracy, % of problems")

    return draw_svg("strategies", (WIDE, 0.8 + 0.25 * max(len(rows), 3)), draw) if rows else ""


def _draw_reference(axes: Axes, x: float, label: str) -> None:
    axes.axvline(x, color=COLORS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    above = ("data", "axes fraction")
    _write(axes, label, (x, 1), (0, 3), xycoords=above, ha="center", color=COLORS["muted"])


def by_n_figure(
    by_n: results.AccuracyByN | None, strategies: Sequence[results.StrategyResult]
) -> str:
    """Accuracy of strategies against the number of candidates N (log2 axis).

    >>> by_n_figure(None, [])  # nothing was measured
    ''
    """
    if by_n is None:
        return ""
    known = {strategy.id: strategy for strategy in strategies}
    styles = _line_styles([known[name].kind for name in by_n.strategies])
    lines = {
        known[name].label: [100 * share for share in shares]
        for name, shares in by_n.strategies.items()
    }
    height = max(3.3, 1.0 + 0.19 * len(lines))

    def draw(axes: Axes) -> None:
        for values, style in zip(lines.values(), styles, strict=True):
            axes.plot(by_n.n, values, markersize=4, linewidth=1.5, clip_on=False, zorder=3, **style)
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.set_xticks(by_n.n, labels=[f"{n:g}" for n in by_n.n])
        axes.margins(x=0.02, y=0.06)
        axes.set_xlim(right=by_n.n[-1])
        axes.grid(False, axis="x")
        axes.set_xlabel("N, candidates per problem")
        axes.set_title("accuracy, % of problems")
        ends = {name: (by_n.n[-1], values[-1]) for name, values in lines.items()}
        label_ends(axes, ends, [style["color"] for style in styles], height)

    return draw_svg("by_n", (WIDE, height), draw)


def _line_styles(kinds: Sequence[str]) -> list[LineStyle]:
    """For each line a color of its kind, a marker and a dash."""
    styles: list[LineStyle] = []
    for place, kind in enumerate(kinds):
        count = kinds[:place].count(kind)
        dashes = "--" if kind in ("baseline", "bound") else "-"
        marker = _MARKERS[count % len(_MARKERS)]
        styles.append({"color": shade(kind, count), "marker": marker, "linestyle": dashes})
    return styles


def by_lambda_figure(curve: results.AccuracyByLambda | None) -> str:
    """Accuracy against lambda, the weight of the reverse model, with its interval as a band.

    >>> by_lambda_figure(None)
    ''
    """
    if curve is None:
        return ""

    def draw(axes: Axes) -> None:
        shares = (curve.accuracy, curve.low, curve.high)
        accuracy, low, high = ([100 * share for share in some] for some in shares)
        color = COLORS["pick"]
        axes.fill_between(curve.lambda_, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(curve.lambda_, accuracy, "o-", color=color, linewidth=1.5, markersize=3.5)
        _draw_reference(axes, curve.chosen, f"chosen {curve.chosen:.3g}")
        axes.grid(False, axis="x")
        axes.margins(x=0.03)
        axes.set_xlabel("λ, weight of the reverse model")
        axes.set_title("accuracy, %", pad=20)

    return draw_svg("by_lambda", (HALF, 2.9), draw)


def reliability_figure(reliability: results.Reliability | None) -> str:
    """Accuracy of the choices in each bin of a score, with intervals; fuller bins, larger dots.

    >>> reliability_figure(None)  # not measured
    ''
    """
    if reliability is None:
        return ""

    def draw(axes: Axes) -> None:
        bins, color = reliability.bins, COLORS["vote"]
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
        axes.set_xlabel(short(reliability.score))
        axes.set_title("right answers, %", pad=20)

    return draw_svg("reliability", (HALF, 2.9), draw)
