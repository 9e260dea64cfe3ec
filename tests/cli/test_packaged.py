"""Recipes and documentation are found by name, as in an installed package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_line import Run, check_refused
from ledom.cli.packaged import docs_page, find_recipe, page_titles, recipe_names
from ledom.train.recipe import load_recipe

ROOT = Path(__file__).parents[2]


def test_recipes_and_pages_have_a_single_source() -> None:
    assert recipe_names() == sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
    for name in recipe_names():
        assert find_recipe(Path(name)).resolve() == ROOT / "recipes" / f"{name}.yaml"
    assert [*page_titles()] == sorted(file.stem for file in (ROOT / "docs").glob("*.md"))
    for name in page_titles():
        assert docs_page(name) == (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_a_file_with_that_name_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(find_recipe(Path("tiny"))).name == "tiny"
    (tmp_path / "tiny").mkdir()  # a folder is not a recipe
    assert load_recipe(find_recipe(Path("tiny"))).name == "tiny"
    (tmp_path / "tiny").rmdir()
    (tmp_path / "tiny").write_text((ROOT / "recipes/gsm8k.yaml").read_text())
    assert load_recipe(find_recipe(Path("tiny"))).name == "gsm8k"
    check_refused(run("plan", "tniy"), "tniy: no such file; the recipes that come with ledom: 7b,")
    check_refused(run("train", "recipes/tniy.yaml"), "tniy.yaml: no such file; the recipes that")


def test_the_command_lists_and_prints_pages(run: Run) -> None:
    code, text = run("docs")
    assert code == 0
    assert re.search(r"^formats +File formats$", text, re.MULTILINE)
    code, text = run("docs", "formats")
    assert code == 0
    assert text.startswith("# File formats\n")
    check_refused(run("docs", "format"), "no page 'format'; the pages are abilities, arch")
    check_refused(run("docs", "../README"), "no page '../README'")
    assert "7.79B" in run("plan", "7b", "--gpus", 64)[1]
