"""Files, headings and keys that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from ledom.data.prepare import DataConfig
from ledom.model.presets import PRESETS, ModelConfig
from ledom.train.distributed import ParallelConfig
from ledom.train.lora import LoraConfig
from ledom.train.objective import ObjectiveConfig
from ledom.train.optim import OptimConfig
from ledom.train.recipe import Recipe, TrainConfig

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


def anchors(page: Path) -> set[str]:
    """The names under which the page's headings are reached, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    found = re.findall(r"\]\(([\w./-]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    for target, anchor in found:
        goal = page.parent / target if target else page
        assert anchor in anchors(goal), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    """Those of tables and of what is to be typed or was printed cannot be broken."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = (line for line in text.splitlines() if not line.startswith("|"))
    assert [line for line in prose if len(line) > 120] == []


def keys_with_defaults(config: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """The keys of a part of a recipe, with their defaults as they are written in YAML."""
    return {
        prefix + name: "required" if field.is_required() else written(field.default)
        for name, field in config.model_fields.items()
        if not isinstance(field.default, BaseModel)
    }


def written(default: object) -> str:
    value = list(default) if isinstance(default, tuple) else default
    return value if isinstance(value, str) else yaml.safe_dump(value).splitlines()[0]


def test_the_page_of_recipes_has_every_key_and_its_default() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| `?([^|]*?)`? \|", page, re.MULTILINE)
    shown = {key: default.replace(r"\n", "\n") for key, default in rows}
    parts = {
        "data": DataConfig,
        "model": ModelConfig,
        "optim": OptimConfig,
        "train": TrainConfig,
        "parallel": ParallelConfig,
        "objective": ObjectiveConfig,
        "lora": LoraConfig,
    }
    expected = keys_with_defaults(Recipe)
    del expected["data"], expected["optim"]  # required, and listed key by key
    for name, config in parts.items():
        expected |= keys_with_defaults(config, f"{name}.")
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert {key: shown[key] for key in shown if key not in recipes} == expected
    assert recipes <= set(shown)
    assert all(f"`{preset}`" in page for preset in PRESETS)


def test_the_recipes_of_the_page_are_valid() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    stores, file = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert Recipe.model_validate(stores).data.sources
    assert Recipe.model_validate(stores | file).data.train == "documents.jsonl"


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
