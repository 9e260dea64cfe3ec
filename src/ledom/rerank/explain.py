"""Which parts of a question each of its candidate solutions accounts for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ledom.core.direction import Direction
from ledom.core.errors import DirectionError, InputError
from ledom.core.records import Candidate, Problem, read_records
from ledom.lm.language_model import LanguageModel
from ledom.rerank.candidate_table import build_candidate_table
from ledom.rerank.cases import explained_case
from ledom.rerank.familiarity import unfamiliar
from ledom.rerank.score import score_candidates

__all__ = ["explain", "is_candidates_file", "read_solutions"]


def is_candidates_file(source: str) -> bool:
    """Whether it names a file of candidates; anything else is a solution itself."""
    return source.endswith(".jsonl")


def read_solutions(sources: Sequence[str], problem_id: str | None = None) -> list[str]:
    """The texts among `sources`, and those of the candidates in the JSONL files among them.

    Of the files only the candidates of `problem_id` are taken, where one is given. Raises
    `InputError` for a bad file, or where nothing is left.
    """
    solutions: list[str] = []
    for source in sources:
        if is_candidates_file(source):
            records = read_records(source, Candidate)
            solutions += [c.text for c in records if problem_id in (None, c.problem_id)]
        else:
            solutions.append(source)
    if not solutions:
        raise InputError(f"no candidates of problem {problem_id!r} in {', '.join(sources)}")
    return solutions


def explain(problem: Problem, solutions: Sequence[str], lm: LanguageModel) -> dict[str, Any]:
    """A report (see `ledom.report`) with one case: each distinct solution, by log P(x|y).

    Raises `DirectionError` for a forward model.
    """
    if lm.direction is not Direction.REVERSE:
        raise DirectionError(f"{lm.name}: questions are explained by a reverse model")
    candidates = [
        Candidate(problem_id=problem.id, index=index, text=solution)
        for index, solution in enumerate(dict.fromkeys(solutions))
    ]
    scores = [s for chunk in score_candidates([problem], candidates, lm) for s in chunk]
    table = build_candidate_table([problem], candidates, scores)
    return {
        "title": "What each answer explains",
        "warning": unfamiliar(lm, scores),
        "models": {"reverse": {"name": lm.name, "parameters": getattr(lm, "num_parameters", None)}},
        "cases": [explained_case(problem, candidates, scores, table)],
    }
