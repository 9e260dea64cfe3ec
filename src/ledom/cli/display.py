"""What commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import typer

from ledom.core import processes as parallel
from ledom.report.formatting import accuracy, byte_count, count, difference
from ledom.report.results import Case, SelectionReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ledom.rerank.search_pipeline import SearchReport
    from ledom.rerank.weights import TunedWeights
    from ledom.train.estimate import Plan

_WIDTH = 80  # maximum columns of the table of strategies; in fewer, rich would cut its numbers
_PIPE = 10_000  # columns where there is no terminal: a program reads whole lines
_GAP = (0, 1, 0, 0)  # padding of a cell: narrow, so that the table fits
_LONGEST = 2000  # characters of a solution to show
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NOTABLE = -1.0  # nats; a word with a higher log-probability counts as explained


def log(*lines: str) -> None:
    """Log lines on standard error, in the first process only."""
    if parallel.is_first():
        for line in lines:
            typer.echo(line, err=True)


def note(*lines: str) -> None:
    """Log something that the user may not expect."""
    log(*(f"note: {line}" for line in lines))


def warn(warning: str | None) -> None:
    """Log a report's warning, if it has one."""
    if warning:
        log(f"warning: {warning}")


def output_console(least: int = 0) -> Console:
    """A console on standard output that has at least `least` columns; its lines wrap on a terminal,
    and where the environment sets a width."""
    from rich.console import Console

    is_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=max(Console().width if is_narrow else _PIPE, least))


def show_summary(report: SelectionReport) -> None:
    """Print the report's one-sentence summary, then a table of accuracies."""
    from rich.text import Text

    from ledom.report.selection_page import summarize

    console = output_console(_WIDTH)
    if sentence := summarize(report).sentence:
        console.print(Text(sentence, "bold"), soft_wrap=True)
    warn(report.warning)
    table = new_table(["strategy"], ["accuracy, %", "minus greedy", "minus majority"])
    for row in report.strategies:
        versus = (row.versus.get(other) for other in ("greedy", "majority"))
        shown = (difference(found) if found else "" for found in versus)
        table.add_row(Text(row.label), accuracy(row.accuracy), *shown)
    if table.rows:
        console.width = min(console.width, _WIDTH)
        console.print(table)
    for needed in (row.needed for row in report.strategies if row.needed):
        log(
            f"the majority was certain after {needed.candidates.mean:.1f} of {needed.of} "
            f"candidates ({needed.saved.mean:.0%} saved)"
        )


def new_table(words: Iterable[str], numbers: Iterable[str]) -> Table:
    """An empty table with these headers for its columns of words and its columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=_GAP)
    for column in words:
        table.add_column(column, overflow="fold")  # only words wrap: a cut number is useless
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_pairs(rows: Mapping[str, str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    output_console().print(table)


def show_case(case: Case) -> None:
    """Print the question once per candidate; the redder a word, the less it is explained."""
    from rich.text import Text

    from ledom.report.words import question_words

    console = output_console()
    for candidate in case.candidates:
        words = question_words(case.question, candidate.question_tokens)
        line = Text()
        for word in words:
            shade = round(255 * (1 - 0.75 * word.heat))
            style = f"black on rgb(255,{shade},{shade})" if word.heat > 0 else ""
            line.append(_printable(word.text), style)
        total = round(candidate.scores["reverse"], 1) + 0.0  # not -0.0
        console.print(f"[bold]{candidate.rank}.[/bold] log P(question | answer) = {total}")
        _print_text(console, Text(_printable(_shortened(candidate.text)), "dim"))
        _print_text(console, line)
        least = sorted((word.logprob, word.text) for word in words if word.logprob is not None)
        lacking = [f"{text} ({logprob:.1f})" for logprob, text in least[:3] if logprob < _NOTABLE]
        named = ", ".join(lacking) or "nothing"
        console.print(f"left unexplained: {_printable(named)}\n", markup=False)


def _print_text(console: Console, text: Text) -> None:
    """Print a text, wrapped on a terminal only; elsewhere its lines stay as they are."""
    console.print(text, soft_wrap=not console.is_terminal)


def _printable(text: str) -> str:
    """Escape control characters, so that a candidate cannot move the cursor or set colors."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _shortened(text: str) -> str:
    more = len(text) - _LONGEST
    return text if more <= 0 else f"{text[:_LONGEST]} ... ({more:,} more characters)"


def show_ranking(found: Iterable[tuple[str, str, float]]) -> None:
    """Print (name, text, score in nats), best first. An empty name is left out."""
    from rich.text import Text

    console = output_console()
    for rank, (name, text, score) in enumerate(found, start=1):
        head = Text.assemble((f"{rank}. ", "bold"), _printable(f"{name}  " if name else ""))
        _print_text(console, head.append(f"{score + 0.0:.1f}"))
        _print_text(console, Text(_printable(_shortened(text)), "dim"))


def show_texts(texts: Iterable[str]) -> None:
    """Print texts with lines between them; on a terminal, control characters are escaped."""
    shown = _printable if sys.stdout.isatty() else str
    for number, text in enumerate(texts):
        if number:
            typer.echo("\n" + "-" * 40 + "\n")
        typer.echo(shown(text), color=True)  # else typer strips escape sequences


def show_weights(tuned: TunedWeights) -> None:
    """Print the weights of every strategy, by feature."""
    from ledom.rerank.strategies import strategies

    known = strategies(tuned.external_scores)
    terms = {
        known[name].label: [f"{value:+.3g} {key}" for key, value in row.items() if value]
        for name, row in tuned.weights.items()
    }
    _print_pairs({label: ", ".join(own) for label, own in terms.items()})


def show_search(report: SearchReport) -> None:
    """Print the accuracy of a search and of its baselines at equal cost."""
    table = new_table(["at equal generated tokens"], ["accuracy, %", "search minus it"])
    for name, found in report.accuracy.items():
        versus = report.search_against.get(name)
        table.add_row(name, accuracy(found), difference(versus) if versus else "")
    if table.rows:
        output_console(_WIDTH).print(table)
    log(
        f"{report.tokens_per_problem:.0f} tokens per problem; {report.unfinished} of "
        f"{report.num_problems} searches ended without a finished solution"
    )
    if report.note:
        log(report.note)
    warn(report.warning)


def show_plan(plan: Plan) -> None:
    """Print what a run needs, as a table."""
    size, memory, setup = plan.parameters, plan.memory, plan.setup
    _print_pairs(
        {
            "parameters": f"{count(size.total)}: layers {count(size.layer_matrices)}, "
            f"embedding {count(size.embedding)}, head {count(size.head)}, "
            f"norms {count(size.norms)}",
            "tokens": f"{count(plan.tokens)} in {plan.steps:,} steps",
            "pass": f"{plan.tokens_per_pass:,} tokens per GPU, "
            f"{plan.passes} pass{'' if plan.passes == 1 else 'es'} per step",
            "memory": f"{byte_count(memory.peak)} per GPU, of {byte_count(plan.usable)} usable",
            "": f"weights {byte_count(memory.weights)}, gradients {byte_count(memory.gradients)}, "
            f"optimizer {byte_count(memory.optimizer)}, activations "
            f"{byte_count(memory.activations)}",
            "host": f"{byte_count(memory.checkpoint)} per GPU while a checkpoint is written",
            "work": f"{plan.flops:.3g} FLOPs (6 per parameter and token)",
            "speed": f"{count(plan.tokens_per_second)} tokens/s, at {setup.utilization:.0%} of the "
            f"peak of {setup.gpus} {setup.gpu}",
            "time": f"{plan.hours:,.1f} h per direction, {plan.hours * setup.gpus:,.0f} GPU hours",
            "disk": f"data {byte_count(plan.data)}, each checkpoint "
            f"{byte_count(plan.checkpoint)}, model {byte_count(plan.model)}",
        }
    )
    if plan.advice is not None:
        log(plan.advice)
