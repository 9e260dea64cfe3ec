"""The figures are well-formed, self-contained, deterministic SVG, with text kept as text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import matplotlib
import pytest

from ledom.report.figures import (
    by_lambda_figure,
    by_n_figure,
    differences_figure,
    draw_svg,
    label_ends,
    reliability_figure,
    spread,
    strategies_figure,
)
from ledom.report.results import (
    AccuracyByLambda,
    AccuracyByN,
    Bin,
    Interval,
    Reliability,
    StrategyResult,
)


def _strategy(name: str, kind: str, mean: float) -> StrategyResult:
    return StrategyResult(
        id=name,
        label=name,
        kind=kind,
        description="",
        formula="",
        accuracy=Interval(mean, mean - 0.1, mean),
    )


STRATEGIES = [
    _strategy("greedy", "baseline", 0.4),
    _strategy("reverse <reward> & $x^2$ $", "pick", 0.625),
    _strategy("漢字 vote", "vote", 0.5),
]
BY_N = AccuracyByN(n=[1, 2, 4], strategies={"greedy": [0.4] * 3, "漢字 vote": [0.4, 0.5, 0.625]})
BY_LAMBDA = AccuracyByLambda(
    lambda_=[0.0, 0.5, 1.0],
    accuracy=[0.4, 0.6, 0.5],
    low=[0.3, 0.5, 0.4],
    high=[0.5, 0.7, 0.6],
    chosen=0.5,
)
RELIABILITY = Reliability(
    score="log P(x|y)",
    bins=[
        Bin(mean_score=-2.0, accuracy=0.25, low=0.2, high=0.3, count=40),
        Bin(mean_score=-1.0, accuracy=0.75, low=0.6, high=0.8, count=10),
    ],
)


def _draw_all() -> list[str]:
    return [
        strategies_figure(STRATEGIES),
        by_n_figure(BY_N, STRATEGIES),
        by_lambda_figure(BY_LAMBDA),
        reliability_figure(RELIABILITY),
    ]


@pytest.fixture(scope="module")
def figures() -> list[str]:
    """One figure of each kind."""
    return _draw_all()


def _texts(svg: str) -> list[str]:
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in elements]


@pytest.mark.slow
def test_figures_are_self_contained_svg_elements(figures: list[str]) -> None:
    for svg in figures:
        assert svg.startswith("<svg ")
        assert svg.endswith("</svg>")
        assert set(re.findall(r"https?://[^\"]*", svg)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', svg))
        assert ElementTree.fromstring(svg).get("role") == "img"


@pytest.mark.slow
def test_ids_are_unique_across_figures_and_references_resolve(figures: list[str]) -> None:
    page = "".join(figures)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="#([^"]*)"', page) + re.findall(r"url\(#([^)]*)\)", page)
    assert references
    assert set(references) <= set(ids)


@pytest.mark.slow
def test_figures_are_deterministic_and_leave_matplotlib_settings_alone(figures: list[str]) -> None:
    before = dict(matplotlib.rcParams)
    assert _draw_all() == figures
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_the_users_settings_of_matplotlib_change_no_figure(figures: list[str]) -> None:
    own: dict[str, Any] = {"lines.linewidth": 7, "figure.dpi": 30, "axes.facecolor": "red"}
    with matplotlib.rc_context(own):
        assert _draw_all() == figures


@pytest.mark.slow
def test_names_stay_text_and_are_not_parsed_as_math() -> None:
    texts = _texts(strategies_figure(STRATEGIES))
    assert {"greedy", "reverse <reward> & $x^2$ $", "漢字 vote", "62.5"} <= set(texts)
    assert "Baselines" in texts
    assert "Bounds" not in texts


@pytest.mark.slow
def test_a_long_name_keeps_its_distinctive_end() -> None:
    names = [f"{'n' * 500} {way}" for way in ("forward", "reverse")]
    texts = _texts(strategies_figure([_strategy(name, "pick", 0.5) for name in names]))
    assert {f"{'n' * 21}…{'n' * 14} {way}" for way in ("forward", "reverse")} <= set(texts)


def test_lines_are_labeled_with_their_last_value() -> None:
    texts = {" ".join(text.split()) for text in _texts(by_n_figure(BY_N, STRATEGIES))}
    assert {"greedy 40.0", "漢字 vote 62.5"} <= texts

    def draw(axes: Any) -> None:
        axes.plot([1, 8], [0.5, -0.5])
        label_ends(axes, {"gap": (8, -0.5)}, ["#000"], height=2)

    assert "gap  \N{MINUS SIGN}0.5" in _texts(draw_svg("line", (4, 2), draw))


def test_the_lambda_figure_marks_the_chosen_value() -> None:
    assert "chosen 0.5" in _texts(by_lambda_figure(BY_LAMBDA))


@pytest.mark.slow
def test_colors_are_variables_that_a_page_can_set(figures: list[str]) -> None:
    for svg in figures:
        assert "var(--fig-ink, #1c2024)" in svg or "var(--fig-muted, #667080)" in svg
        bare = re.sub(r"var\([^)]*\)", "", svg)
        assert not re.search(r": #(?!0{6}|f{6})[0-9a-f]{6}", bare)


def test_no_data_gives_no_figure() -> None:
    assert strategies_figure([]) == ""
    assert by_n_figure(None, []) == ""
    assert by_lambda_figure(None) == ""
    assert reliability_figure(None) == ""
    assert differences_figure({}, "greedy") == ""


@pytest.mark.slow
def test_a_single_point_is_drawn() -> None:
    one = _strategy("a", "pick", 0.5)
    assert by_n_figure(AccuracyByN(n=[4], strategies={"a": [0.5]}), [one])
    curve = AccuracyByLambda(lambda_=[0.1], accuracy=[0.5], low=[0.5], high=[0.5], chosen=0.1)
    assert by_lambda_figure(curve)
    assert strategies_figure([_strategy("a", "pick", 1.0)])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([1.0, 5.0, 9.0], [1.0, 5.0, 9.0]),  # far enough apart: unchanged
        ([3.0, 3.0], [2.0, 4.0]),  # equal: both move apart, centered
        ([0.0, 4.0, 1.0], [-0.5, 4.0, 1.5]),  # the first and last pushed apart
        ([0.0, 1.0, 2.0], [-1.0, 1.0, 3.0]),
    ],
)
def test_labels_are_spread(wanted: list[float], expected: list[float]) -> None:
    assert spread(wanted, gap=2.0) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0.0, 1.0])
def test_many_lines_with_the_same_end_leave_room_for_the_axes(first: float) -> None:
    """Forty names are stacked, alone or below another one; warnings are errors here."""
    many = [_strategy(f"strategy {i}", "vote", 0.5) for i in range(40)]
    shares = {s.id: [0.0, 0.0] for s in many} | {many[0].id: [0.0, first]}
    assert by_n_figure(AccuracyByN(n=[1, 8], strategies=shares), many)


def test_names_keep_their_order_and_distance_inside_the_bounds() -> None:
    assert spread([0.0, 0.0, 5.0], 1.0, (0.0, 5.0)) == [0.0, 1.0, 5.0]
    assert spread([5.0, 5.0, 0.0], 2.0, (0.0, 5.0)) == [3.0, 5.0, 0.0]
