"""The page in forced colors and on paper, in headless Chromium. Skipped without Chromium."""

from __future__ import annotations

from typing import Any

import pytest

from ledom.serve.server import Server

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
    bar = page.locator("#ranking .bar").first
    assert bar.evaluate("bar => getComputedStyle(bar).printColorAdjust") == "exact"
    page.close()
