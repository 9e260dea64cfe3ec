"""Commands on one text: explain a question by its solutions, and generate from a prompt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ledom.cli.display import say, show_case, warn
from ledom.cli.options import (
    MOST_SAMPLES,
    Device,
    Dtype,
    MaxTokens,
    Model,
    Seed,
    Temperature,
    Threads,
    TopK,
    TopP,
    decode_text,
    load_model,
    read_text,
    refuse_unused,
    unused_by_models,
    unused_when_greedy,
    use_threads,
)

__all__ = ["COMMANDS"]


def explain(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question, or - for standard input.")],
    solutions: Annotated[
        list[str], typer.Argument(help="Candidate solutions, or JSONL files of candidates.")
    ],
    problem_id: Annotated[
        str | None, typer.Option("--id", help="Read only this problem's candidates from the files.")
    ] = None,
    reverse: Model = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="Also write an HTML page to this folder.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Show which words of a question each candidate solution explains.

    Example: ledom explain "Ava has 3 pens and buys 4. How many?" "3 + 4 = 7" "3 - 4 = 1"
    """
    from ledom.core.records import Problem
    from ledom.report.selection_page import write_report
    from ledom.rerank.explain import explain as run
    from ledom.rerank.explain import is_candidates_file, read_solutions

    from_files = any(is_candidates_file(solution) for solution in solutions)
    refuse_unused(
        context,
        (not from_files, "it selects candidates from files, and none is given", ["problem_id"]),
        *unused_by_models(reverse),
    )
    text = read_text(question, "question")
    text = text.strip() if question == "-" else text
    written = read_solutions(
        [
            s if is_candidates_file(s) else decode_text(os.fsencode(s), "solution")
            for s in solutions
        ],
        problem_id,
    )
    use_threads(threads)
    lm = load_model(reverse, "reverse", device, dtype)
    report = run(Problem(id=problem_id or "question", question=text), written, lm)
    page = None if out is None else write_report(out, report)  # first: the terminal may be gone
    show_case(report.cases[0])
    warn(report.warning)
    if page is not None:
        say(f"page: {page}")


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The text to continue, or - for standard input.")],
    model: Model = "tiny",
    direction: Annotated[
        str, typer.Option(help="forward: write what follows. reverse: write what comes before.")
    ] = "reverse",
    samples: Annotated[int, typer.Option(min=1, max=MOST_SAMPLES, help="Number of texts.")] = 1,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Write what comes before a text, or what follows it.

    Example: ledom generate "#### 42" --samples 3
    """
    from ledom.lm.language_model import Sampling
    from ledom.rerank.explain import unfamiliar_texts

    refuse_unused(
        context,
        unused_when_greedy(temperature),
        (temperature == 0, "at temperature 0 there is only one text", ["samples", "seed"]),
        *unused_by_models(model),
    )
    sampling = Sampling(temperature, top_k, top_p, max_tokens, seed)
    text = read_text(prompt, "prompt")
    use_threads(threads)
    lm = load_model(model, direction, device, dtype)
    for _, generations in lm.generate([text], sampling, samples):
        for number, made in enumerate(generations):
            if number:
                typer.echo("\n" + "-" * 40 + "\n")
            typer.echo(text + made.text if str(lm.direction) == "forward" else made.text + text)
    warn(unfamiliar_texts(lm, [text]))


COMMANDS = (explain, generate)
