"""What commands print: lines, tables and colored questions.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from ledom.core import processes as parallel

if TYPE_CHECKING:
    from ledom.train.estimate import Plan

__all__ = [
    "count_text",
    "say",
    "show_case",
    "show_plan",
    "show_search",
    "show_summary",
    "show_weights",
    "warn",
]

_WIDTH = 80  # maximum columns of the table of strategies
_GAP = (0, 1, 0, 0)  # padding of a cell: narrow, so that the table fits
_LONGEST = 2000  # characters of a solution to show
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NOTABLE = -1.0  # nats; a word with a higher log-probability counts as explained


def say(line: str) -> None:
    """Print a line on standard error; of several processes only the first does."""
    if parallel.is_first():
        typer.echo(line, err=True)


def warn(report: dict[str, Any]) -> None:
    """Print the report's warning, if it has one."""
    if report.get("warning"):
        say(f"warning: {report['warning']}")


def show_summary(report: dict[str, Any]) -> None:
    """Print the report's one-sentence summary, then a table of accuracies."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ledom.report.summary import summarize

    console = Console(highlight=False)
    if sentence := summarize(report).sentence:
        console.print(Text(sentence, "bold"), soft_wrap=True)
    warn(report)
    if not report["strategies"]:
        return
    console.width = min(console.width, _WIDTH)
    table = Table(box=None, pad_edge=False, padding=_GAP)
    table.add_column("strategy", overflow="fold")  # alone wraps: a cut number is useless
    for column in ("accuracy, %", "against greedy", "against majority"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report["strategies"]:
        table.add_row(
            Text(row["name"]),
            _plus_minus(row["accuracy"]),
            *(_percent(row["versus"].get(other), "+") for other in ("greedy", "majority")),
        )
    console.print(table)
    for row in report["strategies"]:
        if "needed" in row:
            mean, saved = row["needed"]["candidates"]["mean"], row["needed"]["saved"]["mean"]
            of = row["needed"]["of"]
            say(f"the majority was certain after {mean:.1f} of {of} candidates ({saved:.0%} saved)")


def show_case(case: dict[str, Any]) -> None:
    """Print the question once per candidate: the redder a word, the less explained it is."""
    from rich.console import Console
    from rich.text import Text

    from ledom.report.words import question_words

    console = Console(highlight=False)
    for candidate in case["candidates"]:
        words = question_words(case["question"], candidate["question_tokens"])
        line = Text()
        for word in words:
            shade = round(255 * (1 - 0.75 * word.heat))
            style = f"black on rgb(255,{shade},{shade})" if word.heat > 0 else ""
            line.append(_printable(word.text), style)
        total = round(candidate["scores"]["reverse"], 1) + 0.0  # not -0.0
        console.print(f"[bold]{candidate['rank']}.[/bold] log P(question | answer) = {total}")
        console.print(Text(_printable(_shortened(candidate["text"])), "dim"))
        console.print(line)
        least = sorted((word.logprob, word.text) for word in words if word.logprob is not None)
        lacking = [f"{text} ({logprob:.1f})" for logprob, text in least[:3] if logprob < _NOTABLE]
        named = ", ".join(lacking) or "nothing"
        console.print(f"left unexplained: {_printable(named)}\n", markup=False)


def _printable(text: str) -> str:
    """Escape control characters, so that a candidate cannot move the cursor or set colors."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _shortened(text: str) -> str:
    more = len(text) - _LONGEST
    return text if more <= 0 else f"{text[:_LONGEST]} ... ({more:,} characters more)"


def show_weights(weights: dict[str, dict[str, float]]) -> None:
    """Print the weights of every strategy, by feature."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, row in weights.items():
        table.add_row(name, ", ".join(f"{value:+.3g} {key}" for key, value in row.items() if value))
    Console(highlight=False).print(table)


def show_search(report: dict[str, Any]) -> None:
    """Print what a search gained at equal cost."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=_GAP)
    table.add_column("at equal generated tokens")
    for column in ("accuracy, %", "search against it"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, accuracy in report.get("accuracy", {}).items():
        table.add_row(name, _percent(accuracy), _percent(report["search_against"].get(name), "+"))
    if table.rows:
        Console().print(table)
    say(
        f"{report['tokens_per_problem']:.0f} tokens per problem; {report['unfinished']} of "
        f"{report['num_problems']} searches ended without a finished solution"
    )
    if "note" in report:
        say(report["note"])


def show_plan(plan: Plan) -> None:
    """Print what a run needs, as a table."""
    from rich.console import Console
    from rich.table import Table

    count, memory = plan.parameters, plan.memory
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in {
        "parameters": f"{count_text(count.total)}: layers {count_text(count.layer_matrices)}, "
        f"embedding {count_text(count.embedding)}, head {count_text(count.head)}, "
        f"norms {count_text(count.norms)}",
        "tokens": f"{count_text(plan.tokens)} in {plan.steps:,} steps",
        "pass": f"{plan.tokens_per_pass:,} tokens per GPU, {plan.passes} passes per step",
        "memory": f"{_bytes(memory.peak)} per GPU, of {_bytes(plan.usable)} usable",
        "": f"weights {_bytes(memory.weights)}, gradients {_bytes(memory.gradients)}, optimizer "
        f"{_bytes(memory.optimizer)}, activations {_bytes(memory.activations)}",
        "host": f"{_bytes(memory.checkpoint)} per GPU while a checkpoint is written",
        "work": f"{plan.flops:.3g} FLOPs (6 per parameter and token)",
        "speed": f"{count_text(plan.tokens_per_second)} tokens/s, at {plan.utilization:.0%} of the "
        f"peak of {plan.gpus} {plan.gpu}",
        "time": f"{plan.hours:,.1f} h per direction, {plan.hours * plan.gpus:,.0f} GPU hours",
        "disk": f"data {_bytes(plan.data)}, each checkpoint {_bytes(plan.checkpoint)}, model "
        f"{_bytes(plan.model)}",
    }.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
    if plan.advice is not None:
        say(plan.advice)


def count_text(number: float) -> str:
    """`7.79B`: three digits, in thousands, millions, billions or trillions."""
    return _scaled(number, ("", "k", "M", "B", "T"))


def _bytes(number: float) -> str:
    """`15.6 GB`."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB"))


def _scaled(number: float, units: Sequence[str]) -> str:
    place = min(int(math.log10(max(number, 1))) // 3, len(units) - 1)
    return f"{number / 1000**place:.{3 if number < 999.5 * 1000**place else 4}g}{units[place]}"


def _plus_minus(interval: dict[str, float]) -> str:
    """A mean and the wider side of its 95 % interval: `13.3 ± 4.0`."""
    wider = max(interval["high"] - interval["mean"], interval["mean"] - interval["low"])
    return f"{100 * interval['mean']:.1f} ± {100 * wider:.1f}"


def _percent(interval: dict[str, float] | None, sign: str = "") -> str:
    """A mean and its 95 % interval: `13.3 [9.7, 17.3]`."""
    if interval is None:
        return ""
    mean, low, high = (f"{100 * interval[key]:{sign}.1f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
