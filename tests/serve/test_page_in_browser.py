"""The page as a person uses it, in headless Chromium, with two tiny random models.

Skipped without Chromium. With LEDOM_SCREENSHOTS=FOLDER, screenshots are kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import ledom
from ledom.serve.judge import Judge
from ledom.serve.server import Server
from ledom.serve.settings import Limits
from serving import running
from waiting import SECONDS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

pytestmark = pytest.mark.slow

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
EXAMPLES = Path(ledom.__file__).parent / "serve" / "page" / "examples.json"
VIEWS = ("write", "judge", "gallery")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    (folder / "demo").mkdir()
    page = "<title>A report</title><p>found</p><script>document.title = 'it ran'</script>"
    (folder / "demo" / "report.html").write_text(page)
    return folder


@pytest.fixture(scope="module")
def server(reports: Path) -> Iterator[Server]:
    judge = Judge(ledom.load("tiny", "forward"), ledom.load("tiny", "reverse"))
    with running(judge, Limits(), reports=reports) as server:
        yield server


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Open]:
    """Open a view; at the end, the console must be empty and no dialog have appeared."""
    wrong: list[str] = []
    contexts: list[Any] = []

    def visit(view: str, **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": 1200, "height": 900}, **settings)
        context.set_default_timeout(1000 * SECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        page.goto(f"{server.url}/#{view}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def recorded() -> Any:
    return json.loads(EXAMPLES.read_text())


def texts(page: Any, selector: str) -> list[str]:
    return [text.replace("↵", "") for text in page.locator(selector).all_text_contents()]


def tokens_by_index(pane: Any) -> dict[str, str]:
    """Token texts by their place in the order of generation."""
    pairs = "all => all.map(token => [token.dataset.index, token.textContent])"
    return dict(pane.locator(".token").evaluate_all(pairs))


def done(page: Any, direction: str) -> None:
    """Wait until that model has stopped generating."""
    side = {"reverse": "left", "forward": "right"}[direction]
    page.get_by_role("button", name=f"Write to the {side}").wait_for()


def write_some(page: Any, given: str, direction: str = "reverse", tokens: int = 8) -> None:
    """Let a model generate at least `tokens` tokens, then stop it."""
    pane = page.locator(f"#{direction}-pane")
    pane.locator("textarea").fill(given)
    pane.locator("[data-part=write]").click()
    pane.locator(".token").nth(tokens - 1).wait_for()
    stop = pane.get_by_role("button", name="Stop")
    if stop.is_visible():
        stop.click()
    done(page, direction)


def test_recorded_examples_are_shown_before_any_model_is_asked(
    browser: Any, server: Server
) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.route("**/ledom/**", lambda route: (asked.append(route.request.url), route.abort()))
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    example = recorded()["examples"][0]
    for name in ("reverse", "forward"):
        written = "".join(token["text"] for token in example["write"][name]["tokens"])
        shown = "".join(texts(page, f"#{name}-pane .token")).strip("∎")
        assert shown == written
    assert "Only recorded examples" in page.locator("#notice").inner_text()
    page.get_by_role("link", name="Judge").click()
    assert page.locator("#ranking > li").count() == len(example["answers"])
    assert {url.rsplit("/", 1)[1] for url in asked} == {"models", "reports"}
    page.close()


def test_a_text_grows_to_the_left(visit: Open, server: Server) -> None:
    page = visit("write")
    write_some(page, "so she has 7 pens\n#### 7")
    tokens = page.locator("#reverse-pane .token:not([aria-label^='end'])")
    body = {"model": "reverse", "prompt": "so she has 7 pens\n#### 7", "max_tokens": 6}
    made = httpx.post(f"{server.url}/ledom/generate", json=body, timeout=SECONDS).json()
    shown = [text.replace("↵\n", "\n") for text in tokens.all_text_contents()]
    assert shown[-6:] == [token["text"] for token in made["tokens"]]
    tokens.last.hover()
    rows = page.locator("#alternatives button")
    nearest = made["tokens"][-1]["alternatives"]
    assert rows.count() == 6
    for row, one in zip(rows.all()[:5], nearest, strict=True):
        share = row.locator(".share").inner_text()
        assert float(share.strip("<%")) == pytest.approx(100 * math.exp(one["logprob"]), abs=0.51)


def test_a_note_says_that_a_model_does_not_know_such_a_text(visit: Open) -> None:
    page = visit("write")
    write_some(page, "It was the best of times, it was the worst of times.")
    note = page.locator("#reverse-pane [data-part=status]")
    assert "what it writes means nothing here" in note.inner_text()
    write_some(page, recorded()["examples"][0]["write"]["reverse"]["given"])
    assert "unlike" not in note.inner_text()


def test_a_copied_text_is_as_the_model_wrote_it(visit: Open) -> None:
    page = visit("write", permissions=["clipboard-read", "clipboard-write"])
    written = "".join(
        token["text"] for token in recorded()["examples"][0]["write"]["reverse"]["tokens"]
    )
    assert "\n" in written
    text = "document.querySelector('#reverse-pane [data-part=text]')"
    page.evaluate(f"getSelection().selectAllChildren({text})")
    page.keyboard.press("Control+c")
    assert page.evaluate("navigator.clipboard.readText()") == written.rstrip("\n")


def test_an_alternative_begins_a_branch_and_both_are_kept(visit: Open) -> None:
    page = visit("write")
    write_some(page, "#### 7", tokens=10)
    pane = page.locator("#reverse-pane")
    kept = tokens_by_index(pane)
    pane.locator('.token[data-index="4"]').hover()
    choice = page.locator("#alternatives button:enabled:not([aria-current])").first
    piece = choice.locator(".piece").inner_text()
    choice.click()
    pane.locator('.token[data-index="6"]').wait_for()
    if pane.get_by_role("button", name="Stop").is_visible():
        pane.get_by_role("button", name="Stop").click()
    done(page, "reverse")
    after = tokens_by_index(pane)
    assert [after[str(i)] for i in range(4)] == [kept[str(i)] for i in range(4)]
    label = pane.locator('.token[data-index="4"]').get_attribute("aria-label")
    assert label.startswith(piece + ", ")
    branches = pane.locator(".branch")
    assert branches.count() == 3  # the recorded one, the first one and this one
    assert branches.nth(2).get_attribute("aria-pressed") == "true"
    shared = branches.nth(1).locator(".faint").text_content()
    nearest = "".join(kept[str(i)] for i in (3, 2, 1, 0)).replace("↵", "")
    assert shared == nearest
    branches.nth(1).click()
    assert tokens_by_index(pane) == kept


def test_everything_works_by_keyboard(visit: Open) -> None:
    page = visit("write")
    write_some(page, "#### 7", tokens=6)
    active = "document.activeElement.dataset.index ?? document.activeElement.className"
    page.locator('#reverse-pane .token[tabindex="0"]').focus()
    page.keyboard.press("End")
    assert page.evaluate(active) == "0"  # the rightmost token was generated first
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(active) == "1"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('#alternatives') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate(active) == "1"
    assert page.locator("#alternatives").is_hidden()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#reverse-pane .branch").count() == 3


def test_the_focus_is_not_lost_when_a_button_is_used(visit: Open) -> None:
    page = visit("write")
    active = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
    write_some(page, "#### 7", tokens=6)
    pane = page.locator("#reverse-pane")
    pane.locator(".branch").nth(1).press("Enter")
    assert page.evaluate(active).startswith("Branch 2")
    pane.get_by_role("button", name="Continue").press("Enter")
    assert page.evaluate(active) in ("Stop", "Write to the left")
    page = visit("judge")
    page.get_by_role("button", name="Judge", exact=True).press("Enter")
    page.locator("#judge-run:enabled").wait_for()
    assert page.evaluate(active) == "Judge"
    rows = page.locator("#answers .remove").count()
    page.get_by_role("button", name="Remove answer 1").press("Enter")
    assert page.evaluate(active) == "Remove answer 1"
    for _ in range(rows - 1):
        page.keyboard.press("Enter")
    assert page.evaluate(active) == "Add an answer"


def test_the_twin_gets_the_generated_question(visit: Open) -> None:
    page = visit("write")
    example = recorded()["examples"][0]["write"]["reverse"]
    question = "".join(token["text"] for token in example["tokens"]).split("\n\n")[0]
    page.get_by_role("button", name="Ask the twin this question").click()
    assert page.locator("#forward-pane textarea").input_value() == question + "\n\n"
    page.locator("#forward-pane .branch").nth(1).wait_for()
    page.locator("#forward-pane [data-part=status]", has_text="Complete.").wait_for()


def test_answers_are_judged_and_lambda_ranks_without_a_request(visit: Open, server: Server) -> None:
    page = visit("judge")
    question, answers = "Ava has 3 pens and buys 4.", ["3 + 4 = 7", "3 * 4 = 12", f"it is {SCRIPT}"]
    page.get_by_label("Question", exact=True).fill(question)
    for _ in range(3):
        page.get_by_role("button", name="Remove answer 1").click()
    page.get_by_label("Answer 1", exact=True).fill("\n---\n".join(answers))
    page.get_by_role("button", name="Judge", exact=True).click()
    page.locator("#ranking > li").nth(2).wait_for()
    body = {"question": question, "answers": answers}
    found = httpx.post(f"{server.url}/ledom/score", json=body, timeout=SECONDS).json()["results"]
    assert texts(page, "#ranking .solution").count(answers[2]) == 1  # shown as text, not run
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for lam in (0, 0.3, 0.5, 1):
        for per_token in (False, True):
            page.get_by_label("per token").set_checked(per_token)
            page.locator("#lambda").fill(str(lam))
            end = "_mean" if per_token else ""
            score = [
                (1 - lam) * r["features"]["forward" + end] + lam * r["features"]["reverse" + end]
                for r in found
            ]
            order = sorted(range(3), key=lambda i: -score[i])
            assert texts(page, "#ranking h3") == [f"Answer {i + 1}" for i in order]
            assert texts(page, "#judge-status") == [f"Answer {order[0] + 1} ranks first."]
    assert requests == []
    first = found[order[0]]["scores"]["x|y"]["words"]
    assert texts(page, "#ranking > li:first-child .question") == [question]
    worst = sorted((w["logprob"], w["text"]) for w in first if w["logprob"] is not None)[:5]
    listed = texts(page, "#ranking > li:first-child .least li")
    assert [item.split(" ")[0] for item in listed] == [text for value, text in worst if value <= -1]


def test_answers_can_be_sampled(visit: Open) -> None:
    page = visit("judge")
    before = page.locator("#answers textarea").count()
    page.get_by_role("button", name="Sample 4 answers").click()
    page.locator("#answers textarea").nth(before + 3).wait_for()
    values = [area.input_value() for area in page.locator("#answers textarea").all()]
    assert len(set(values)) == before + 4
    assert texts(page, "#judge-status") == ["Added 4 answers."]


def test_answers_to_a_long_question_are_sampled_within_the_context(visit: Open) -> None:
    page = visit("judge")
    page.get_by_label("Question", exact=True).fill("Ava has 3 pens and 4 cats. " * 38)
    before = page.locator("#answers textarea").count()
    page.get_by_role("button", name="Sample 4 answers").click()
    page.locator("#answers textarea").nth(before + 3).wait_for()
    assert page.locator("#answers textarea").count() == before + 4


def test_a_note_says_that_a_long_answer_is_read_in_part(visit: Open) -> None:
    page = visit("judge")
    page.get_by_label("Answer 1", exact=True).fill("3 + 4 = 7\n" * 200)
    page.get_by_role("button", name="Judge", exact=True).click()
    page.get_by_text("The models read only a part").wait_for()
    (card,) = page.locator("#ranking > li", has_text="read only a part").all()
    assert card.locator("h3").inner_text() == "Answer 1"


def test_bad_input_is_reported_on_the_page(visit: Open) -> None:
    page = visit("write")
    page.locator("#reverse-pane textarea").fill("")
    page.get_by_role("button", name="Write to the left").click()
    assert "Type an ending" in page.locator("#reverse-pane [data-part=status]").inner_text()
    page.get_by_role("link", name="Judge").click()
    page.locator("#answers").evaluate("all => all.replaceChildren()")
    page.get_by_role("button", name="Judge", exact=True).click()
    assert "Give an answer" in page.locator("#judge-status").inner_text()


def test_the_gallery_leads_to_examples_and_reports(visit: Open) -> None:
    page = visit("gallery")
    examples = recorded()["examples"]
    assert page.locator("#cards article").count() == len(examples)
    page.get_by_role("button", name="Problem 2: see it judged").click()
    assert page.get_by_label("Question", exact=True).input_value() == examples[1]["question"]
    page.get_by_role("link", name="Gallery").click()
    page.get_by_role("button", name="Problem 3: see it written").click()
    given = page.locator("#reverse-pane textarea").input_value()
    assert given == examples[2]["write"]["reverse"]["given"]


def test_a_report_is_shown_without_running_its_script(browser: Any, server: Server) -> None:
    page = browser.new_page()  # its console reports a blocked script
    page.goto(f"{server.url}/#gallery")
    page.get_by_role("link", name="demo/report.html").click()
    page.get_by_text("found").wait_for()
    assert page.title() == "A report"
    page.close()


def test_an_example_can_be_chosen_again_after_other_actions(visit: Open) -> None:
    page = visit("write")
    first = recorded()["examples"][0]
    choice, given = page.locator("#write-example"), page.locator("#reverse-pane textarea")
    assert choice.input_value() == "0"
    write_some(page, "#### 7", tokens=1)
    assert choice.input_value() == ""  # what is shown is not an example
    choice.select_option("0")
    assert given.input_value() == first["write"]["reverse"]["given"]
    page.goto(f"{page.url.split('#')[0]}#judge")
    choice, question = page.locator("#judge-example"), page.locator("#question")
    question.fill("How many?")
    page.locator("#judge-run").click()
    sync_api.expect(choice).to_have_value("", timeout=1000 * SECONDS)
    choice.select_option("0")
    assert question.input_value() == first["question"]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_the_api_page_runs_examples(visit: Open, tmp_path: Path, scheme: str, width: int) -> None:
    folder = Path(os.environ.get("LEDOM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page = visit("write", color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.get_by_role("link", name="API").click()
    box = page.locator("details", has_text="POST /rerank").last
    box.locator("summary").press("Enter")
    box.get_by_role("button", name="Send to /rerank").press("Enter")
    box.get_by_role("log", name="Answer of /rerank").get_by_text("relevance_score").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=folder / f"api-{scheme}-{width}.png", full_page=True)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1200)])
def test_each_view_is_accessible_and_fits(
    visit: Open, tmp_path: Path, scheme: str, width: int
) -> None:
    folder = Path(os.environ.get("LEDOM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page = visit("write", color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})
    for view in VIEWS:
        page.goto(f"{page.url.split('#')[0]}#{view}")
        if view == "write":
            write_some(page, "#### 7")
            page.locator("#reverse-pane .token").last.hover()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        picture = folder / f"{view}-{scheme}-{width}.png"
        page.screenshot(path=picture, full_page=view != "write")  # this closes alternatives
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_the_names_of_views_are_not_broken_on_a_small_phone(visit: Open) -> None:
    page = visit("write")
    page.set_viewport_size({"width": 320, "height": 640})
    links = page.locator("nav a")
    heights = [box["height"] for box in (link.bounding_box() for link in links.all())]
    assert len(heights) == 4
    assert max(heights) < 45  # one line each
