"""Files that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def links(page: Path) -> list[str]:
    """Those to files."""
    found = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    return [target for target in found if "://" not in target]


def modules(page: Path) -> list[str]:
    return re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_named_exist(page: Path) -> None:
    """The log tells of the past, where modules had other names."""
    if page.name == "log.md":
        return
    roots = (ROOT, ROOT / "src" / "ledom")
    for name in modules(page):
        assert any((root / name).is_file() for root in roots), f"{page.name} names {name}"


def test_links_and_modules_are_found() -> None:
    assert len([target for page in PAGES for target in links(page)]) > 50
    assert len([name for page in PAGES if page.name != "log.md" for name in modules(page)]) > 10
