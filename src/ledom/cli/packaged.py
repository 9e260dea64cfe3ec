"""Recipes and documentation pages that are installed with the code, and the command `ledom docs`.

The source tree links to both folders at its root; an installed package has copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ledom.core.errors import InputError, RecipeError
from ledom.core.reading import exists

_ROOT = Path(__file__).parent / "files"


def _names(folder: str, suffix: str) -> list[str]:
    return sorted(file.stem for file in (_ROOT / folder).glob(f"*{suffix}"))


def recipe_names() -> list[str]:
    """The names of ledom's own recipes, as in `ledom train NAME`.

    >>> "tiny" in recipe_names()
    True
    """
    return _names("recipes", ".yaml")


def find_recipe(path: Path) -> Path:
    """The path itself, or that of ledom's own recipe; raises `RecipeError` if neither exists.

    >>> find_recipe(Path("tiny")).name
    'tiny.yaml'
    """
    if not path.is_file() and str(path) in recipe_names():
        return _ROOT / "recipes" / f"{path}.yaml"
    if not exists(path):
        raise RecipeError(
            f"{path}: no such file; the recipes that come with ledom: {', '.join(recipe_names())}"
        )
    return path


def page_titles() -> dict[str, str]:
    """The name and the title of each documentation page.

    >>> page_titles()["concepts"]
    'Concepts'
    """
    return {name: docs_page(name).split("\n", 1)[0].lstrip("# ") for name in _names("docs", ".md")}


def docs_page(name: str) -> str:
    """A documentation page, in Markdown; raises `InputError` if there is no such page.

    >>> docs_page("formats").startswith("# ")
    True
    """
    known = _names("docs", ".md")
    if name not in known:
        raise InputError(f"no page {name!r}; the pages are {', '.join(known)}")
    return (_ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def docs(
    page: Annotated[
        str | None, typer.Argument(help="Name of a page. Default: list all pages.")
    ] = None,
) -> None:
    """List the documentation pages, or print one in Markdown.

    Example: ledom docs formats
    """
    if page is not None:
        typer.echo(docs_page(page))
        return
    titles = page_titles()
    for name, title in titles.items():
        typer.echo(f"{name:<{max(map(len, titles))}}  {title}")
