"""Commands of the main job: sample candidates, score them both ways, choose, and report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import options
from ledom.cli.display import log, show_search, show_summary, show_weights
from ledom.cli.inputs import choose_problems, load_model, models_or_none
from ledom.cli.progress import Progress, track
from ledom.core.records import Candidate, Problem, read_records
from ledom.data.problems import GENERATOR

if TYPE_CHECKING:
    from ledom.rerank.pipeline import Job

_DEMO_PROBLEMS = 640
_DEMO_SAMPLES = 8
"""The demo's size gives each seed enough power for both claims (docs/log.md)."""
_DEMO_SECONDS = 0.08  # per candidate on one core without AVX-512: sampled, scored by both models
_SEARCHED = ("problems.jsonl", "searched.jsonl", "candidates.jsonl", "search.json")

CandidateFile = Annotated[
    Path | None,
    options.path_option(
        rich_help_panel="Sampling",
        help="A JSONL file of candidates. Default: sample them from the forward model.",
    ),
]
Folds = Annotated[
    int,
    options.selection_option(
        help="Fit the weights on these problems by cross-fitting in K folds; 0 for no fitting."
    ),
]
Demonstrations = Annotated[
    Path | None,
    options.path_option(
        rich_help_panel="Scoring",
        help="A JSONL file of solved problems that the models read before each text they score.",
    ),
]
ConfidenceOption = Annotated[
    int,
    options.sampling_option(
        min=0,
        max=options.MOST_COPIES,
        help="Record the model's confidence, from the K most likely tokens at each position, and "
        "use it to choose. DeepConf uses 20; OpenAI's own servers allow 5. Cost: almost none.",
    ),
]
ConfidenceWindow = Annotated[
    int,
    options.sampling_option(
        min=1, max=100_000, help="Tokens per window for --confidence and --stop-unsure."
    ),
]
StopUnsure = Annotated[
    float,
    options.sampling_option(
        min=0,
        max=1,
        help="Stop a sample when its confidence falls below a threshold (DeepConf's online stop). "
        "The first quarter of a problem's samples sets the threshold: this share of them, such as "
        "0.9, never falls below it. Needs --confidence. 0: never stop.",
    ),
]
Contrast = Annotated[
    int,
    options.scoring_option(
        help="Also score K copies of each question with one number changed. Cost: each answer is "
        "read once more, and about half of the question K times.",
    ),
]
Flip = Annotated[
    int,
    options.scoring_option(
        help="Also write K questions backwards from each answer, and compare them with the real "
        "one (FLIP). Cost: K questions per answer.",
    ),
]


def demo(
    context: typer.Context,
    out: options.Out = Path("ledom-demo"),
    problems: Annotated[int, options.count_option(help="Number of problems.")] = _DEMO_PROBLEMS,
    samples: options.Samples = _DEMO_SAMPLES,
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Run the main job on the embedded pair: answer new math problems, choose, report.

    Example: ledom demo --problems 100
    """
    minutes = max(1, round(problems * (samples + 1) * _DEMO_SECONDS / 2 / 60))
    log(
        f"{problems} new problems, {samples} candidates each: sample them, score them forward and "
        f"backward, choose, report. About {minutes} min on two cores; seed {seed}."
    )
    rerank(context, num_problems=problems, samples=samples, out=out, seed=seed)


def rerank(
    context: typer.Context,
    problems: options.Problems = GENERATOR,
    num_problems: options.NumProblems = None,
    split: options.Split = "test",
    held_out: options.HeldOut = False,
    candidates: CandidateFile = None,
    samples: options.Samples = 32,
    early_stop: options.EarlyStop = False,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 256,
    confidence: ConfidenceOption = 0,
    window: ConfidenceWindow = 64,
    stop_unsure: StopUnsure = 0.0,
    weights: options.WeightsFile = None,
    lam: options.Lambda = None,
    folds: Folds = 0,
    score_field: options.ScoreFields = None,
    forward: options.ModelOrNone = "tiny",
    reverse: options.ModelOrNone = "tiny",
    demonstrations: Demonstrations = None,
    contrast: Contrast = 0,
    flip: Flip = 0,
    mask_copies: options.MaskCopies = 0,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: options.Out = Path("ledom-rerank"),
    seed: options.Seed = 0,
) -> None:
    """Sample candidates (or read yours), score them both ways, choose, and report.

    Example: ledom rerank --problems mine.jsonl --candidates theirs.jsonl --forward none
    """
    from ledom.lm.confidence import ConfidenceSettings
    from ledom.lm.language_model import Sampling
    from ledom.rerank.pipeline import Job
    from ledom.rerank.weights import choose_weights

    options.refuse_unused(
        context,
        (not confidence, "it needs --confidence", ["window", "stop_unsure"]),
        *_unused_with(context, temperature, candidates, folds, early_stop),
        *options.unused_by_pair(weights, forward, reverse, "contrast", "flip", "mask_copies"),
    )
    _check_results(out, _reranked(), num_problems, problems, candidates)
    job = Job([], out, None, None, choose_weights(lam, weights, forward, reverse))
    job.folds, job.command = folds, options.command_line()
    job.external_scores = options.named_score_fields(score_field)
    asked = ConfidenceSettings(confidence, window) if confidence else None
    job.sampling = Sampling(temperature, top_k, top_p, max_tokens, seed, confidence=asked)
    job.num_samples, job.early_stop, job.stop_unsure = samples, early_stop, stop_unsure
    draws = flip > 0 or (candidates is None and temperature > 0)
    job.problems = choose_problems(context, problems, num_problems, draws, split, seed, held_out)
    job.candidates = _given_candidates(candidates, job, is_all=num_problems is None)
    _set_scoring(job, demonstrations, mask_copies, contrast, flip)
    job.forward, job.reverse = models_or_none(forward, reverse, device, dtype)
    _run(job)


def _reranked() -> list[str]:
    from ledom.rerank.candidates import GIVEN
    from ledom.rerank.score_files import SCORE_FILES

    scores = (f"scores.{name}.jsonl" for name in SCORE_FILES)
    reports = "selected.jsonl", "report.html", "report.md", "report.json"
    return ["problems.jsonl", "candidates.jsonl", GIVEN, *scores, *reports]


def _check_results(
    out: Path, names: Iterable[str], num_problems: int | None, *read: str | Path | None
) -> None:
    """Raise `OutputError` if a result cannot be written, and `InputError` if the part of a file
    that is for the first problems would replace the file."""
    from ledom.rerank.candidates import GIVEN

    options.check_results(out, *names)
    if num_problems is not None:
        options.check_results(out, "problems.jsonl", GIVEN, read=read)


def _unused_with(
    context: typer.Context,
    temperature: float,
    candidates: Path | None,
    folds: int,
    early_stop: bool,
) -> tuple[options.Unused, ...]:
    """The rules for options that these make useless."""
    panels = {p.name or "": getattr(p, "rich_help_panel", None) for p in context.command.params}
    sampling = {name for name, panel in panels.items() if panel == "Sampling"} - {"candidates"}
    return (
        *options.unused_when_greedy(temperature),
        (early_stop, "--early-stop already stops sampling", ["stop_unsure"]),
        (candidates, f"the candidates come from {candidates}", sampling),
        (folds, "--folds fits the weights on these problems", ["lam", "weights"]),
    )


def _run(job: Job) -> None:
    from ledom.rerank.pipeline import rerank

    if job.weights.num_problems and not job.folds:
        job.notes.append(
            f"weights tuned on other problems ({job.weights.num_problems}), then frozen; "
            "intervals are 95%"
        )
    log(f"problems: {len(job.problems)}; results in {job.out}/")
    made = rerank(job, track)
    if made is None:
        return
    report, page = made
    show_summary(report)
    log(f"report: {page}  (also as report.md and report.json; chosen answers in selected.jsonl)")


def _given_candidates(file: Path | None, job: Job, is_all: bool) -> list[Candidate] | None:
    """The candidates in a file, limited to the job's problems if it has only some of them."""
    from ledom.rerank.candidates import candidate_check, read_candidates
    from ledom.rerank.strategies import check_score_names

    if file is None:
        return None
    needed = () if job.folds else job.weights.external_scores
    check_score_names([*(job.external_scores or ()), *needed])
    check = candidate_check(job.problems) if is_all else None
    found = read_candidates(file, job.external_scores, needed, check)
    wanted = {problem.id for problem in job.problems}
    return [candidate for candidate in found if candidate.problem_id in wanted]


def _set_scoring(
    job: Job, demonstrations: Path | None, mask_copies: int, contrast: int, flip: int
) -> None:
    """Set how the job's models score, with demonstrations read from their file."""
    from ledom.rerank.flip import FlipSettings

    if demonstrations is not None:
        job.demonstrations = read_records(demonstrations, Problem, Problem.require_solution)
    job.mask_copies, job.contrast = mask_copies, contrast
    job.flip = FlipSettings(flip, seed=job.sampling.seed) if flip else None


def tune(
    folder: Annotated[Path, options.path_argument(help="The output folder of ledom rerank.")],
    problems: Annotated[
        Path | None,
        options.path_option(help="The problems that were reranked. Default: those in the folder."),
    ] = None,
    candidates: Annotated[
        Path | None,
        options.path_option(help="The candidates that were scored. Default: those in the folder."),
    ] = None,
    score_field: options.ScoreFields = None,
    out: Annotated[Path, options.out_file("The weights file to write.")] = Path("weights.json"),
    threads: options.Threads = None,
) -> None:
    """Fit lambda and the weights of every strategy to a reranked folder. Needs no model.

    Use the weights file with ledom rerank --weights.

    Example: ledom tune out/tune --out weights.json
    """
    from ledom.rerank.fit import tune_folder

    with Progress("fitting the weights"):
        tuned = tune_folder(folder, problems, candidates, options.named_score_fields(score_field))
    tuned.save(out)
    show_weights(tuned)
    log(f"weights of {len(tuned.weights)} strategies: {out}")


def search(
    context: typer.Context,
    problems: options.Problems = GENERATOR,
    num_problems: options.NumProblems = None,
    split: options.Split = "test",
    width: Annotated[
        int, typer.Option(min=1, max=1000, help="Partial solutions kept per round (k).")
    ] = 4,
    expansions: Annotated[
        int, typer.Option(min=1, max=1000, help="Continuations sampled per partial solution (n).")
    ] = 3,
    lam: Annotated[
        float, typer.Option("--lambda", help="Weight of the reverse term, from 0 to 1.")
    ] = 0.5,
    step_end: Annotated[
        str, typer.Option(help="Where a step ends: line, sentence, or a regular expression.")
    ] = "line",
    max_steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Maximum number of steps per solution.")
    ] = 32,
    temperature: options.Temperature = 0.7,
    max_tokens: options.MaxTokens = 96,
    forward: options.Model = "tiny",
    reverse: options.ModelOrNone = "tiny",
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: options.Out = Path("ledom-search"),
    seed: options.Seed = 0,
) -> None:
    """Search over reasoning steps, and compare with best of N at equal generated tokens.

    Example: ledom search --num-problems 50 --out out/search
    """
    from ledom.lm.language_model import Sampling
    from ledom.rerank.search_pipeline import SearchJob, search_job
    from ledom.rerank.step_search import SearchConfig

    options.refuse_unused(context, *options.unused_by_models(forward, reverse))
    _check_results(out, _SEARCHED, num_problems, problems)
    sampling = Sampling(temperature, max_tokens=max_tokens, seed=seed)
    config = SearchConfig(width, expansions, lam, step_end, max_steps, sampling)
    chosen = choose_problems(context, problems, num_problems, temperature > 0, split, seed)
    writer = load_model(forward, "forward", device, dtype)
    _, judge = models_or_none("none", reverse, device, dtype)
    log(f"problems: {len(chosen)}; results in {out}/")
    report = search_job(
        SearchJob(chosen, out, writer, judge, config, options.command_line()), track
    )
    if report is None:
        return
    show_search(report)
    log(f"answers: {out / 'searched.jsonl'}, measurement: {out / 'search.json'}")
