"""ledom gallery: a page with texts that a reverse model writes, and with finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ledom.cli.display import log
from ledom.cli.inputs import load_model
from ledom.cli.options import (
    Device,
    Dtype,
    Model,
    Seed,
    Threads,
    command_line,
    out_file,
    refuse_unused,
    unused_by_models,
)
from ledom.core.processes import set_threads

__all__ = ["COMMANDS"]

_MOST_EXAMPLES = 100


def gallery(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Also show these folders, made by eval, rank, synthesize, generate or invert."
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, max=_MOST_EXAMPLES, help="Show the first N examples per section.")
    ] = 3,
    reverse: Model = "tiny",
    out: Annotated[Path, out_file("The HTML file to write.")] = Path("out/gallery.html"),
    device: Device = None,
    dtype: Dtype = "auto",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Make a page with texts that a reverse model writes, token by token from the end.

    Example: ledom gallery out/eval --out gallery.html
    """
    from ledom.evaluate.gallery import collect
    from ledom.report.gallery_page import write_gallery

    refuse_unused(context, *unused_by_models(reverse))
    set_threads(threads)
    lm = load_model(reverse, "reverse", device, dtype)
    page = collect(lm, runs or [], examples, seed, reverse, command_line())
    log(f"page: {write_gallery(out, page)}")


COMMANDS = (gallery,)
