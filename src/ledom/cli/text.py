"""Commands on one text: explain a question by its solutions, and generate from a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import options
from ledom.cli.display import log, note, show_case, show_texts, warn
from ledom.cli.inputs import is_jsonl, load_model, read_text, read_words
from ledom.cli.progress import track
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, read_records

if TYPE_CHECKING:
    from ledom.lm.language_model import LanguageModel, Sampling

Before = Annotated[
    str | None, typer.Option(help="An ending, or - for standard input: write what comes before it.")
]
After = Annotated[
    str | None,
    typer.Option(
        help="A beginning, or - for standard input: write what comes after it. With --before, "
        "the reverse model writes what comes between, and the forward model chooses."
    ),
]
NumTexts = Annotated[int, typer.Option(min=1, max=options.MOST_SAMPLES, help="Number of texts.")]
Proposals = Annotated[
    int,
    options.samples_option(
        help="Texts to choose from when writing between a beginning and an ending."
    ),
]
OutBetween = Annotated[
    Path | None,
    options.out_folder(
        "Folder for the texts between a beginning and an ending. Finished work is reused."
    ),
]


def explain(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question, or - for standard input.")],
    solutions: Annotated[
        list[str],
        typer.Argument(
            help="Candidate solutions, JSONL files of candidates, or - for standard input."
        ),
    ],
    problem_id: Annotated[
        str | None, typer.Option("--id", help="Read only this problem's candidates from the files.")
    ] = None,
    reverse: options.Model = "tiny",
    out: Annotated[
        Path | None, options.out_folder("Also write an HTML page to this folder.")
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Show which words of a question each candidate solution explains.

    Example: ledom explain "Ava has 3 pens and buys 4. How many?" "3 + 4 = 7" "3 - 4 = 1"
    """
    from ledom.report.selection_page import write_report
    from ledom.rerank.explain import explain as run

    is_file = [is_jsonl(solution, "solution") for solution in solutions]
    options.refuse_unused(
        context,
        (not any(is_file), "it selects candidates from files, and none is given", ["problem_id"]),
        *options.unused_by_models(reverse),
    )
    if [question, *solutions].count("-") > 1:
        raise InputError("there is only one standard input; give - only once")
    options.check_results(out, "report.html", "report.md", "report.json")
    text = read_words(question, "question")
    text = text.strip() if question == "-" else text
    written = _solutions(solutions, is_file, problem_id)
    lm = load_model(reverse, "reverse", device, dtype)
    report = run(Problem(id=problem_id or "1", question=text), written, lm)
    page = None if out is None else write_report(out, report)  # first: printing may fail
    show_case(report.cases[0])
    warn(report.warning)
    if page is not None:
        log(f"page: {page}")


def _solutions(
    sources: Sequence[str], is_file: Sequence[bool], problem_id: str | None
) -> list[str]:
    """Solutions from arguments, each a solution or the name of a file of candidates."""
    found: list[str] = []
    for source, named in zip(sources, is_file, strict=True):
        if named:
            records = read_records(source, Candidate)
            if problem_id is None and len(ids := {c.problem_id for c in records}) > 1:
                several = f"candidates of {len(ids)} problems, such as {min(ids)!r}; choose by --id"
                raise InputError(several, path=source)
            found += [c.text for c in records if problem_id in (None, c.problem_id)]
        else:
            text = read_text(source, "solution")
            found.append(text.rstrip("\n") if source == "-" else text)
    if not found:
        raise InputError(
            f"no candidates of problem {problem_id!r} in {', '.join(sources)}; give another --id"
        )
    return found


def generate(
    context: typer.Context,
    before: Before = None,
    after: After = None,
    samples: NumTexts = 1,
    proposals: Proposals = 16,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 256,
    seed: options.Seed = 0,
    forward: options.Model = "tiny",
    reverse: options.Model = "tiny",
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    out: OutBetween = None,
) -> None:
    """Write what comes before a text, after it, or between two.

    Example: ledom generate --before "#### 42" --samples 3
    """
    from ledom.evaluate.infilling import Gap, infill
    from ledom.lm import unfamiliar_texts
    from ledom.lm.language_model import Sampling

    names = [name for name, text in ((reverse, before), (forward, after)) if text is not None]
    options.refuse_unused(
        context, *_without_effect(before, after, temperature), *options.unused_by_models(*names)
    )
    if not names:
        raise InputError("nothing to write from; give --before ENDING, --after BEGINNING or both")
    if before == after == "-":
        raise InputError("there is only one standard input; give a text for --before or --after")
    options.check_results(out, "proposals.jsonl", "scores.jsonl", "gaps.jsonl", "middles.jsonl")
    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    beginning = None if after is None else read_text(after, "beginning")
    ending = None if before is None else read_text(before, "ending")
    if beginning is None or ending is None:
        name, direction = (forward, "forward") if ending is None else (reverse, "reverse")
        lm = load_model(name, direction, device, dtype)
        given = beginning or ending or ""
        show_texts(_written(lm, given, sampling, samples))
        warn(unfamiliar_texts(lm, [given]))
        return
    writer = load_model(reverse, "reverse", device, dtype)
    judge = load_model(forward, "forward", device, dtype)
    count = 1 if temperature == 0 else proposals
    gap = Gap(id="gap", beginning=beginning, ending=ending)
    with options.results_folder(out) as folder:
        middles = infill([gap], writer, judge, sampling, count, folder, track)[gap.id]
    if not middles:
        raise InputError(
            f"no text that {reverse} wrote fits the context of {forward} between beginning and "
            "ending; lower --max-tokens"
        )
    show_texts(f"{beginning}{middle.text}{ending}" for middle in middles[:samples])
    if len(middles) < samples:
        note(f"--samples is {samples}, but only {len(middles)} different texts fit")
    warn(unfamiliar_texts(writer, [ending]))


def _without_effect(
    before: str | None, after: str | None, temperature: float
) -> tuple[options.Unused, ...]:
    """The rules for `refuse_unused` in ledom generate."""
    one_end = before is None or after is None
    chosen = "it needs both --before and --after"
    return (
        *options.unused_when_greedy(
            temperature, "proposals", "seed", *(["samples"] if one_end else [])
        ),
        (one_end, chosen, ["proposals", "out"]),
        (before is None, "only --before needs a reverse model", ["reverse"]),
        (after is None, "only --after needs a forward model", ["forward"]),
    )


def _written(lm: LanguageModel, text: str, sampling: Sampling, samples: int) -> list[str]:
    """Texts that a model writes after or before `text`, joined to it."""
    from ledom.core.direction import Direction

    ((_, generations),) = lm.generate([text], sampling, samples)
    is_forward = lm.direction is Direction.FORWARD
    return [text + made.text if is_forward else made.text + text for made in generations]
