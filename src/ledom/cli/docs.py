"""The command that shows the documentation that comes with an installation."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["COMMANDS"]


def docs(
    page: Annotated[str | None, typer.Argument(help="Its name; without, the list of all.")] = None,
) -> None:
    """List the pages of documentation, or print one, in Markdown.

    Example: ledom docs formats
    """
    from ledom.cli.packaged import docs_page, page_titles

    if page is not None:
        typer.echo(docs_page(page))
        return
    titles = page_titles()
    for name, title in titles.items():
        typer.echo(f"{name:<{max(map(len, titles))}}  {title}")


COMMANDS = (docs,)
