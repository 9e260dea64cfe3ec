"""ledom eval measures one or two models on benchmarks; ledom gallery shows finished runs."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import options
from ledom.cli.display import log, new_table, output_console
from ledom.cli.inputs import load_model, models_or_none
from ledom.cli.progress import track, track_training
from ledom.core.errors import InputError
from ledom.report.formatting import accuracy, difference, interval, number, percent

if TYPE_CHECKING:
    from ledom.evaluate.results import Evaluation, Row, TaskResult
    from ledom.evaluate.reversal import ReversalResult
    from ledom.evaluate.tasks import Options, Source

_task_option = partial(typer.Option, rich_help_panel="Tasks")
_MOST_EXAMPLES = 100
_WIDTH = 140  # columns that the table may take: numbers are never cut
_FOR_REVERSAL = ("tasks", "suite", "limit", "out", "seed", "threads")
"""The parameters that the reversal suite uses, or refuses with a message of its own."""

Tasks = Annotated[
    list[str] | None,
    typer.Argument(help="Task files (.jsonl, .yaml), or tasks of lm-evaluation-harness by name."),
]
Suite = Annotated[
    str | None,
    _task_option(help="ledom, r2l, problems (the default), or reversal (trains its own models)."),
]
Data = Annotated[
    Path | None,
    options.path_option(
        rich_help_panel="Tasks", help="Folder of task files, for use without a network."
    ),
]
Limit = Annotated[
    int | None,
    options.count_option(
        rich_help_panel="Tasks",
        help="Use only the first N documents of each task; for reversal, N facts per order.",
    ),
]
NumFewshot = Annotated[int, _task_option(min=0, max=1000, help="Solved examples in each prompt.")]
AllowCode = Annotated[
    bool,
    _task_option(
        help="Run the programs that a model writes (HumanEval), in separate processes with limits "
        "on time and memory, but without a sandbox."
    ),
]
Chat = Annotated[bool, options.model_option(help="Use the models' chat templates.")]
AddBos = Annotated[
    bool,
    options.model_option(
        help="Begin every text for the forward model with the token that began its training texts. "
        "Default: as in lm-evaluation-harness, with the tokens that its tokenizer adds."
    ),
]

_WHY_UNUSED = {
    "data": "this folder has no TASK.jsonl of this run's tasks",
    "seed": "no task of this run draws its questions",
}


def evaluate(
    context: typer.Context,
    tasks: Tasks = None,
    suite: Suite = None,
    data: Data = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = 0,
    allow_code: AllowCode = False,
    forward: options.ModelOrNone = "tiny",
    reverse: options.ModelOrNone = "tiny",
    chat: Chat = False,
    add_bos: AddBos = False,
    out: options.Out = Path("ledom-eval"),
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Measure what a forward and a reverse model know, on the same benchmarks.

    Example: ledom eval arc_easy openbookqa --data FOLDER --forward MODEL --reverse MODEL
    """
    from ledom.evaluate.suites import REVERSAL
    from ledom.evaluate.tasks import Options

    others = {parameter.name or "" for parameter in context.command.params} - {*_FOR_REVERSAL}
    options.refuse_unused(
        context,
        (suite == REVERSAL, "this suite trains its own models", others),
        (forward == "none", "there is no forward model", ["add_bos"]),
        *options.unused_by_models(forward, reverse),
    )
    options.check_results(out, "results.json", "reversal.json")
    if suite == REVERSAL and not tasks:
        _measure_reversal(out, limit, seed)
        return
    if forward == reverse == "none":
        raise InputError("give a forward or a reverse model, or both")
    how = Options(data, limit, num_fewshot, seed, allow_code)
    sources, notes = _sources(tasks, suite, how)
    unused = frozenset.intersection(*(source.unused for source in sources))
    options.refuse_unused(context, *((True, _WHY_UNUSED[name], [name]) for name in sorted(unused)))
    from ledom.evaluate.evaluation import Job, evaluate_models

    models = models_or_none(forward, reverse, device, dtype)
    job = Job(
        sources=sources,
        models=[model for model in models if model is not None],
        out=out,
        limit=limit,
        chat=chat,
        add_bos_token=True if add_bos else None,
        command=options.command_line(),
        notes=notes,
        leave_out=not tasks,
    )
    show_results(evaluate_models(job, track))
    log(f"results: {out / 'results.json'}")


def _measure_reversal(out: Path, limit: int | None, seed: int) -> None:
    from ledom.evaluate.reversal import ReversalJob, run_reversal

    job = ReversalJob(out, limit or ReversalJob.per_order, seed, command=options.command_line())
    try:
        found = run_reversal(job, track_training, track)
    except SystemExit:  # SIGTERM during training: the suite is not finished
        raise SystemExit(128 + signal.SIGTERM) from None
    show_reversal(found)
    log(f"results: {out / 'reversal.json'}")


def show_reversal(found: ReversalResult) -> None:
    """Print accuracies: a row per kind of fact and question, a column per arm."""
    from ledom.evaluate.reversal import ARMS

    table = new_table(["seen in training", "asked for"], ARMS)
    for row in found.table():
        table.add_row(*row)
    output_console(_WIDTH).print(table, soft_wrap=True)
    log(f"{found.num_facts} facts, each asked for its name and for its description; exact matches")
    log("minus forward, over both questions of the facts seen in one order:")
    for result in found.results:
        if result.seen == "one order" and result.less_forward is not None:
            log(f"  {result.arm}: {difference(result.less_forward)} points")


def _sources(
    tasks: list[str] | None, suite: str | None, how: Options
) -> tuple[list[Source], list[str]]:
    from ledom.evaluate.tasks import find_source, find_suite

    if tasks and suite:
        raise InputError("give tasks or --suite, not both")
    if tasks:
        return [find_source(task, how) for task in tasks], []
    return find_suite(suite or "problems", how)


def show_results(found: Evaluation) -> None:
    """Print one table of all tasks, then the notes."""
    from rich.text import Text

    columns = ["value", "minus forward", "minus reversed prompt"]
    table = new_table(["metric", "model, scoring"], columns)
    for task in found.tasks:
        table.add_row(Text(task.task, "bold"))
        for row in task.rows:
            table.add_row(*_cells(row))
        table.add_section()
    output_console(_WIDTH).print(table, soft_wrap=True)
    for task in found.tasks:
        marked = (f"{_mark(row)} {row.metric}: {row.note}" for row in task.rows if row.note)
        for note in (*_published(task), *task.notes, *marked):
            log(f"{task.task}: {note}")
    log(*found.notes)


def _cells(row: Row) -> tuple[str, ...]:
    if (mark := _mark(row)) == "n/a":
        value = mark
    elif row.unit == "nats":
        value = f"{number(row.value)} nats"
    elif row.interval is None:
        value = number(row.value, 4)
    elif row.unit == "share":
        value = accuracy(row.interval)
    else:
        value = interval(row.interval)
    value += " *" if mark == "*" else ""
    less = [
        "" if found is None else difference(found)
        for found in (row.less_forward, row.less_reversed)
    ]
    return (f"  {row.metric}", f"{row.model} {row.scoring}".strip(), value, *less)


def _published(task: TaskResult) -> list[str]:
    """Lines with a task's size, its chance level and its published figures."""
    chance = "" if task.chance is None else f", chance {percent(task.chance)}%"
    return [
        f"{task.num_documents:,} documents{chance}",
        *(
            f"published, {figure.source}: forward {figure.forward:.2f}, "
            f"reverse {figure.reverse:.2f} ({figure.note})"
            for figure in task.published
        ),
    ]


def _mark(row: Row) -> str:
    """The sign of a row's note in the table; empty without one."""
    return "n/a" if row.note.startswith("not applicable") else "*" if row.note else ""


def gallery(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None,
        options.path_argument(
            help="Also show these folders, written by eval, rank, synthesize, generate or invert."
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, max=_MOST_EXAMPLES, help="Show the first N examples per section.")
    ] = 3,
    reverse: options.Model = "tiny",
    out: Annotated[Path, options.out_file("The HTML file to write.")] = Path("ledom-gallery.html"),
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Create a page with texts that a reverse model writes, token by token from the end.

    Example: ledom gallery ledom-eval --out gallery.html
    """
    from ledom.evaluate.gallery import collect
    from ledom.report.gallery_page import write_gallery

    options.refuse_unused(context, *options.unused_by_models(reverse))
    lm = load_model(reverse, "reverse", device, dtype)
    page = collect(lm, runs or [], examples, seed, reverse, options.command_line())
    log(f"page: {write_gallery(out, page)}")


evaluate.__name__ = "eval"
