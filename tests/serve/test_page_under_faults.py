"""The page when the server is slow, gone, or sends something else, in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ledom
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.settings import Limits
from serving import running

pytestmark = pytest.mark.slow

EXAMPLES = Path(ledom.__file__).parent / "serve" / "page" / "examples.json"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    judge = Judge(ledom.load("tiny", "forward"), ledom.load("tiny", "reverse"))
    with running(judge, Limits()) as server:
        yield server


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda route: route.abort(), "the server does not answer"),
        (lambda route: route.fulfill(body='{"a":'), "the server's answer is not valid JSON"),
    ],
)
def test_an_error_disappears_when_the_model_writes_again(
    browser: Any, server: Server, fault: Callable[[Any], None], message: str
) -> None:
    page = browser.new_page()  # its console reports a failed request
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    page.route("**/ledom/generate", fault)
    pane = page.locator("#reverse-pane")
    pane.locator("textarea").fill("\n\n#### 7")
    pane.get_by_role("button", name="Write to the left").click()
    pane.get_by_text(message).wait_for()
    page.unroute("**/ledom/generate")
    pane.get_by_role("button", name="Continue").click()
    pane.locator(".token").first.wait_for()
    assert pane.locator("[data-part=status]").inner_text() == ""
    page.close()


def test_a_slow_result_does_not_replace_what_was_chosen_meanwhile(
    browser: Any, server: Server
) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/#judge")
    page.wait_for_selector("body[data-ready]")
    page.route("**/ledom/score", lambda route: None)  # no answer arrives
    page.get_by_label("Question", exact=True).fill("Ava has 3 pens.")
    with page.expect_request("**/ledom/score"):
        page.get_by_role("button", name="Judge", exact=True).click()
    page.locator("#judge-example").select_option("1")
    page.locator("#judge-run:enabled").wait_for()
    question = json.loads(EXAMPLES.read_text())["examples"][1]["question"]
    assert page.get_by_label("Question", exact=True).input_value() == question
    assert page.locator("#ranking .question").first.text_content() == question
    assert page.locator("#judge-status").inner_text().endswith("ranks first.")
    page.close()


@pytest.mark.parametrize(
    ("view", "path", "message"),
    [
        ("#judge", "/page/examples.json", "The page cannot start: the server does not answer"),
        ("docs", "/openapi.json", "The list of routes cannot be shown: the server does not an"),
    ],
)
def test_a_page_that_cannot_load_says_so(
    browser: Any, server: Server, view: str, path: str, message: str
) -> None:
    page = browser.new_page()
    page.route(f"**{path}", lambda route: route.abort())
    page.goto(f"{server.url}/{view}")
    shown = page.get_by_text(message)
    shown.wait_for()
    assert shown.count() == 1
    page.close()
