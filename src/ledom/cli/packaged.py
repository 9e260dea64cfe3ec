"""What comes with an installation besides code: recipes and the pages of documentation.

The folders stand at the root of the repository; the package links to them, and an installed package
has copies.
"""

from __future__ import annotations

from pathlib import Path

from ledom.core.errors import InputError, RecipeError
from ledom.core.reading import exists

__all__ = ["docs_page", "find_recipe", "page_titles", "recipe_names"]

_ROOT = Path(__file__).parents[1] / "assets"


def _names(folder: str, suffix: str) -> list[str]:
    return sorted(file.stem for file in (_ROOT / folder).glob(f"*{suffix}"))


def recipe_names() -> list[str]:
    """The recipes that `ledom train NAME` finds without a file of that name."""
    return _names("recipes", ".yaml")


def find_recipe(path: Path) -> Path:
    """The recipe itself, or the one of that name that comes with ledom where no such file is.

    Raises `RecipeError` where there is neither.
    """
    if not path.is_file() and str(path) in recipe_names():
        return _ROOT / "recipes" / f"{path}.yaml"
    if not exists(path):
        raise RecipeError(
            f"{path}: no such file; the recipes that come with ledom: {', '.join(recipe_names())}"
        )
    return path


def page_titles() -> dict[str, str]:
    """The pages of documentation: each one's name and its title."""
    return {name: docs_page(name).split("\n", 1)[0].lstrip("# ") for name in _names("docs", ".md")}


def docs_page(name: str) -> str:
    """A page of documentation, in Markdown; raises `InputError` for one that is not there."""
    known = _names("docs", ".md")
    if name not in known:
        raise InputError(f"no page {name!r}; the pages are {', '.join(known)}")
    return (_ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
