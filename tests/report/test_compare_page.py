"""The training report on both directions: its words, tables and figures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from from_json import from_json
from ledom.report import compare_page, curves
from ledom.report.results import Comparison, RunComparison
from reachable import check_reachable

HOSTILE = "<script>alert(1)</script> a|b $x$ \x00 {{ 7*7 }}"
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def render_html(report: dict[str, Any]) -> str:
    return compare_page.render(from_json(Comparison, report))


def render_markdown(report: dict[str, Any]) -> str:
    return compare_page.render(from_json(Comparison, report), "md")


def claims(report: dict[str, Any]) -> list[str]:
    return compare_page.claims(from_json(Comparison, report))


def runs_of(runs: list[dict[str, Any]]) -> list[RunComparison]:
    return [from_json(RunComparison, run) for run in runs]


SHOWN = "shown for this pair: the reverse model's loss is"


def _course(*losses: float, steps: int = 20) -> dict[str, Any]:
    tokens = [10_000 * (i + 1) for i in range(len(losses))]
    return {
        "steps": steps,
        "tokens": 12_345_678,
        "tokens_per_second": 2345.6,
        "training": {"tokens": tokens, "loss": [loss - 0.1 for loss in losses]},
        "validation": {
            "step": list(range(1, len(losses) + 1)),
            "tokens": tokens,
            "loss": list(losses),
            "by_position": {"0": [5.0] * len(losses), "4": list(losses)},
            "by_source": {HOSTILE: list(losses), "late": [None, *losses[1:]]},
        },
        "final_loss": losses[-1] if losses else None,
    }


def _gap(mean: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"step": 20, "tokens": 20_000, "mean": mean, "low": low, "high": high}


@pytest.fixture
def report() -> dict[str, Any]:
    gap = _gap(0.0123, 0.0012, 0.0234)
    part = {"num_tokens": 1234, "forward": 3.0, "reverse": 2.9, "gap": -0.1}
    scratch = {
        "name": "scratch",
        "directions": {"forward": _course(4.0, 3.0), "reverse": _course(4.1, 3.0123)},
        "settings": {"seed": 1, "optim.steps": 30, "data.train": HOSTILE},
        "gap": [_gap(0.1, 0.05, 0.15), gap],
        "final_gap": gap
        | {"forward": 3.0, "reverse": 3.0123, "relative": 0.0041, "num_tokens": 99_999}
        | {"num_windows": 512},
        "gap_by_position": [part | {"name": "0"}, part | {"name": "4"}],
        "gap_by_source": [part | {"name": HOSTILE}],
    }
    adapted = {
        "name": "adapted",
        "directions": {"reverse": _course(3.1)},
        "settings": {"seed": 1, "optim.steps": 5},
    }
    crossing = {
        "run": "adapted",
        "direction": "reverse",
        "other_run": "scratch",
        "other_direction": "reverse",
        "loss": 3.0123,
        "other_tokens": 20_000,
        "tokens": 5000.0,
        "at_first_validation": True,
        "share": 0.25,
        "lowest": 2.9,
    }
    never = crossing | {"tokens": None, "share": None, "lowest": 3.2}
    return {
        "title": "Direction in training",
        "command": "ledom compare scratch adapted",
        "runs": [scratch, adapted],
        "seeds": [],
        "crossings": [crossing, never],
        "notes": ["something to know"],
    }


def _texts(svg: str) -> list[str]:
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [" ".join("".join(element.itertext()).split()) for element in elements]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.0012, 0.0234, f"{SHOWN} higher; the interval excludes 0"),
        (-0.3, -0.1, f"{SHOWN} lower; the interval excludes 0"),
        (-0.1, 0.1, "nothing shown: the interval includes 0"),
        (0.0, 0.1, "nothing shown: the interval includes 0"),
        (None, None, "no interval: these metrics have the losses of fewer than ten windows"),
    ],
)
def test_what_the_interval_says(
    report: dict[str, Any], low: float | None, high: float | None, words: str
) -> None:
    report["runs"][0]["final_gap"] |= {"low": low, "high": high}
    (line,) = claims(report)
    assert line.endswith(words)
    assert words.replace("'", "&#39;") in render_html(report)
    assert words in render_markdown(report)


def test_the_claim_is_written_in_full(report: dict[str, Any]) -> None:
    assert claims(report) == [
        "scratch: after step 20 the reverse model is at 3.012 nats per token, its forward twin at "
        "3.000, on 99,999 tokens in 512 windows: +0.0123 [+0.0012, +0.0234], +0.41%; "
        f"{SHOWN} higher; the interval excludes 0"
    ]


@pytest.mark.usefixtures("no_pictures")
def test_the_claim_covers_several_seeds(report: dict[str, Any]) -> None:
    group = {"runs": ["a", "b"], "mean": 0.02, "deviation": 0.005, "lowest": 0.01, "highest": 0.03}
    report["seeds"] = [group]
    assert claims(report)[1] == (
        "2 pairs that differ only in their seed (a, b): the mean of their gaps: +0.0200, from "
        "+0.0100 to +0.0300; all of the same sign; standard deviation between pairs 0.0050"
    )
    report["seeds"] = [group | {"lowest": -0.01}]
    assert f"from {MINUS}0.0100 to +0.0300; of both signs" in claims(report)[1]
    assert "standard deviation between pairs 0.0050" in render_html(report)


def test_tables_show_the_numbers(report: dict[str, Any]) -> None:
    page = render_markdown(report)
    for row in (
        "| scratch | forward | 20 of 30 | 12.3M | 2,346 | 3.0000 |",
        "| adapted | reverse | 20 | 12.3M | 2,346 | 3.1000 |",
        "| scratch | 20 | 20k | +0.0123 [+0.0012, +0.0234] |",
        f"| scratch | 4{DASH}7 | 1,234 | 3.000 | 2.900 | {MINUS}0.1000 |",
        "| adapted, reverse | scratch, reverse | 3.0123 | at most 5,000 (25%) | 20k |",
        "| adapted, reverse | scratch, reverse | 3.0123 | never; its lowest is 3.2000 | 20k |",
        "* something to know",
    ):
        assert row in page.splitlines()
    settings = page[page.index("## Settings") :]
    assert settings.index("optim.steps") < settings.index("seed")  # settings that differ come first


@pytest.mark.slow
def test_figures_name_their_lines(report: dict[str, Any]) -> None:
    figures = compare_page._figures(runs_of(report["runs"]))
    assert {"scratch forward 3.000", "scratch reverse 3.012", "adapted reverse 3.100"} <= set(
        _texts(figures["loss"])
    )
    assert "scratch 0.0123" in _texts(figures["gap"])
    assert {"0 5.00", f"4{DASH}7 3.00"} <= set(_texts(figures["by_position"]))
    ids = re.findall(r'\bid="([^"]*)"', "".join(figures.values()))
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_a_single_run_is_not_named_in_the_figure(report: dict[str, Any]) -> None:
    assert {"forward 3.000", "reverse 3.012"} <= set(
        _texts(curves.loss_figure(runs_of(report["runs"][:1])))
    )


@pytest.mark.slow
def test_the_page_is_self_contained_and_escapes_everything(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert "<script" not in page
    assert page.count("alert(1)&lt;/script&gt; a|b $x$ \ufffd {{ 7*7 }}") == 2  # source, setting
    assert page.count("<svg") == 6
    assert set(re.findall(r'(?:href|src)="([^#][^"]*)"', page)) == set()
    assert "\x00" not in page


@pytest.mark.slow
def test_a_page_with_little_data_renders() -> None:
    """The run has not been validated yet, so there is only its training loss."""
    course = _course()
    course |= {"training": {"tokens": [100, 200], "loss": [5.0, 4.5]}}
    course["validation"] |= {"by_position": {}, "by_source": {}}
    runs = [{"name": "r", "directions": {"reverse": course}, "settings": {}}]
    report = {"title": "t", "runs": runs, "seeds": [], "crossings": [], "notes": []}
    page = render_html(report)
    assert page.count("<svg") == 1
    assert "reverse 4.500" in _texts(curves.loss_figure(runs_of(runs)))
    assert "arrow of time" not in page
    assert "Settings" not in render_markdown(report)


def test_no_data_gives_no_figure() -> None:
    course = _course()
    course["validation"] |= {"by_position": {}, "by_source": {}}
    figures = compare_page._figures(
        runs_of([{"name": "r", "directions": {"reverse": course}, "settings": {}}])
    )
    assert set(figures.values()) == {""}


@pytest.mark.usefixtures("no_pictures")
def test_three_files_are_written(tmp_path: Path, report: dict[str, Any]) -> None:
    page = compare_page.write_comparison(tmp_path, from_json(Comparison, report))
    assert page == tmp_path / "compare.html"
    assert {file.name for file in tmp_path.iterdir()} == {
        "compare.html",
        "compare.md",
        "compare.json",
    }
    written = json.loads((tmp_path / "compare.json").read_text())
    assert written["runs"][0] == report["runs"][0]
    assert written["crossings"] == report["crossings"]


@pytest.mark.slow
def test_scrolling_parts_take_focus_and_every_figure_has_a_name(
    report: dict[str, Any],
) -> None:
    check_reachable(render_html(report))


@pytest.mark.slow
def test_long_names_leave_room_for_the_axes(report: dict[str, Any]) -> None:
    """matplotlib warns if a legend pushes out the axes."""
    for run in report["runs"]:
        run["name"] += "W" * 300
    assert "W" * 45 not in "".join(re.findall("<svg .*?</svg>", render_html(report), re.DOTALL))


@pytest.mark.slow
def test_a_part_with_only_one_direction_is_named(report: dict[str, Any]) -> None:
    run = report["runs"][0]
    for direction, parts in {"forward": {}, "reverse": {"web": [4.0, 3.0]}}.items():
        run["directions"][direction]["validation"]["by_source"] = parts
    assert "web 3.00" in _texts(curves.parts_figure(*runs_of([run]), "by_source"))
