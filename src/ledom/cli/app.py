"""The `ledom` program: its commands in groups, and the options before a command.

Commands import what they need when they run, so that `ledom --help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
import typer.core

from ledom.cli import abilities, data, evaluate, packaged, rerank, serve, text, train
from ledom.cli.run import DEBUG_VARIABLE, prepare_process, run
from ledom.core import processes as parallel
from ledom.core.errors import InputError

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")

_GROUPS = {
    "Main job": (rerank.demo, rerank.rerank, rerank.tune, rerank.search),
    "Models": (text.explain, text.generate, train.import_command),
    "Evaluation": (evaluate.evaluate, evaluate.gallery, abilities.rank, abilities.invert),
    "Serving": (serve.serve,),
    "Training": (train.train, train.compare, train.plan, train.export),
    "Data": (data.train_tokenizer, data.tokenize, data.augment, abilities.synthesize),
    "Documentation": (packaged.docs,),
}
_SHARED = {"demo", "rerank", "search", "train"}  # commands that several processes can share


def main() -> None:
    """Run the command line; the `ledom` program."""
    prepare_process()
    sys.exit(run(lambda **options: all_commands()(**options)))  # Ctrl-C may come before they exist


@cache
def all_commands() -> Callable[..., Any]:
    """All commands, ready to run. Reading their signatures takes longer than a quick command."""
    return typer.main.get_command(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from ledom import __version__

        typer.echo(f"ledom {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ledom(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show tracebacks. So does {DEBUG_VARIABLE}=1.")
    ] = False,
) -> None:
    """Reverse language models: train them, generate with them, use them as a reward."""
    if sys.flags.optimize > 1:
        raise InputError(
            "python -OO (PYTHONOPTIMIZE=2) removes the docstrings that transformers reads; use -O "
            "or no option"
        )
    try:
        os.getcwd()
    except FileNotFoundError:  # numerical libraries of torch would end the process
        raise InputError("the working directory was removed; change to another") from None
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    name = context.invoked_subcommand
    if name is None:
        typer.echo(context.get_help())
    elif parallel.size() > 1 and name not in _SHARED:
        raise InputError(
            f"several processes can share {', '.join(sorted(_SHARED))}; start this command "
            "without torchrun"
        )


class _Command(typer.core.TyperCommand):
    """A command that refuses an option given twice, of which typer takes the last value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[Any] = self.make_parser(ctx).parse_args(args=[*args])[2]
        for option, times in Counter(given).items():
            if times > 1 and not option.multiple and not option.is_flag:
                ctx.fail(f"{option.opts[0]} is given {times} times but takes one value")
        return super().parse_args(ctx, args)


for group, commands in _GROUPS.items():
    for command in commands:
        app.command(cls=_Command, rich_help_panel=group)(command)
