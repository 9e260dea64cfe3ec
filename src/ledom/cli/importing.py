"""The command that imports published checkpoints and foreign formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ledom.cli.display import log
from ledom.cli.options import Threads, out_folder
from ledom.cli.progress import track
from ledom.core.processes import set_threads

__all__ = ["COMMANDS"]


def import_command(
    source: Annotated[
        str,
        typer.Argument(
            help="ledom-7b, ledom-2b, reverse-pythia, 2tpg, USER/NAME on the hub, a model folder "
            "(Llama, GPT-2, GPT-NeoX, nanochat) or a .gguf file."
        ),
    ],
    out: Annotated[Path, out_folder("The model folder to write. It must not exist.")],
    direction: Annotated[
        str | None,
        typer.Option(help="forward or reverse. Needed if neither the name nor the file tells."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer file or folder, for weights that come without one."),
    ] = None,
    eos_token: Annotated[
        str | None,
        typer.Option(help="The end-of-document token. Default: the one that the self-check finds."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub. Default: the newest commit."),
    ] = None,
    softcap: Annotated[
        float | None,
        typer.Option(help="Logit softcap: 20 for a nanochat model from 2 to 9 March 2026."),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Check that the model reads text better in its own direction.")
    ] = True,
    threads: Threads = None,
) -> None:
    """Turn a published checkpoint or a foreign file into a model folder.

    Example: ledom import ledom-7b --out ledom-7b
    """
    set_threads(threads)
    from ledom.model.foreign.importer import ImportOptions, import_model

    options = ImportOptions(direction, tokenizer, eos_token, revision, softcap, check, track)
    made = import_model(source, out, options)
    for note in made.notes:
        log(note)
    if made.check is not None:
        log(
            f"nats per token: {made.check.forward_loss:.2f} forward, {made.check.reverse_loss:.2f} "
            f"reverse; a document ends with {made.check.eos_token} "
            f"(probability {made.check.eos_probability:.2g})"
        )
    log(f"a {made.direction} model, documents end with {made.eos_token}: {made.folder}")


import_command.__name__ = "import"  # a keyword of Python: the function cannot have this name

COMMANDS = (import_command,)
