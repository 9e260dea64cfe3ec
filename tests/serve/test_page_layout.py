"""How the page looks: in forced colors, on paper, with one model. Skipped without Chromium."""

from __future__ import annotations

from typing import Any

import pytest

import ledom
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.settings import Limits
from serving import running

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.slow

BORDERS = "links => links.map(link => getComputedStyle(link).borderBottomWidth)"
COLORS = "bars => bars.map(bar => getComputedStyle(bar, '::after').backgroundColor)"


def test_forced_colors_keep_what_colors_mean(browser: Any, server: Server) -> None:
    page = browser.new_page(forced_colors="active")
    page.goto(f"{server.url}/#judge")
    page.wait_for_selector("body[data-ready]")
    assert page.locator("nav a").evaluate_all(BORDERS) == ["0px", "2px", "0px", "0px"]
    colors = {
        page.locator(f".bars .{kind}").evaluate_all(COLORS)[0]
        for kind in ("forward", "reverse", "total")
    }
    assert len(colors) == 3
    page.close()


def test_a_ranking_is_printed_with_its_bars_and_without_controls(
    browser: Any, server: Server
) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/#judge")
    page.wait_for_selector("body[data-ready]")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#judge-run").is_visible()
    assert not page.locator("#judge-example").is_visible()
    bar = page.locator("#ranking .bar").first
    assert bar.evaluate("bar => getComputedStyle(bar).printColorAdjust") == "exact"
    page.close()


def test_an_address_that_names_a_view_shows_the_header_too(browser: Any, server: Server) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 600})
    for view in ("write", "judge"):
        page.goto("about:blank")
        page.goto(f"{server.url}/#{view}")
        page.wait_for_selector("body[data-ready]")
        page.wait_for_timeout(300)  # browsers scroll to the view after it is loaded
        assert page.evaluate("scrollY") == 0
    page.close()


def test_without_a_reverse_model_an_answer_has_the_whole_width(browser: Any) -> None:
    with running(Judge(ledom.load("tiny", "forward"), None), Limits()) as server:
        page = browser.new_page()
        page.goto(f"{server.url}/#judge")
        page.wait_for_selector("body[data-ready]")
        page.locator("#judge-run").click()
        card = page.locator("#ranking li:not(:has(h4))").first
        card.wait_for()
        text, bars = card.locator("> div").all()
        assert text.bounding_box()["width"] == bars.bounding_box()["width"]
        page.close()
