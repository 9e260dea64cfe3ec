"""The figures of `ledom compare`: losses and gaps by tokens seen and by position.

As in `ledom.report.figures`, each function returns an `<svg>` element or an empty text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ledom.report.figures import COLORS, HALF, WIDE, LineStyle, draw_svg, label_ends, shade, short
from ledom.report.formatting import count
from ledom.report.results import DirectionResult, RunComparison
from ledom.train.metrics import thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "gap_by_position_figure",
    "gap_figure",
    "loss_by_position_figure",
    "loss_figure",
    "parts_figure",
    "position_label",
]

_KINDS = {"forward": "vote", "reverse": "pick"}  # whose colors are blue and red
_MOST_MARKERS = 40  # more would overlap
_MOST_PARTS = 8
_Line = tuple[str, list[tuple[float, float]], LineStyle]  # label, points, style


def loss_figure(runs: Sequence[RunComparison]) -> str:
    """Validation loss by tokens seen, a line per model; training loss is drawn faintly behind it.

    >>> loss_figure([])  # nothing to draw
    ''
    """
    lines: list[_Line] = []
    faint: list[_Line] = []
    for label, result, color in _models(runs):
        training, validation = result.training, result.validation
        faint.append((label, _points(training.tokens, training.loss), {"color": color}))
        points = _points(validation.tokens, validation.loss)
        lines.append((label, points, {"color": color, "marker": "o"}))
    if not any(points for _, points, _ in faint):
        return ""

    def draw(axes: Axes) -> None:
        _draw_lines(axes, [line for line in lines if line[1]] or faint, 3.6, 3)
        for _, points, style in faint:
            axes.plot(*_columns(points), linewidth=0.9, alpha=0.3, **style)
        axes.set_title("loss, nats per token")

    return draw_svg("loss", (WIDE, 3.6), draw)


def gap_figure(runs: Sequence[RunComparison]) -> str:
    """Reverse minus forward validation loss by tokens seen, with its interval as a band.

    >>> alone = RunComparison(name="tiny", directions={}, settings={})
    >>> gap_figure([alone])  # a gap needs both directions
    ''
    """
    drawn = [(place, run) for place, run in enumerate(runs) if run.gap]
    if not drawn:
        return ""

    def draw(axes: Axes) -> None:
        lines: list[_Line] = []
        for place, run in drawn:
            color = shade("pick", place)
            band = [(gap.tokens, gap.low, gap.high) for gap in run.gap if gap.interval]
            if band:
                seen, low, high = zip(*band, strict=True)
                axes.fill_between(seen, low, high, color=color, alpha=0.16, linewidth=0)
            points = [(float(point.tokens), point.mean) for point in run.gap]
            lines.append((run.name, points, {"color": color, "marker": "o"}))
        _draw_zero(axes)
        _draw_lines(axes, lines, 3.0, 4)
        axes.set_title("reverse minus forward, nats per token")

    return draw_svg("gap", (WIDE, 3.0), draw)


def parts_figure(run: RunComparison, part: str) -> str:
    """Validation loss by tokens seen for each part of a run (`by_source` or `by_position`).

    If the run has both directions, reverse lines are dashed. At most eight parts are drawn.

    >>> parts_figure(RunComparison(name="tiny", directions={}, settings={}), "by_source")
    ''
    """
    by_way: list[tuple[Sequence[int], Mapping[str, Sequence[float | None]]]] = [
        (result.validation.tokens, getattr(result.validation, part))
        for result in run.directions.values()
    ]
    names = list(dict.fromkeys(name for _, parts in by_way for name in parts))
    names = thinned(names, _MOST_PARTS) if part == "by_position" else names[:_MOST_PARTS]
    if not names or all(len(tokens) < 2 for tokens, _ in by_way):
        return ""

    def draw(axes: Axes) -> None:
        lines: list[_Line] = []
        for place, name in enumerate(names):
            label = position_label(name) if part == "by_position" else name
            color = shade(("vote", "pick")[place % 2], place // 2)
            for dashes, (tokens, parts) in zip(("-", "--"), by_way, strict=False):
                points = _points(tokens, parts.get(name, []))
                lines.append((label, points, {"color": color, "marker": "o", "linestyle": dashes}))
                label = "" if points else label  # named once
        _draw_lines(axes, lines, 3.4, 2)
        axes.set_title("validation loss, nats per token")

    return draw_svg(part, (WIDE, 3.4), draw)


def loss_by_position_figure(runs: Sequence[RunComparison]) -> str:
    """Loss at the end of training by how much of the window the model has read.

    >>> loss_by_position_figure([])  # nothing to draw
    ''
    """
    lines: list[_Line] = []
    for label, result, color in _models(runs):
        parts = result.validation.by_position
        points = _points(list(map(_bin, parts)), [losses[-1] for losses in parts.values()])
        lines.append((label, points, {"color": color, "marker": "o"}))
    return _by_position("loss_by_position", lines, "validation loss, nats per token", False)


def gap_by_position_figure(runs: Sequence[RunComparison]) -> str:
    """Reverse minus forward loss at the end, by how much of the window the model has read.

    >>> gap_by_position_figure([])  # nothing to draw
    ''
    """
    lines: list[_Line] = []
    for place, run in enumerate(runs):
        points = [(_bin(row.name), row.gap) for row in run.gap_by_position]
        lines.append((run.name, points, {"color": shade("pick", place), "marker": "o"}))
    return _by_position("gap_by_position", lines, "reverse minus forward, nats per token", True)


def position_label(name: str) -> str:
    """The range of positions in a bin, given its first position.

    >>> position_label("4")
    '4–7'
    """
    return name if int(name) < 2 else f"{name}\N{EN DASH}{2 * int(name) - 1}"


def _by_position(name: str, lines: list[_Line], title: str, with_zero: bool) -> str:
    lines = [line for line in lines if line[1]]
    if not lines:
        return ""

    def draw(axes: Axes) -> None:
        if with_zero:
            _draw_zero(axes)
        for label, points, style in lines:
            axes.plot(*_columns(points), linewidth=1.5, markersize=3.5, label=short(label), **style)
        bins = sorted({x for _, points, _ in lines for x, _ in points})
        starts = [(1 << int(x)) >> 1 for x in bins]
        axes.set_xticks(bins, labels=[f"{start}" for start in starts])
        axes.grid(False, axis="x")
        axes.set_xlabel("tokens read before: from this to the next number")
        axes.set_title(title)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)

    return draw_svg(name, (HALF, 2.9), draw)


def _draw_lines(axes: Axes, lines: list[_Line], height: float, digits: int) -> None:
    """Draw lines over tokens seen; those with a label are named at their ends."""
    lines = [line for line in lines if line[1]]
    for _, points, style in lines:
        bare = style if len(points) <= _MOST_MARKERS else style | {"marker": ""}
        axes.plot(*_columns(points), linewidth=1.5, markersize=3.2, zorder=3, **bare)
    last = max(x for _, points, _ in lines for x, _ in points)
    axes.set_xlim(0, last)
    axes.xaxis.set_major_formatter(lambda x, _: count(x))
    axes.grid(False, axis="x")
    axes.set_xlabel("tokens seen")
    named = [line for line in lines if line[0]]
    ends = {label: points[-1] for label, points, _ in named}
    label_ends(axes, ends, [style["color"] for _, _, style in named], height, digits)


def _draw_zero(axes: Axes) -> None:
    axes.axhline(0, color=COLORS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))


def _models(runs: Sequence[RunComparison]) -> list[tuple[str, DirectionResult, str]]:
    """(label, result, color) of each model."""
    return [
        (f"{run.name} {way}" if len(runs) > 1 else way, result, shade(_KINDS[way], place))
        for place, run in enumerate(runs)
        for way, result in run.directions.items()
    ]


def _points(xs: Sequence[float], ys: Sequence[float | None]) -> list[tuple[float, float]]:
    """The points that have both numbers."""
    return [(x, y) for x, y in zip(xs, ys, strict=False) if y is not None]


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _bin(name: str) -> float:
    return float(int(name).bit_length())
