"""The look of every figure in a report: colors, type, labels at the ends of lines, inline SVG.

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
from typing import TYPE_CHECKING, Any, Required, TypedDict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLORS",
    "HALF",
    "MARKERS",
    "WIDE",
    "LineStyle",
    "draw_svg",
    "label_ends",
    "short",
    "spread",
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
MARKERS = "osD^vP"
_LONGEST_NAME = 44
WIDE, HALF = 8.4, 4.1  # inches; both are shown at the same scale


class LineStyle(TypedDict, total=False):
    """How a line is drawn: keywords of matplotlib's `plot`."""

    color: Required[str]
    marker: str
    linestyle: str


_STYLE: Mapping[str, object] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.usetex": False,
    "text.parse_math": False,  # a strategy's name may contain dollar signs
    "text.color": COLORS["ink"],
    "axes.edgecolor": COLORS["muted"],
    "axes.labelcolor": COLORS["muted"],
    "axes.titlecolor": COLORS["muted"],
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
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
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
    with matplotlib.rc_context(style), warnings.catch_warnings():
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
    return svg.replace(
        "<svg ", f'<svg class="figure" role="img" aria-labelledby="{name}-title" ', 1
    )


def label_ends(
    axes: Axes,
    ends: Mapping[str, tuple[float, float]],
    colors: Sequence[str],
    right: float,
    gap: float,
    digits: int = 1,
) -> None:
    """Name each line at x = `right`, as close to its last value as the other names allow.

    `ends` are the last points (x, y) of the lines by name. Names keep a distance of `gap`, in units
    of y, and stay within the height of the axes if they fit; else the axes would shrink.

    >>> ends = {"majority": (8, 61.5)}
    >>> svg = draw_svg("line", (4, 2), lambda axes: label_ends(axes, ends, ["#000"], 8.2, 1.0))
    >>> "majority  61.5" in svg
    True
    """
    heights = spread([value for _, value in ends.values()], gap, axes.get_ylim())
    last = max(n for n, _ in ends.values())
    for (name, (n, value)), y, color in zip(ends.items(), heights, colors, strict=True):
        dashes = "-" if n == last else ":"  # a line that ends early is far from its name
        axes.plot([n, right], [value, y], dashes, color=color, linewidth=0.7, clip_on=False)
        axes.annotate(
            f"{short(name)}  {value:.{digits}f}",
            (right, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=color,
            annotation_clip=False,
        )


def spread(
    wanted: Sequence[float], gap: float, within: tuple[float, float] = (-math.inf, math.inf)
) -> list[float]:
    """Positions close to those `wanted`, in the same order and at least `gap` apart.

    They lie `within` two bounds if there is room.

    >>> spread([3.0, 3.0], gap=2.0)
    [2.0, 4.0]
    >>> spread([3.0, 3.0], gap=2.0, within=(3.0, 9.0))
    [3.0, 5.0]
    """
    clusters: list[list[int]] = []

    def center(cluster: list[int]) -> float:
        return sum(wanted[index] for index in cluster) / len(cluster)

    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        clusters.append([index])
        while len(clusters) > 1:
            below, above = clusters[-2:]
            if center(above) - center(below) >= gap * (len(above) + len(below)) / 2:
                break
            clusters[-2:] = [below + above]
    placed = list(wanted)
    for cluster in clusters:
        for place, index in enumerate(cluster):
            placed[index] = center(cluster) + gap * (place - (len(cluster) - 1) / 2)
    order = [index for cluster in clusters for index in cluster]
    low, high = within
    for rank, index in enumerate(order):
        placed[index] = max(placed[index], low + gap * rank)
    for rank, index in enumerate(reversed(order)):
        placed[index] = min(placed[index], high - gap * rank)
    return placed


def short(name: str) -> str:
    """A name on one line, cut if it is too long for a figure.

    >>> short("two\\nlines")
    'two lines'
    """
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
