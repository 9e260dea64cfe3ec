"""The command that prints the installed documentation."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["COMMANDS"]


def docs(
    page: Annotated[
        str | None, typer.Argument(help="Name of a page. Default: list all pages.")
    ] = None,
) -> None:
    """List the documentation pages, or print one in Markdown.

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
