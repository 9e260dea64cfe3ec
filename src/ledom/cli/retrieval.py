"""ledom rank: passages ordered by how likely they make a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli.display import say, show_ranking
from ledom.cli.options import (
    MOST_PROBLEMS,
    Device,
    Dtype,
    Model,
    Threads,
    load_model,
    read_text,
    refuse_unused,
    unused_by_models,
    use_threads,
)
from ledom.cli.progress import track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ledom.core.records import Document
    from ledom.evaluate.retrieval import Query

__all__ = ["COMMANDS"]


def rank(
    context: typer.Context,
    query: Annotated[
        str,
        typer.Argument(help="The query, - for standard input, or a JSONL file of queries."),
    ],
    passages: Annotated[Path, typer.Argument(help="A JSONL file of passages (id, text).")],
    model: Model = "tiny",
    direction: Annotated[
        str, typer.Option(help="reverse or forward: the direction of the model.")
    ] = "reverse",
    prior: Annotated[
        bool,
        typer.Option(help="Also count how likely each passage is by itself, log P(passage)."),
    ] = False,
    top: Annotated[
        int, typer.Option(min=1, max=MOST_PROBLEMS, help="Passages to keep per query.")
    ] = 10,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; a file of queries needs it. Finished work is reused."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Order passages by log P(query | passage), most likely first.

    Example: ledom rank "Ava has 3 pens and buys 4. How many?" passages.jsonl
    """
    from ledom.core.errors import InputError
    from ledom.evaluate.retrieval import rank_passages, read_passages, reciprocal_ranks

    refuse_unused(context, *unused_by_models(model))
    from_file = query.endswith(".jsonl")
    if from_file and out is None:
        raise InputError("a file of queries needs a folder for the ranking; give --out FOLDER")
    found = read_passages(passages)
    queries = _queries(query, found, from_file)
    use_threads(threads)
    lm = load_model(model, direction, device, dtype)
    with TemporaryDirectory() as unnamed:
        ranking = rank_passages(lm, queries, found, out or Path(unnamed), track, prior, top)
    if not from_file:
        show_ranking(ranking[:top], {passage.id: passage.text for passage in found})
    _show_mean(reciprocal_ranks(queries, ranking), len(queries))
    if out is not None:
        say(f"ranking: {out / 'ranking.jsonl'}")


def _queries(query: str, passages: Sequence[Document], from_file: bool) -> list[Query]:
    """The queries of a file, or the text given as the only one."""
    from ledom.core.errors import InputError
    from ledom.evaluate.retrieval import Query, read_queries

    if from_file:
        return read_queries(Path(query), passages)
    text = read_text(query, "query").strip()
    if not text:
        raise InputError("the query is empty; give a text")
    return [Query(id="query", text=text)]


def _show_mean(values: NDArray[np.float64], num_queries: int) -> None:
    """Print the mean reciprocal rank, where relevant passages are known."""
    from ledom.report.intervals import bootstrap_interval
    from ledom.report.numbers import interval

    if len(values):
        mean = interval(bootstrap_interval(values))
        typer.echo(f"MRR {mean}, {len(values):,} of {num_queries:,} queries have relevant passages")


COMMANDS = (rank,)
