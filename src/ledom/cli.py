"""The command line: each command reads files, calls the library, and says where the result is.

Heavy imports stand inside the commands, so that `ledom --help` is quick. A `LedomError` becomes one
line and exit code 2; Ctrl-C keeps what is finished and exits with 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom import cli_data, cli_train, parallel
from ledom.cli_options import (
    Columns,
    Device,
    Dtype,
    Model,
    Out,
    Seed,
    Threads,
    load_model,
    model_or_none,
    named_columns,
    use_threads,
)
from ledom.data.problems import GENERATOR
from ledom.errors import InputError, LedomError
from ledom.terminal import (
    say,
    show_case,
    show_search,
    show_summary,
    show_weights,
    track,
)

if TYPE_CHECKING:
    from ledom.records import Candidate, Problem
    from ledom.reward.tune import TunedWeights

__all__ = ["app", "main"]

app = typer.Typer(
    help="Reverse language models: train them, generate with them, use them as a reward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_DEMO_PROBLEMS = 40
_INTERRUPTED = 130
_SHARED = {"demo", "rerank", "search", "train"}  # commands that several processes can share


def main() -> None:
    """Run the command line; the `ledom` program."""
    try:
        if parallel.size() > 1 and not _SHARED & {*sys.argv[1:2]}:
            raise InputError(
                f"several processes can share {', '.join(sorted(_SHARED))}; start this command "
                "without torchrun"
            )
        code = app(standalone_mode=False) or 0  # typer turns Ctrl-C into the code 130
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except LedomError as error:
        code = _failed(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for wrong usage has it
            raise
        code = _failed(f"{error.format_message().rstrip('.')}. See: ledom --help")
    if code == _INTERRUPTED:
        say("interrupted; what is finished is kept: run the same command again to go on")
    sys.exit(code)


def _failed(message: str) -> int:
    """Say it, once where several processes run; the exit code."""
    if parallel.is_first_failure():
        typer.echo(f"error: {message}", err=True)
    return 2


@app.command()
def demo(
    out: Out = Path("ledom-demo"),
    problems: Annotated[int, typer.Option(min=1, help="How many problems.")] = _DEMO_PROBLEMS,
    samples: Annotated[int, typer.Option(min=1, help="Candidates for each problem.")] = 32,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """The main job on the embedded pair: answer unseen maths problems, judge, choose, report.

    Example: ledom demo --problems 100
    """
    rerank(
        problems=GENERATOR,
        num_problems=problems,
        samples=samples,
        out=out,
        seed=seed,
        threads=threads,
    )


@app.command()
def rerank(
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
    num_problems: Annotated[
        int | None, typer.Option(min=1, help="How many problems; all of a file by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the generator: test or tune.")] = "test",
    column: Columns = None,
    held_out: Annotated[
        bool, typer.Option(help="Problems of the templates that no model was trained on.")
    ] = False,
    samples: Annotated[int, typer.Option(help="Candidates for each problem.")] = 32,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="Draw no more once a majority is certain.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of the sampling.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Of the sampling; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Of the sampling.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest solution.")] = 256,
    out: Out = Path("ledom-rerank"),
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Sample candidates (or take yours), score them both ways, choose, and report.

    Example: ledom rerank --problems mine.jsonl --candidates theirs.jsonl --forward none
    """
    from ledom.data.benchmarks import load_problems
    from ledom.lm.base import Sampling
    from ledom.records import Problem, read_records
    from ledom.rerank import Job
    from ledom.rerank import rerank as run

    columns = named_columns(column)
    tuned = _weights(lam, weights, forward, reverse)
    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    chosen = load_problems(problems, num_problems, split, seed, held_out)
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
        command="ledom " + " ".join(sys.argv[1:]),
    )
    use_threads(threads)
    job.forward = model_or_none(forward, "forward", device, dtype)
    job.reverse = model_or_none(reverse, "reverse", device, dtype)
    if tuned.num_problems and not folds:
        job.notes.append(
            f"weights tuned on {tuned.num_problems} other problems, then frozen; intervals are 95 %"
        )
    say(f"{len(job.problems)} problems, results in {out}/")
    made = run(job, track)
    if made is None:
        return
    report, page = made
    show_summary(report)
    say(f"report: {page}  (the same as report.md and report.json; answers in selected.jsonl)")


def _given_candidates(
    file: Path, columns: Sequence[str], problems: Sequence[Problem], is_all: bool
) -> list[Candidate]:
    """The candidates of a file. Of fewer problems than there are, the others' are left out."""
    from ledom.reward.columns import read_candidates
    from ledom.reward.score import candidate_check

    if is_all:
        return read_candidates(file, columns, candidate_check(problems))
    wanted = {problem.id for problem in problems}
    found = read_candidates(file, columns)
    return [candidate for candidate in found if candidate.problem_id in wanted]


def _weights(lam: float | None, file: Path | None, forward: str, reverse: str) -> TunedWeights:
    """Those that are asked for, else those that the models come with, else the plain two terms."""
    from ledom.rerank import default_weights, embedded_weights
    from ledom.reward.tune import TunedWeights

    if lam is not None and file is not None:
        raise InputError(f"--lambda {lam} and --weights {file} exclude each other; give one")
    if lam is not None:
        return default_weights(lam)
    if file is not None:
        return TunedWeights.load(file)
    return embedded_weights(forward, reverse) or default_weights()


@app.command()
def search(
    problems: Annotated[
        str, typer.Option(help="A JSONL file of problems, gsm_symbolic, or a benchmark by name.")
    ] = GENERATOR,
    forward: Model = "tiny",
    reverse: Model = "tiny",
    width: Annotated[int, typer.Option(help="Partial solutions kept (k).")] = 4,
    expansions: Annotated[int, typer.Option(help="Ways in which each is gone on with (n).")] = 3,
    lam: Annotated[float, typer.Option("--lambda", help="Weight of the reverse term.")] = 0.5,
    border: Annotated[
        str, typer.Option(help="Where a step ends: line, sentence, or a regular expression.")
    ] = "line",
    max_steps: Annotated[int, typer.Option(help="Steps after which a search ends.")] = 32,
    max_tokens: Annotated[int, typer.Option(help="Longest step.")] = 96,
    temperature: Annotated[float, typer.Option(help="Of the sampling.")] = 0.7,
    num_problems: Annotated[int | None, typer.Option(min=1, help="How many problems.")] = None,
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
    from ledom.data.benchmarks import load_problems
    from ledom.lm.base import Sampling
    from ledom.reward.search import SearchConfig
    from ledom.search_job import SearchJob, search_job

    sampling = Sampling(temperature, max_tokens=max_tokens, seed=seed)
    config = SearchConfig(width, expansions, lam, border, max_steps, sampling)
    chosen = load_problems(problems, num_problems, split, seed)
    use_threads(threads)
    writer = load_model(forward, "forward", device, dtype)
    judge = model_or_none(reverse, "reverse", device, dtype)
    command = "ledom " + " ".join(sys.argv[1:])
    say(f"{len(chosen)} problems, results in {out}/")
    report = search_job(SearchJob(chosen, out, writer, judge, config, command), track)
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
) -> None:
    """Fit lambda and the weights of every strategy on a reranked folder, no model needed.

    Example: ledom rerank --split tune --out tuning && ledom tune tuning --out weights.yaml
    """
    from ledom.tune_job import tune_folder

    tuned = tune_folder(folder, problems, candidates, named_columns(column))
    tuned.save(out)
    show_weights(tuned.weights)
    say(f"weights of {len(tuned.weights)} strategies: {out}")


@app.command()
def explain(
    question: Annotated[str, typer.Argument(help="The question; - reads standard input.")],
    solutions: Annotated[
        list[str], typer.Argument(help="Candidate solutions, or JSONL files of candidates.")
    ],
    problem_id: Annotated[
        str | None, typer.Option("--id", help="Of the files, only this problem's candidates.")
    ] = None,
    reverse: Model = "tiny",
    out: Annotated[Path | None, typer.Option(help="Folder for the same as a page.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Show which words of a question each candidate solution accounts for.

    Example: ledom explain "Ava has 3 pens and buys 4. How many?" "3 + 4 = 7" "3 - 4 = 1"
    """
    from ledom.explain import explain as run
    from ledom.explain import read_solutions
    from ledom.records import Problem
    from ledom.report.report import write_report

    text = sys.stdin.read().strip() if question == "-" else question
    written = read_solutions(solutions, problem_id)
    lm = load_model(reverse, "reverse", device, dtype)
    report = run(Problem(id=problem_id or "question", question=text), written, lm)
    show_case(report["cases"][0])
    if out is not None:
        say(f"page: {write_report(out, report)}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on from; - reads standard input.")],
    model: Model = "tiny",
    direction: Annotated[
        str, typer.Option(help="forward: write what follows; reverse: what comes before.")
    ] = "reverse",
    samples: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 for the most likely token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 for all.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest text.")] = 256,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Write what follows a text, or what comes before it.

    Example: ledom generate "#### 42" --samples 3
    """
    from ledom.lm.base import Sampling

    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    lm = load_model(model, direction, device, dtype)
    for _, generations in lm.generate([text], sampling, samples):
        for number, made in enumerate(generations):
            if number:
                typer.echo("\n" + "-" * 40 + "\n")
            typer.echo(text + made.text if str(lm.direction) == "forward" else made.text + text)


for command in (*cli_data.COMMANDS, *cli_train.COMMANDS):
    app.command()(command)
