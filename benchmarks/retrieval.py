"""Which solution belongs to a question? Retrieval by the embedded pair, compared with BM25.

    python benchmarks/retrieval.py --problems 24

Needs `pip install 'ledom[bench]'`. The queries are questions that no model was trained on, and the
passages are their solutions, in three pools:

copies      every problem occurs four times, with different numbers; solutions are bare equations,
            so that only numbers tell them apart
held-out    problems of the ten kinds held out of training
trained     problems of the kinds that the pair was trained on

The table gives the MRR and its paired difference from BM25, with 95% intervals over queries, and
the share of queries whose own solution comes first. BM25 is the bm25s library with its defaults, on
words and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import bm25s
import numpy as np
from common import new_parser, parse, print_head, print_row
from numpy.typing import NDArray

import ledom
from ledom.core.direction import Direction
from ledom.core.records import Document, Problem, read_records
from ledom.core.stage import no_progress
from ledom.data.augment import renumber
from ledom.data.problems import generate_problems
from ledom.evaluate.results import reciprocal_ranks, right_firsts
from ledom.evaluate.retrieval import (
    Query,
    Ranked,
    Relevance,
    order_passages,
    rank_passages,
)
from ledom.report.formatting import interval, percent
from ledom.report.intervals import paired_share_interval, share_interval
from ledom.text.pair_format import STYLES

_COPIES = 4  # problems with the same text, including the first
_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")


def copies(count: int, seed: int) -> Iterator[Problem]:
    """Problems, each followed by three copies with other numbers; solutions are equations."""
    rng, made = Random(seed), 0
    for problem in generate_problems("test", 4 * count, seed):
        solution = STYLES["equations"](problem.require_solution(), problem.answer)
        found = [replace(problem, solution=solution)]
        for number in range(1, _COPIES):
            copy = renumber(problem, rng)
            if copy is not None and copy.question not in {other.question for other in found}:
                found.append(replace(copy, id=f"{problem.id}-{number}"))
        if len(found) == _COPIES and made < count:
            made += _COPIES
            yield from found


POOLS: dict[str, Callable[[int, int], Iterator[Problem]]] = {
    "copies": copies,
    "held-out": lambda count, seed: generate_problems("test", count, seed, held_out=True),
    "trained": lambda count, seed: generate_problems("test", count, seed),
}


def pool(problems: Iterable[Problem]) -> tuple[list[Query], list[Document]]:
    """The questions as queries and the solutions as passages."""
    problems = list(problems)
    queries = [Query(id=p.id, text=p.question, relevant=[p.id]) for p in problems]
    return queries, [Document(id=p.id, text=p.require_solution()) for p in problems]


def bm25_ranking(queries: Sequence[Query], passages: Sequence[Document]) -> list[Ranked]:
    """The passages for each query, ordered by BM25."""
    index = bm25s.BM25()
    index.index([_WORD.findall(p.text.lower()) for p in passages], show_progress=False)
    scores = [
        Relevance(query_id=query.id, passage_id=passage.id, logprob=float(score), prior=0.0)
        for query in queries
        for passage, score in zip(
            passages, index.get_scores(_WORD.findall(query.text.lower())), strict=True
        )
    ]
    return order_passages(Direction.REVERSE, queries, passages, scores)


def rankings(
    queries: Sequence[Query], passages: Sequence[Document]
) -> Iterator[tuple[str, list[Ranked]]]:
    """Rank by BM25, and by each model with and without the prior."""
    yield "BM25", bm25_ranking(queries, passages)
    for direction in (Direction.REVERSE, Direction.FORWARD):
        lm = ledom.load("tiny", direction)
        with TemporaryDirectory() as folder:
            rank_passages(lm, queries, passages, Path(folder), no_progress)
            scores = read_records(Path(folder) / "scores.jsonl", Relevance)
        for prior in (False, True):
            name = f"{direction}, {'with' if prior else 'without'} the prior"
            yield name, order_passages(direction, queries, passages, scores, prior)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=[*POOLS])
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser)
    for pool_name in options.pools:
        queries, passages = pool(POOLS[pool_name](options.problems, options.seed))
        print(f"{pool_name}: {len(queries)} queries and passages")
        print_head("ranked by", "MRR", "minus BM25", "own solution first, %")
        bm25: NDArray[np.float64] | None = None
        for name, ranking in rankings(queries, passages):
            right = {one.id: one.relevant or [] for one in queries}
            ordered = [(one.query_id, one.passage_id, one.score) for one in ranking]
            values = reciprocal_ranks(right, ordered)
            bm25 = values if bm25 is None else bm25
            gain = interval(paired_share_interval(values, bm25), sign="+")
            first = percent(float(right_firsts(right, ordered).mean()))
            print_row(name, interval(share_interval(values)), gain, first)


if __name__ == "__main__":
    main()
