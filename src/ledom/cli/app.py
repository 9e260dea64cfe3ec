"""The command line: each command reads files, calls the library, and says where the result is.

Heavy imports stand inside the commands, so that `ledom --help` is quick. What surrounds every
command, such as its errors and exit codes, is `ledom.cli.run`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import data as cli_data
from ledom.cli import docs as cli_docs
from ledom.cli import importing as cli_import
from ledom.cli import text as cli_text
from ledom.cli import train as cli_train
from ledom.cli.display import say, show_search, show_summary, show_weights
from ledom.cli.options import (
    MOST_PROBLEMS,
    Columns,
    Device,
    Dtype,
    MaxTokens,
    Model,
    NumProblems,
    Out,
    Samples,
    Seed,
    Temperature,
    Threads,
    TopK,
    TopP,
    choose_problems,
    command_line,
    load_model,
    model_or_none,
    named_columns,
    refuse_unused,
    unused_by_models,
    unused_when_greedy,
    use_threads,
)
from ledom.cli.progress import Progress, track
from ledom.cli.run import DEBUG_VARIABLE, prepare_process, run
from ledom.core import processes as parallel
from ledom.core.errors import InputError
from ledom.data.problems import GENERATOR

if TYPE_CHECKING:
    from ledom.core.records import Candidate, Problem
    from ledom.rerank.fit import TunedWeights

__all__ = ["app", "main"]

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_DEMO_PROBLEMS = 640
_DEMO_SAMPLES = 8
"""The demo's size, from the power that both of its claims need: docs/results.md#the-demo."""
_DEMO_SECONDS = 0.06  # on one core for each candidate: sampled, and scored by both models
_DRAWING = ("samples", "early_stop", "temperature", "top_k", "top_p", "max_tokens")
_SHARED = {"demo", "rerank", "search", "train"}  # commands that several processes can share


def main() -> None:
    """Run the command line; the `ledom` program."""
    prepare_process()
    sys.exit(run(app))


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
        bool,
        typer.Option("--debug", help=f"Show tracebacks, as {DEBUG_VARIABLE}=1 does."),
    ] = False,
) -> None:
    """Reverse language models: train them, generate with them, use them as a reward."""
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


@app.command()
def demo(
    context: typer.Context,
    out: Out = Path("ledom-demo"),
    problems: Annotated[
        int, typer.Option(min=1, max=MOST_PROBLEMS, help="How many problems.")
    ] = _DEMO_PROBLEMS,
    samples: Samples = _DEMO_SAMPLES,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """The main job on the embedded pair: answer unseen maths problems, judge, choose, report.

    Example: ledom demo --problems 100
    """
    minutes = max(1, round(problems * (samples + 1) * _DEMO_SECONDS / 2 / 60))
    say(
        f"{problems} new problems, {samples} answers each: write them, score them forward and "
        f"backward, choose, report. About {minutes} min on two cores; seed {seed}."
    )
    rerank(
        context,
        problems=GENERATOR,
        num_problems=problems,
        samples=samples,
        out=out,
        seed=seed,
        threads=threads,
    )


@app.command()
def rerank(
    context: typer.Context,
    problems: Annotated[
        str,
        typer.Option(
            help="A JSONL file of problems, gsm_symbolic (the generator), gsm8k, math500, "
            "aime2024 or amc2023."
        ),
    ] = GENERATOR,
    candidates: Annotated[
        Path | None, typer.Option(help="A JSONL file of candidates; sampled when left out.")
    ] = None,
    forward: Model = "tiny",
    reverse: Model = "tiny",
    weights: Annotated[
        Path | None, typer.Option(help="Weights made by ledom tune; the embedded pair has its own.")
    ] = None,
    lam: Annotated[
        float | None,
        typer.Option("--lambda", help="Weight of the reverse term, instead of weights."),
    ] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help="Solved problems that the models read before they score.")
    ] = None,
    folds: Annotated[
        int, typer.Option(help="Fit the weights on these problems, cross-fitted in so many folds.")
    ] = 0,
    num_problems: NumProblems = None,
    split: Annotated[str, typer.Option(help="Split of the generator: test or tune.")] = "test",
    column: Columns = None,
    held_out: Annotated[
        bool, typer.Option(help="Problems of the templates that no model was trained on.")
    ] = False,
    samples: Samples = 32,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="Draw no more once a majority is certain.")
    ] = False,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 256,
    out: Out = Path("ledom-rerank"),
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Sample candidates (or take yours), score them both ways, choose, and report.

    Example: ledom rerank --problems mine.jsonl --candidates theirs.jsonl --forward none
    """
    from ledom.core.records import Problem, read_records
    from ledom.lm.language_model import Sampling
    from ledom.rerank.pipeline import Job
    from ledom.rerank.pipeline import rerank as rerank_job

    refuse_unused(
        context,
        (candidates, f"the candidates are those of {candidates}", _DRAWING),
        (folds, "--folds fits the weights on these problems", ["lam", "weights"]),
        (weights, f"the weights are those of {weights}", ["lam"]),
        ("none" in (forward, reverse), "it weighs two models, and one is none", ["lam"]),
        unused_when_greedy(temperature),
        *unused_by_models(forward, reverse),
    )
    columns = named_columns(column)
    tuned = _weights(lam, weights, forward, reverse)
    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    draws = candidates is None and temperature > 0
    chosen = choose_problems(context, problems, num_problems, draws, split, seed, held_out)
    needed = [*(columns or ()), *(() if folds else tuned.columns)]
    given = None
    if candidates is not None:
        given = _given_candidates(candidates, needed, chosen, num_problems is None)
    shown = (
        read_records(demonstrations, Problem, Problem.require_solution) if demonstrations else []
    )
    job = Job(
        problems=chosen,
        out=out,
        forward=None,
        reverse=None,
        weights=tuned,
        candidates=given,
        sampling=sampling,
        num_samples=samples,
        early_stop=early_stop,
        columns=columns,
        demonstrations=shown,
        folds=folds,
        command=command_line(),
    )
    use_threads(threads)
    job.forward = model_or_none(forward, "forward", device, dtype)
    job.reverse = model_or_none(reverse, "reverse", device, dtype)
    if tuned.num_problems and not folds:
        job.notes.append(
            f"weights tuned on {tuned.num_problems} other problems, then frozen; intervals are 95 %"
        )
    say(f"{len(job.problems)} problems, results in {out}/")
    made = rerank_job(job, track)
    if made is None:
        return
    report, page = made
    show_summary(report)
    say(f"report: {page}  (the same as report.md and report.json; answers in selected.jsonl)")


def _given_candidates(
    file: Path, columns: Sequence[str], problems: Sequence[Problem], is_all: bool
) -> list[Candidate]:
    """The candidates of a file. Of fewer problems than there are, the others' are left out."""
    from ledom.rerank.external_scores import read_candidates
    from ledom.rerank.score import candidate_check

    if is_all:
        return read_candidates(file, columns, candidate_check(problems))
    wanted = {problem.id for problem in problems}
    found = read_candidates(file, columns)
    return [candidate for candidate in found if candidate.problem_id in wanted]


def _weights(lam: float | None, file: Path | None, forward: str, reverse: str) -> TunedWeights:
    """Those that are asked for, else those that the models come with, else the plain two terms."""
    from ledom.rerank.fit import TunedWeights
    from ledom.rerank.pipeline import default_weights, embedded_weights

    if lam is not None:
        return default_weights(lam)
    if file is not None:
        return TunedWeights.load(file)
    return embedded_weights(forward, reverse) or default_weights()


@app.command()
def search(
    context: typer.Context,
    problems: Annotated[
        str, typer.Option(help="A JSONL file of problems, gsm_symbolic, or a benchmark by name.")
    ] = GENERATOR,
    forward: Model = "tiny",
    reverse: Model = "tiny",
    width: Annotated[
        int, typer.Option(min=1, max=1000, help="Partial solutions kept per round (k).")
    ] = 4,
    expansions: Annotated[
        int, typer.Option(min=1, max=1000, help="Continuations drawn of each (n).")
    ] = 3,
    lam: Annotated[float, typer.Option("--lambda", help="Weight of the reverse term.")] = 0.5,
    step_end: Annotated[
        str, typer.Option(help="Where a step ends: line, sentence, or a regular expression.")
    ] = "line",
    max_steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Steps after which a search ends.")
    ] = 32,
    max_tokens: MaxTokens = 96,
    temperature: Temperature = 0.7,
    num_problems: NumProblems = None,
    split: Annotated[str, typer.Option(help="Split of the generator: test or tune.")] = "test",
    out: Out = Path("ledom-search"),
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Search over reasoning steps, and compare with best of N at equal generated tokens.

    Example: ledom search --num-problems 50 --out out/search
    """
    from ledom.lm.language_model import Sampling
    from ledom.rerank.search_pipeline import SearchJob, search_job
    from ledom.rerank.step_search import SearchConfig

    refuse_unused(context, *unused_by_models(forward, reverse))
    sampling = Sampling(temperature, max_tokens=max_tokens, seed=seed)
    config = SearchConfig(width, expansions, lam, step_end, max_steps, sampling)
    chosen = choose_problems(context, problems, num_problems, temperature > 0, split, seed)
    use_threads(threads)
    writer = load_model(forward, "forward", device, dtype)
    judge = model_or_none(reverse, "reverse", device, dtype)
    say(f"{len(chosen)} problems, results in {out}/")
    report = search_job(SearchJob(chosen, out, writer, judge, config, command_line()), track)
    if report is None:
        return
    show_search(report)
    say(f"answers: {out / 'searched.jsonl'}, measurement: {out / 'search.json'}")


@app.command()
def tune(
    folder: Annotated[Path, typer.Argument(help="The output folder of ledom rerank.")],
    problems: Annotated[
        Path | None, typer.Option(help="The problems; those in the folder by default.")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="The candidates; those in the folder by default.")
    ] = None,
    column: Columns = None,
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("weights.yaml"),
    threads: Threads = None,
) -> None:
    """Fit lambda and the weights of every strategy on a reranked folder, no model needed.

    Example: ledom rerank --split tune --out tuning && ledom tune tuning --out weights.yaml
    """
    from ledom.rerank.fit_pipeline import tune_folder

    use_threads(threads)
    with Progress("fitting the weights"):
        tuned = tune_folder(folder, problems, candidates, named_columns(column))
    tuned.save(out)
    show_weights(tuned.weights)
    say(f"weights of {len(tuned.weights)} strategies: {out}")


for command in (
    *cli_text.COMMANDS,
    *cli_data.COMMANDS,
    *cli_import.COMMANDS,
    *cli_train.COMMANDS,
    *cli_docs.COMMANDS,
):
    app.command()(command)
