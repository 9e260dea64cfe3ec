"""The selection report: its page and its Markdown."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ledom.report import selection_page
from reachable import check_reachable
from selection_report import HOSTILE, QUESTION, as_report, bounds

MINUS = "\N{MINUS SIGN}"


def render_html(report: dict[str, Any]) -> str:
    return selection_page.render(as_report(report))


def render_markdown(report: dict[str, Any]) -> str:
    return selection_page.render(as_report(report), "md")


class _Page(HTMLParser):
    """What a browser would see in a page: its tags with attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _words(page: str) -> list[tuple[str, dict[str, str | None]]]:
    found = re.findall(r'(<span class="w[^>]*>)([^<]*)</span>', page)
    return [(text, _Page(tag).tags[0][1]) for tag, text in found]


def _columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


# --- the page ---


@pytest.mark.usefixtures("no_pictures")
def test_the_cost_of_a_stopped_vote_is_next_to_its_accuracy(report: dict[str, Any]) -> None:
    report["strategies"][2] |= {
        "needed": {
            "candidates": bounds(19.24, 18.71, 19.6),
            "of": 32,
            "saved": bounds(0.3988, 0.3875, 0.4153),
        }
    }
    expected = "19.2 [18.7, 19.6] of 32 candidates needed, 39.9% [38.8, 41.5] saved"
    assert expected in _Page(render_html(report)).text
    rows = [line for line in render_markdown(report).splitlines() if line.startswith("| majority")]
    assert expected in rows[0]


@pytest.mark.usefixtures("no_pictures")
def test_no_share_extends_beyond_its_bounds(report: dict[str, Any]) -> None:
    """All of 29 problems are right: not 100.0 ± 12.0, in the summary or the strategies."""
    report["strategies"][2]["accuracy"] = bounds(1.0, 0.88, 1.0)  # majority
    text = _Page(render_html(report)).text
    assert "± 12.0" not in text
    assert text.count("[88.0, 100.0]") == 2


@pytest.mark.slow
def test_page_refers_to_nothing_outside_itself(report: dict[str, Any]) -> None:
    page = render_html(report)
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    for tag, attributes in _Page(page).tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


@pytest.mark.slow
def test_hostile_texts_are_escaped_everywhere(report: dict[str, Any]) -> None:
    report["title"] = report["command"] = HOSTILE
    report["notes"] = [HOSTILE]
    report["settings"] = {HOSTILE: HOSTILE}
    report["strategies"][1]["id"] = report["strategies"][1]["label"] = HOSTILE
    report["strategies"][1]["formula"] = HOSTILE
    report["accuracy_by_n"]["strategies"] = {HOSTILE: [0.1, 0.2]}
    report["by_group"][0]["group"] = HOSTILE
    case = report["cases"][0]
    case["question"] = case["problem_id"] = case["answer"] = HOSTILE
    case["candidates"][0] |= {"answer": HOSTILE, "scores": {"reverse": -1.0, HOSTILE: 1.0}}
    for rendering in (render_html(report), render_markdown(report)):
        assert "<script" not in rendering
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\u202e]", rendering)
        rendering.encode("utf-8")
    page = _Page(render_html(report))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script> a|b `c`" in page.text
    assert "{{ 7*7 }}" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_page_shows_every_strategy_and_number(report: dict[str, Any]) -> None:
    page = _Page(render_html(report))
    text = " ".join(page.text.split()).replace(MINUS, "-")
    for strategy in report["strategies"]:
        assert strategy["label"] in text
    for number in (
        "41.2 ± 1.2",  # the wider of 0.412 - 0.4 and 0.42 - 0.412
        "47.3 ± 2.2",
        "50.0 ± 5.0",
        "+6.1 [+1.1, +10.0]",
        "-3.2 [-5.0, -1.0]",
        "+0.4 [-1.2, +2.0] points",
        "0.642 [0.631, 0.653]",
        "easy (40)",
        "-12.35",
        "2.6M parameters",
        "tuned elsewhere",
        "0.45",
    ):
        assert number in text, number
    assert "Majority voting is right on 50.0% of the 500 problems" in text


@pytest.mark.usefixtures("no_pictures")
def test_the_headline_says_what_was_shown(report: dict[str, Any]) -> None:
    report["headline"].append({"claim": "Third", "difference": bounds(-0.2, -0.3, -0.1)})
    items = re.findall(r'<li class="(\w+)">(.*?)</li>', render_html(report), re.DOTALL)
    # The claim named before the test comes first; all claims are folded below.
    assert [verdict for verdict, _ in items] == ["better", "better", "open", "worse"]
    assert ["✓" in item for _, item in items] == [True, True, False, False]
    assert ["not shown" in item for _, item in items] == [False, False, True, False]


@pytest.mark.usefixtures("no_pictures")
def test_everything_below_the_first_screen_is_folded(report: dict[str, Any]) -> None:
    page = render_html(report)
    first, folded = page.split('<section class="folded">')
    for text in ("Majority voting is right", "Points above the greedy answer", "Where it helps"):
        assert text in first
        assert text not in folded
    depth = 0
    for part in re.findall(r"<details|</details>|<table|<figure", folded):
        depth += {"<details": 1, "</details>": -1}.get(part, 0)
        assert depth > 0 or part == "</details>", part
    for text in ("All strategies", "pairwise AUC", "Accuracy by group", "tuned elsewhere"):
        assert text.lower() not in first.lower()
        assert text.lower() in folded.lower()


@pytest.mark.usefixtures("no_pictures")
def test_first_case_is_a_wrong_answer_rejected_for_a_right_one(report: dict[str, Any]) -> None:
    report["cases"].insert(0, json.loads(json.dumps(report["cases"][0])))
    report["cases"][0]["problem_id"] = "both-right"
    report["cases"][0]["candidates"][1]["correct"] = True
    first, folded = render_html(report).split('<section class="folded">')
    assert "p-1" in first
    assert "both-right" not in first
    assert "both-right" in folded
    assert "Candidates of the case, and 1 more case<" in folded
    assert "the most likely answer is wrong" in first
    del report["models"]["forward"]
    assert "the answer that explains the question worst is wrong" in render_html(report)
    report["cases"] = report["cases"][:1]
    page = render_html(report)
    assert "Where it helps" not in page
    assert "<summary>1 case<" in page  # there is no case that it could add to
    assert "## Cases\n" in render_markdown(report)


@pytest.mark.usefixtures("no_pictures")
def test_without_labels_the_chosen_answers_are_shown(report: dict[str, Any]) -> None:
    answers = [{"problem_id": "p-1", "question": QUESTION, "answer": "41", "share": 0.75}]
    unlabeled = {"title": "T", "warning": None, "num_problems": 1, "num_labeled": 0}
    unlabeled |= {"answers": answers}
    for rendering in (render_html(unlabeled), render_markdown(unlabeled)):
        assert "nothing was measured" in rendering
        assert "41" in rendering
        assert "75.0" in rendering


@pytest.mark.usefixtures("no_pictures")
def test_the_whole_question_is_shown_under_both_answers(report: dict[str, Any]) -> None:
    questions = re.findall(r'<p class="question">(.*?)</p>', render_html(report), re.DOTALL)
    assert [_Page(question).text for question in questions] == [QUESTION] * 2


@pytest.mark.usefixtures("no_pictures")
def test_badly_explained_words_are_highlighted_and_marked(report: dict[str, Any]) -> None:
    words = _words(render_html(report))
    picked, rejected = words[: len(words) // 2], words[len(words) // 2 :]

    def heat(found: list[tuple[str, dict[str, str | None]]], text: str) -> float:
        style = next(attributes["style"] for word, attributes in found if word == text)
        return float(str(style).removeprefix("--h:"))

    assert heat(rejected, "Ann") == 1.0  # 6.5 nats
    assert heat(rejected, "Ann") > heat(rejected, "red") > heat(picked, "red")
    assert heat(picked, "red") > heat(picked, "has")
    for found in (picked, rejected):
        marked = {word for word, attributes in found if "lost" in str(attributes["class"])}
        assert marked == {"red"}
    titles = {word: attributes["title"] for word, attributes in rejected}
    assert titles["red"] == f"log P = {MINUS}5.00 nats; picked minus rejected +4.00"


@pytest.mark.usefixtures("no_pictures")
def test_the_gap_is_stated_in_words(report: dict[str, Any]) -> None:
    text = " ".join(_Page(render_html(report)).text.split())
    assert "explains the question 4.0 nats better than the rejected one" in text
    assert "falls short most on red (4.0)." in text


@pytest.mark.usefixtures("no_pictures")
def test_huge_texts_are_truncated(report: dict[str, Any]) -> None:
    case = report["cases"][0]
    case["question"] = "q" * 1_000_000
    case["candidates"][0]["text"] = "t" * 1_000_000
    page = render_html(report)
    assert len(page) < 300_000
    assert "q" * 4000 + "…" in page
    assert "q" * 4001 not in page
    assert "t" * 4000 + "…" in page
    assert "t" * 4001 not in page


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")  # each is drawn from its own section alone
def test_missing_sections_render(report: dict[str, Any]) -> None:
    smallest = {"title": "T", "warning": None}
    assert "T" in _Page(render_html(smallest)).text
    assert render_markdown(smallest)
    figures = ("strategies", "accuracy_by_n", "accuracy_by_lambda", "reliability")
    for key in set(report) - set(smallest):
        kept = set(report) - {key} - (set() if key in figures else set(figures))
        kept -= {"accuracy_by_n"} if key == "strategies" else set()  # it refers to them by id
        less = {name: report[name] for name in kept}
        assert render_html(less)
        assert render_markdown(less)


@pytest.mark.usefixtures("no_pictures")
def test_missing_parts_of_a_case_render(report: dict[str, Any]) -> None:
    case = report["cases"][0]
    case["candidates"][1]["role"] = None
    assert render_html(report).count('<p class="question">') == 1
    case["candidates"][0]["question_tokens"] = []
    assert render_html(report).count('<p class="question">') == 1
    case["candidates"] = []
    assert QUESTION in _Page(render_html(report)).text
    assert render_markdown(report)


@pytest.mark.usefixtures("no_pictures")
def test_rendering_does_not_change_the_report(report: dict[str, Any]) -> None:
    before = json.dumps(report)
    assert render_html(report) == render_html(json.loads(before))
    assert render_markdown(report) == render_markdown(json.loads(before))
    assert json.dumps(report) == before


# --- Markdown ---


def test_markdown_tables_have_equal_columns(report: dict[str, Any]) -> None:
    report["cases"][0]["candidates"][0]["answer"] = "a|b\nc\\|d"
    tables = re.findall(r"(?:^\|.*\n)+", render_markdown(report), re.MULTILINE)
    assert len(tables) == 7  # first rows, strategies, AUC, groups, words, candidates, facts
    for table in tables:
        assert len({_columns(line) for line in table.splitlines()}) == 1, table


def test_markdown_shows_names_and_numbers(report: dict[str, Any]) -> None:
    markdown = render_markdown(report)
    for text in ("reverse\\|reward", "47.3 ± 2.2", "+6.1 [+1.1, +10.0]", "✓ shown"):
        assert text in markdown
    assert f"| red | {MINUS}1.00 | {MINUS}5.00 |" in markdown


def test_markdown_shows_texts_verbatim(report: dict[str, Any]) -> None:
    report["notes"] = ["# _no_ *mark* ![x](y) a_b [0, 1] 1\n\n2 & <b>"]
    line = r"* \# \_no\_ \*mark\* ![x\](y) a_b [0, 1] 1 2 &amp; &lt;b>"
    assert line in render_markdown(report).splitlines()


@pytest.mark.usefixtures("no_pictures")
def test_many_groups_are_listed_as_rows(report: dict[str, Any]) -> None:
    report["by_group"] = [
        {"group": f"g{number}", "num_problems": 1, "accuracy": {"greedy": 0.5}}
        for number in range(50)
    ]
    markdown = render_markdown(report)
    assert "| group | greedy |" in markdown
    assert "| g49 (1) | 50.0 |" in markdown


@pytest.mark.usefixtures("no_pictures")
def test_a_case_states_the_same_score_as_the_table(report: dict[str, Any]) -> None:
    case = report["cases"][0]
    for candidate in case["candidates"]:
        candidate["scores"] = {"reverse": -73.67 if candidate["role"] == "picked" else -77.71}
    text = render_html(report)
    assert "log P(x|y) = \u221273.7 nats" in text
    assert "log P(x|y) = \u221277.7 nats" in text
    assert "explains the question 4.0 nats better" in text


@pytest.mark.slow
def test_scrolling_parts_take_focus_and_every_figure_has_a_name(
    report: dict[str, Any],
) -> None:
    check_reachable(render_html(report))
