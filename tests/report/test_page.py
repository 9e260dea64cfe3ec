"""The files of a report: complete, safe and readable by any JSON parser."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from ledom.core.errors import OutputError
from ledom.report import selection_page
from ledom.report.formatting import to_json
from selection_report import as_report
from waiting import SECONDS


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    return selection_page.write_report(folder, as_report(report))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_files_are_written_and_the_json_round_trips(tmp_path: Path, report: dict[str, Any]) -> None:
    typed = as_report(report)
    page = write_report(tmp_path / "new" / "folder", report)
    assert page == tmp_path / "new" / "folder" / "report.html"
    assert page.read_text(encoding="utf-8") == selection_page.render(typed)
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    assert markdown == selection_page.render(typed, "md")
    written = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert written == {"format": 2, **to_json(typed)}
    assert written["cases"] == report["cases"]  # including the hostile text and its lone surrogate
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_become_null(tmp_path: Path, report: dict[str, Any], bad: float) -> None:
    report["headline"][0]["difference"]["low"] = bad
    report["cases"][0]["candidates"][0]["question_tokens"][1]["logprob"] = bad
    report["settings"]["bad"] = bad
    page = write_report(tmp_path, report)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = page.with_suffix(".json").read_text(encoding="utf-8")
    written = json.loads(text, parse_constant=refuse)
    assert written["headline"][0]["difference"]["low"] is None
    assert written["settings"]["bad"] is None


@pytest.mark.slow
def test_numpy_numbers_are_written(tmp_path: Path, report: dict[str, Any]) -> None:
    report["num_problems"] = numpy.int64(7)
    report["accuracy_by_n"]["strategies"]["greedy"] = numpy.array([0.5, numpy.nan])
    written = json.loads(write_report(tmp_path, report).with_suffix(".json").read_text())
    assert written["num_problems"] == 7
    assert written["accuracy_by_n"]["strategies"]["greedy"] == [0.5, None]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_opened_page_is_accessible(
    tmp_path: Path, report: dict[str, Any], browser: Any, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    page = browser.new_page(color_scheme=scheme)
    page.goto(write_report(tmp_path, report).as_uri())
    page.locator("details").evaluate_all("all => all.forEach(one => (one.open = true))")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()


@pytest.mark.usefixtures("no_pictures")
def test_a_place_that_cannot_be_written_is_an_output_error(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(blocked, report)


@pytest.mark.slow
def test_importing_is_cheap() -> None:
    code = (
        "import sys, ledom.report.selection_page\n"
        "heavy = {'matplotlib', 'jinja2', 'numpy', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
