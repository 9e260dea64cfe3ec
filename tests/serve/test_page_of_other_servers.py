"""The page of servers started with other settings, in headless Chromium."""

from __future__ import annotations

from typing import Any

import pytest

from ledom.serve.judge import Judge
from ledom.serve.settings import Limits
from serving import Models, running

pytestmark = pytest.mark.slow


def test_a_reward_with_scores_missing_on_the_page_is_noted(browser: Any, pair: Models) -> None:
    with running(Judge(*pair, "worst_step"), Limits()) as server:
        page = browser.new_page()
        page.goto(f"{server.url}/#judge")
        page.wait_for_selector("body[data-ready]")
        assert not page.locator("#warning").is_visible()  # a recorded ranking by lambda
        page.locator("#judge-run").click()
        page.get_by_text("reward (worst_step) weighs other scores too: worst_step").wait_for()
        page.close()


def test_a_browser_asks_for_the_token_as_a_password(browser: Any, pair: Models) -> None:
    with running(Judge(*pair), Limits(), token="secret") as server:
        for password, status in (("secret", 200), ("wrong", 401)):
            known = {"username": "me", "password": password}
            context = browser.new_context(http_credentials=known)
            page = context.new_page()
            assert page.goto(server.url).status == status
            if status == 200:
                page.wait_for_selector("body[data-ready]")
                assert not page.locator("#notice").is_visible()
            context.close()


def test_a_reverse_proxy_may_put_a_prefix_before_all_paths(browser: Any, pair: Models) -> None:
    asked = []

    def forward(route: Any) -> None:
        asked.append(url := route.request.url)
        route.fulfill(response=route.fetch(url=url.replace("/prefix", "")))

    with running(Judge(*pair), Limits()) as server:
        page = browser.new_page()
        page.route("**/*", forward)
        page.goto(f"{server.url}/prefix/#judge")
        page.wait_for_selector("body[data-ready]")
        with page.expect_response("**/prefix/ledom/score") as judged:
            page.locator("#judge-run").click()
        assert judged.value.ok
        page.locator("nav").get_by_text("API").click()
        page.get_by_text("/ledom/score").first.wait_for()
        page.close()
    assert all(url.startswith(f"{server.url}/prefix/") for url in asked)
