"""The gallery page: orders worked out by hand, and no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ledom.report.gallery_page import Example, Gallery, Missing, Section, Table, write_gallery

ATTACK = "<script>alert(1)</script>"
REVERSE = Example("one", "reverse", ["Once "], ["a", "b", "c"], ["X", "\n"])
FORWARD = Example("two", "forward", ["X", "Y"], ["a", "b"], ["."])


def page(*examples: Example, missing: tuple[Missing, ...] = ()) -> str:
    table = Table("Answers", [["question", "answer"], ["who", ATTACK]])
    section = Section("Texts", "Lead.", "the first.", list(examples), [table], "runs/x")
    gallery = Gallery("Title", "1.0", "ledom gallery", [section], list(missing))
    with TemporaryDirectory() as folder:
        return write_gallery(Path(folder, "gallery.html"), gallery).read_text()


class Elements(HTMLParser):
    """Collect every element with its attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def named(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(text)) for name, attrs, text in self.found if name == tag]


def test_a_reverse_text_is_read_and_written_from_its_end() -> None:
    assert REVERSE.read == ["\n", "X"]
    assert REVERSE.in_model_order == ["c", "b", "a"]
    assert REVERSE.steps == [3, 2, 1]
    assert FORWARD.read == ["X", "Y"]
    assert FORWARD.in_model_order == ["a", "b"]
    assert FORWARD.steps == [1, 2]


def test_both_orders_are_present_as_text_without_a_script() -> None:
    elements = Elements(page(REVERSE))
    written = [(a["data-step"], text) for a, text in elements.named("span") if "data-step" in a]
    assert written == [("3", "a"), ("2", "b"), ("1", "c")]
    order = [text for _, text in elements.named("li")]
    assert order == ["↵", "X", "c", "b", "a"]
    (controls,) = [a for a, _ in elements.named("div") if a.get("class") == "play"]
    assert "hidden" in controls  # the script shows them


def test_scripts_in_texts_are_shown_and_only_the_pages_own_may_run() -> None:
    text = page(Example(ATTACK, "reverse", [], [ATTACK], [ATTACK]))
    assert ATTACK not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 6  # label, 2 x 2 tokens, cell
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_the_page_states_its_rule_and_what_is_missing() -> None:
    text = page(REVERSE, missing=(Missing("Benchmarks", "ledom eval --out RUN"),))
    assert "<strong>Shown:</strong> the first. From <code>runs/x</code>." in text
    assert "Benchmarks: <code>ledom eval --out RUN</code>" in text
    assert "Not shown" not in page(REVERSE)


def test_the_controls_have_names_and_the_slider_has_every_step() -> None:
    elements = Elements(page(REVERSE))
    (slider,) = [a for a, _ in elements.named("input")]
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == (
        "range",
        "0",
        "3",
        "3",
    )
    assert [text for _, text in elements.named("button")] == ["Play"]
    assert [text.strip() for _, text in elements.named("label")] == ["Written"]


@pytest.mark.parametrize("name", ["gallery.html", "new/folder/gallery.html"])
def test_the_page_is_written_where_it_is_asked_for(tmp_path: Path, name: str) -> None:
    gallery = Gallery("Title", "1.0", "ledom gallery", [])
    assert write_gallery(tmp_path / name, gallery) == tmp_path / name
    assert "<title>Title" in (tmp_path / name).read_text()
