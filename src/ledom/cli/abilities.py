"""Commands for what a reverse model can do: rank passages, invert outputs, synthesize."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import options
from ledom.cli.display import log, note, show_ranking, warn
from ledom.cli.inputs import check_count, choose_problems, is_jsonl, load_model, read_words
from ledom.cli.progress import track
from ledom.core.errors import InputError
from ledom.core.files import write_json
from ledom.core.records import Problem, read_records, unique_ids
from ledom.data.benchmarks import BENCHMARKS
from ledom.data.problems import GENERATOR, check_file
from ledom.report.formatting import accuracy, interval

if TYPE_CHECKING:
    from ledom.evaluate.synthesis import Seed, Synthesized

_NO_ROOM = (
    "{} of {} outputs leave no room for a prompt of {} tokens in a model's context, and are "
    "left out; try a lower --max-tokens"
)
_NO_PROMPT = (
    "{} of {} outputs got no prompt: each proposal was empty, did not end within {} tokens, "
    "or is too long for the forward model; try another --max-tokens"
)
_JUDGED = 100  # texts checked for whether the embedded pair knows their kind

QueryText = Annotated[
    str, typer.Argument(help="The query, - for standard input, or a JSONL file of queries.")
]
PassagePrior = Annotated[
    bool,
    typer.Option(help="Add log P(passage), how likely the passage is on its own, to each score."),
]
TopPassages = Annotated[int, options.count_option(help="Passages to keep per query.")]
Seeds = Annotated[
    str,
    typer.Argument(
        help="A JSONL file of solutions or answers (id, solution?, answer?), or gsm_symbolic "
        "(generated), gsm8k ..."
    ),
]
Known = Annotated[
    list[Path] | None,
    options.path_option(
        rich_help_panel="Problems",
        help="A JSONL file of problems, such as training data; new questions that are near "
        "duplicates of these, or of the seeds' own questions, are removed (repeatable).",
    ),
]
Questions = Annotated[int, options.samples_option(help="Questions per seed.")]
Answers = Annotated[
    int, options.samples_option(help="Answers sampled from the forward model per question.")
]
Agreement = Annotated[
    float,
    options.selection_option(
        help="Minimum share of the forward model's answers that equal the seed's answer."
    ),
]
Similarity = Annotated[
    float,
    options.selection_option(
        help="Jaccard similarity of 5-word n-grams at which two questions are near duplicates."
    ),
]
OutputText = Annotated[
    str,
    typer.Argument(
        help="The output of a model, - for standard input, or a JSONL file (id, text, prompt?)."
    ),
]
Prompts = Annotated[int, options.samples_option(help="Prompts to propose.")]
PromptPrior = Annotated[
    bool,
    typer.Option(help="Add log P(prompt), how likely the prompt is on its own, to each score."),
]
TopPrompts = Annotated[int, typer.Option(min=1, max=options.MOST_SAMPLES, help="Prompts to print.")]


def rank(
    context: typer.Context,
    query: QueryText,
    passages: Annotated[Path, options.path_argument(help="A JSONL file of passages (id, text).")],
    model: options.Model = "tiny",
    direction: options.Direction = None,
    prior: PassagePrior = False,
    top: TopPassages = 10,
    out: options.OutForFile = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Order passages by log P(query | passage), most likely first.

    Example: ledom rank "Ava has 3 pens and buys 4. How many?" passages.jsonl
    """
    from ledom.evaluate import retrieval
    from ledom.lm import EMBEDDED, unfamiliar_texts

    options.refuse_unused(context, *options.unused_by_models(model))
    from_file = _is_file(query, "query", out)
    results = "scores.jsonl", "ranking.jsonl", "retrieval.json"
    options.check_results(out, *results, read=(passages, query))
    found = retrieval.read_passages(passages)
    if from_file:
        queries = retrieval.read_queries(Path(query), found)
    else:
        queries = [retrieval.Query(id="query", text=read_words(query, "query").strip())]
    if direction is None and model in (EMBEDDED, "none"):
        direction = "reverse"
    lm = load_model(model, direction, device, dtype)
    with options.results_folder(out) as folder:
        ranking = retrieval.rank_passages(lm, queries, found, folder, track, prior, top)
    if not from_file:
        texts = {passage.id: passage.text for passage in found}
        show_ranking((one.passage_id, texts[one.passage_id], one.score) for one in ranking[:top])
    if cut := {one.passage_id for one in ranking if one.extra.get("truncated")}:
        note(f"{len(cut)} of {len(found)} passages were cut to fit the model's context")
    warn(unfamiliar_texts(lm, [one.text for one in queries[:_JUDGED]], "its order"))
    relevant = {one.id: one.relevant for one in queries if one.relevant}
    _summarize(
        relevant,
        [(one.query_id, one.passage_id, one.score) for one in ranking],
        "queries have relevant passages",
        {"num_queries": len(queries), "num_passages": len(found), "num_truncated": len(cut)},
        out and out / "retrieval.json",
    )


def _is_file(argument: str, name: str, out: Path | None) -> bool:
    """Whether an argument names a JSONL file, whose ranking needs a folder."""
    if not is_jsonl(argument, name):
        return False
    if out is None:
        raise InputError("the ranking of a file needs a folder; give --out FOLDER", path=argument)
    return True


def _summarize(
    right: dict[str, list[str]],
    ranking: list[tuple[str, str, float]],
    known: str,
    counts: dict[str, int],
    path: Path | None,
) -> None:
    """Print and save the mean reciprocal rank and how often the right result is first; see
    `reciprocal_ranks`. Items with the same right results are resampled together."""
    from ledom.evaluate.results import reciprocal_ranks, right_firsts
    from ledom.report.intervals import share_interval

    values = reciprocal_ranks(right, ranking)
    groups = [frozenset(own) for own in right.values()]
    mean = first = None
    if len(values):
        mean = share_interval(values, groups=groups)
        first = share_interval(right_firsts(right, ranking), groups=groups)
        share = f"{len(values):,} of {next(iter(counts.values())):,}"
        typer.echo(f"MRR {interval(mean)}, right first {accuracy(first)}%; {share} {known}")
    if path is not None:
        shares = {"mrr": mean and asdict(mean), "right_first": first and asdict(first)}
        write_json(path, {**counts, "num_known": len(values), **shares})
        log(f"ranking: {path.with_name('ranking.jsonl')}; summary: {path}")


def synthesize(
    context: typer.Context,
    seeds: Seeds = "gsm_symbolic",
    num_seeds: options.NumProblems = None,
    split: options.Split = "tune",
    known: Known = None,
    samples: Questions = 2,
    answers: Answers = 4,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 256,
    agreement: Agreement = 0.5,
    similarity: Similarity = 0.8,
    forward: options.Model = "tiny",
    reverse: options.Model = "tiny",
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: options.Out = Path("ledom-synthesize"),
    seed: options.Seed = 0,
) -> None:
    """Write questions for solutions or bare answers; keep those that a forward model confirms.

    The result is a file of problems for ledom train and ledom rerank.

    Example: ledom synthesize solutions.jsonl --known train.jsonl --out out/new
    """
    from ledom.evaluate.synthesis import SynthesisSettings, seed_prompt
    from ledom.evaluate.synthesis import synthesize as run
    from ledom.lm import unfamiliar_texts
    from ledom.lm.language_model import Sampling

    options.refuse_unused(
        context,
        *options.unused_when_greedy(temperature, "samples", "answers"),
        *options.unused_by_models(forward, reverse),
    )
    options.check_results(out, "proposals.jsonl", "answers.jsonl", "synthesis.json")
    read = seeds, *(known or ())
    options.check_results(out, "problems.jsonl", "removed.jsonl", read=read)
    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    counts = (1, 1) if temperature == 0 else (samples, answers)
    settings = SynthesisSettings(sampling, *counts, agreement, similarity)
    found = _seeds(context, seeds, num_seeds, split, seed, temperature > 0)
    questions = [one.question for file in known or () for one in read_records(file, Problem)]
    writer = load_model(reverse, "reverse", device, dtype)
    judge = load_model(forward, "forward", device, dtype)
    log(f"seeds: {len(found)}; results in {out}/")
    with options.results_folder(out) as folder:
        made = run(found, writer, judge, settings, questions, folder, track)
    _show_synthesized(made, max_tokens, out)
    texts = [seed_prompt(one, writer.pair_format) for one in found[:_JUDGED]]
    warn(unfamiliar_texts(writer, texts))


def _seeds(
    context: typer.Context, source: str, count: int | None, split: str, seed: int, draws: bool
) -> list[Seed]:
    """The seeds in a file, or the problems of a benchmark or of the generator as seeds."""
    from ledom.evaluate.synthesis import Seed

    if source != GENERATOR and source not in BENCHMARKS:
        options.refuse_unused(
            context,
            (True, f"only {GENERATOR} has splits", ["split"]),
            (not draws, "nothing is drawn at random", ["seed"]),
        )
        check_file(source)
        given = read_records(source, Seed, unique_ids())
        check_count(count, len(given), source, "--num-seeds")
        return given[:count]
    problems = choose_problems(context, source, count, draws, split, seed, option="--num-seeds")
    return [
        Seed(id=p.id, solution=p.solution, answer=p.answer, question=p.question) for p in problems
    ]


def _show_synthesized(found: Synthesized, max_tokens: int, out: Path) -> None:
    """Print how many questions were kept, and how often the forward model's answer agrees."""
    from ledom.report.intervals import share_interval

    total = len(found.problems) + len(found.removed)
    reasons = ", ".join(f"{number} {reason}" for reason, number in found.reasons.items())
    typer.echo(f"{len(found.problems)} of {total} questions kept; removed: {reasons or 'none'}")
    if len(agreements := found.agreements):
        share = accuracy(share_interval(agreements))
        typer.echo(f"the forward model's answer agrees: {share}%")
    if found.num_cut:
        note(
            f"{found.num_cut:,} of {found.num_answers:,} answers did not end within "
            f"{max_tokens} tokens, so they may be wrong; raise --max-tokens"
        )
    log(f"problems: {out / 'problems.jsonl'}; removed questions: removed.jsonl")


def invert(
    context: typer.Context,
    output: OutputText,
    samples: Prompts = 32,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 256,
    prior: PromptPrior = True,
    top: TopPrompts = 3,
    forward: options.Model = "tiny",
    reverse: options.Model = "tiny",
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: options.OutForFile = None,
    seed: options.Seed = 0,
) -> None:
    """Find the prompts that are likely to have produced an output.

    The reverse model proposes prompts; the forward model scores them.

    Example: ledom invert "So, a pizza will last for 24 / 12 = 2 days."
    """
    from ledom.evaluate import inversion
    from ledom.lm import unfamiliar_texts
    from ledom.lm.language_model import Sampling

    from_file = _is_file(output, "output", out)
    options.refuse_unused(
        context,
        *options.unused_when_greedy(temperature, "samples", "seed"),
        (from_file, "for a file of outputs no prompts are printed", ["top"]),
        *options.unused_by_models(forward, reverse),
    )
    results = "proposals.jsonl", "scores.jsonl", "ranking.jsonl", "inversion.json"
    options.check_results(out, *results, read=[output])
    if from_file:
        outputs = read_records(output, inversion.Output, unique_ids())
    else:
        outputs = [inversion.Output(id="output", text=read_words(output, "output").rstrip("\n"))]
    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    count = 1 if temperature == 0 else samples
    proposer = load_model(reverse, "reverse", device, dtype)
    verifier = load_model(forward, "forward", device, dtype)
    fitting = inversion.with_room(outputs, proposer, verifier, sampling)
    if left_out := len(outputs) - len(fitting):
        note(_NO_ROOM.format(left_out, len(outputs), max_tokens))
    with options.results_folder(out) as folder:
        found = inversion.invert(fitting, proposer, verifier, sampling, count, folder, track, prior)
    if not from_file:
        show_ranking(("", one.prompt, one.score) for one in found[:top])
    if lacking := len(fitting) - len({one.output_id for one in found}):
        note(_NO_PROMPT.format(lacking, len(fitting), max_tokens))
    warn(unfamiliar_texts(proposer, [one.text for one in outputs[:_JUDGED]]))
    known = {one.id: [one.prompt.strip()] for one in outputs if one.prompt is not None}
    ranking = [(one.output_id, one.prompt.strip(), one.score) for one in found]
    counts = {"num_outputs": len(outputs), "num_without_prompt": left_out + lacking}
    path = out and out / "inversion.json"
    _summarize(known, ranking, "outputs have a known prompt", counts, path)
