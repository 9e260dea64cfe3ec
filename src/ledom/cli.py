"""The command line: each command reads files, calls the library, and says where the result is.

Heavy imports stand inside the commands, so that `ledom --help` is quick. A `LedomError` becomes one
line and exit code 2; Ctrl-C keeps what is finished and exits with 130.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ledom import cli_data, parallel
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
)
from ledom.data.problems import GENERATOR
from ledom.errors import InputError, LedomError
from ledom.terminal import (
    TrainingBar,
    say,
    show_case,
    show_plan,
    show_search,
    show_summary,
    show_weights,
    track,
)

__all__ = ["app", "main"]

app = typer.Typer(
    help="Reverse language models: train them, generate with them, use them as a reward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command()(cli_data.tokenizer)
app.command()(cli_data.tokenize)

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
    from ledom.rerank import Job, default_weights, embedded_weights
    from ledom.rerank import rerank as run
    from ledom.reward.columns import read_candidates
    from ledom.reward.score import candidate_check
    from ledom.reward.tune import TunedWeights

    columns = named_columns(column)
    if lam is not None:
        tuned = default_weights(lam)
    elif weights is not None:
        tuned = TunedWeights.load(weights)
    else:
        tuned = embedded_weights(forward, reverse) or default_weights()
    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    chosen = load_problems(problems, num_problems, split, seed, held_out)
    needed = [*(columns or ()), *(() if folds else tuned.columns)]
    # Of fewer problems than there are, the others' candidates are left out.
    check = candidate_check(chosen) if num_problems is None else None
    given = None if candidates is None else read_candidates(candidates, needed, check)
    if given is not None and num_problems is not None:
        wanted = {problem.id for problem in chosen}
        given = [candidate for candidate in given if candidate.problem_id in wanted]
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
    _use_threads(threads)
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
    _use_threads(threads)
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
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as optim.steps=100.")
    ] = None,
    direction: Annotated[
        str, typer.Option(help="forward, reverse or both, one after the other.")
    ] = "both",
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Train a model, or a pair; a stopped run goes on from its last checkpoint.

    On many GPUs: torchrun --nproc-per-node 8 --no-python ledom train recipe.yaml

    Example: ledom train recipes/tiny.yaml --direction reverse --threads 1
    """
    from ledom.data.prepare import prepare_data
    from ledom.direction import Direction
    from ledom.lm.hf import default_device
    from ledom.recipe import load_recipe, save_recipe
    from ledom.train.loop import train as run
    from ledom.train.parallel import connect

    plan = load_recipe(recipe, overrides or [], files=True)
    if direction not in ("forward", "reverse", "both"):
        raise InputError(f"direction is {direction!r}; give forward, reverse or both")
    directions = list(Direction) if direction == "both" else [Direction(direction)]
    _use_threads(threads)
    folder = out / plan.name
    say(f"preparing the data in {folder / 'data'}")
    data = prepare_data(plan.data_of(directions[0]), folder / "data")
    with connect(device or default_device()) as world:
        saved = folder / "recipe.yaml"
        if world.is_first and not saved.exists():  # of a run that is there, until it takes this one
            save_recipe(plan, saved)
        for way in directions:
            with TrainingBar(str(way), plan.optim.steps, world.is_first) as on_progress:
                finished = run(plan, way, data, folder / str(way), on_progress, world)
            if world.is_first:
                save_recipe(plan, saved)
                say(f"{way} model: {finished}")


@app.command()
def dynamics(
    runs: Annotated[list[Path], typer.Argument(help="Folders of ledom train, as runs/NAME.")],
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("ledom-dynamics"),
) -> None:
    """Compare the training of both directions, and of several runs, from their metrics.

    Example: ledom dynamics runs/tiny --out out/dynamics
    """
    import ledom
    from ledom.evaluate.dynamics import compare_runs
    from ledom.report.dynamics import claims, write_dynamics

    report = compare_runs(runs)
    report["ledom_version"] = ledom.__version__
    report["command"] = "ledom " + " ".join(sys.argv[1:])
    page = write_dynamics(out, report)
    for line in claims(report):
        say(line)
    say(f"report: {page}  (the same as dynamics.md and dynamics.json)")


@app.command()
def vary(
    problems: Annotated[Path, typer.Argument(help="A JSONL file of problems with solutions.")],
    variants: Annotated[int, typer.Option(min=0, help="Most with other numbers, a problem.")] = 6,
    wrong: Annotated[int, typer.Option(min=0, help="Most wrong solutions of each.")] = 4,
    out: Out = Path("ledom-vary"),
    seed: Seed = 0,
) -> None:
    """More training pairs out of worked problems: other numbers, and solutions gone wrong.

    Example: ledom vary gsm8k/train.jsonl --out varied
    """
    from ledom.data.prepare import DataConfig, read_split
    from ledom.data.variants import vary as run
    from ledom.records import Problem, Record, write_records

    given, held_out = read_split(DataConfig(train=str(problems)))
    kept = [record for record in given if isinstance(record, Problem)]
    varied, candidates = run(kept, variants, wrong, seed)
    files: list[tuple[str, list[Record]]] = [
        ("train", [*varied]),
        ("wrong", [*candidates]),
        ("valid", [*held_out]),
    ]
    for name, records in files:
        write_records(out / f"{name}.jsonl", records)
        say(f"{out / name}.jsonl: {len(records)} records")


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as train.seq_len=2048.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(help="a100, a100-40gb, b200, h100, h200 ...")] = "h100",
    utilisation: Annotated[
        float, typer.Option(help="Share of the GPUs' peak that training reaches.")
    ] = 0.4,
    shard_size: Annotated[
        int | None, typer.Option(help="GPUs that share one copy of the weights; all by default.")
    ] = None,
    micro_tokens: Annotated[
        int | None, typer.Option(help="Most tokens a GPU takes at a time; its share by default.")
    ] = None,
    recompute: Annotated[
        bool, typer.Option(help="Keep only the inputs of layers (activation checkpointing).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, in bytes.")] = False,
) -> None:
    """Work out a run's parameters, memory by part, FLOPs, hours and sizes, before it is started.

    Example: ledom plan recipes/7b.yaml --gpus 64 --gpu h100
    """
    from ledom.recipe import load_recipe
    from ledom.train.plan import Setup, make_plan

    setup = Setup(gpus, gpu, utilisation, shard_size, micro_tokens, recompute)
    needs = make_plan(load_recipe(recipe, overrides or []), setup)
    if as_json:
        typer.echo(json.dumps(asdict(needs) | {"fits": needs.fits}, indent=1))
    else:
        show_plan(needs)


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A model folder, one of a run (runs/NAME/reverse), or of data.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the released model; data gets its card where it is.")
    ] = Path("ledom-export"),
    direction: Annotated[
        str | None, typer.Option(help="Of a model whose config.json records none.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="For the card, as apache-2.0.")] = None,
    push: Annotated[str | None, typer.Option(help="Upload to the hub as USER/NAME.")] = None,
    private: Annotated[bool, typer.Option(help="Make it private there.")] = False,
) -> None:
    """Write a model for others to use with plain transformers, its card included.

    Example: ledom export runs/tiny/reverse --out tiny-reverse --push me/tiny-reverse
    """
    from ledom.release.dataset import write_dataset_card
    from ledom.release.hub import push as upload
    from ledom.release.model import export_model
    from ledom.runs import find_run

    if is_data := write_dataset_card(source, push, license):
        folder = source
    else:
        folder = export_model(find_run(source), out, direction, push, license)
    say(f"released: {folder}, its card: {folder / 'README.md'}")
    if push is not None:
        say(f"uploaded: {upload(folder, push, private, 'dataset' if is_data else 'model')}")


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


def _use_threads(threads: int | None) -> None:
    import torch

    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // parallel.local_size()))
