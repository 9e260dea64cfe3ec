"""Weights from a reranked folder: its problems, candidates and scores, no model loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ledom.core.records import Problem, read_records, unique_ids
from ledom.rerank.candidate_table import build_candidate_table
from ledom.rerank.candidates import match_candidates
from ledom.rerank.external_scores import choose_external_scores, read_candidates
from ledom.rerank.fit import TunedWeights, tune_labeled
from ledom.rerank.measure import labeled_problems
from ledom.rerank.stages import read_scores, scored_problems

__all__ = ["tune_folder"]


def tune_folder(
    folder: Path,
    problems: Path | None = None,
    candidates: Path | None = None,
    external_scores: Sequence[str] | None = None,
) -> TunedWeights:
    """Fit the weights of every strategy on the labeled problems whose scores lie in `folder`.

    Problems and candidates are those in the folder too, unless files of them are given; what has no
    scores is left out. `external_scores` are weighed too (see `choose_external_scores`). Raises
    `InputError` for a bad file, scores of other problems or candidates, a folder without scores, or
    labels that leave nothing to tune.
    """
    questions = read_records(problems or folder / "problems.jsonl", Problem, unique_ids())
    answers = read_candidates(candidates or folder / "candidates.jsonl", external_scores or ())
    scored = scored_problems(folder)
    questions = [problem for problem in questions if problem.id in scored]
    answers = [candidate for candidate in answers if candidate.problem_id in scored]
    scores = read_scores(folder, questions, answers)
    match_candidates(questions, answers)
    table = build_candidate_table(
        questions, answers, scores, choose_external_scores(answers, external_scores)
    )
    return tune_labeled(table, questions, labeled_problems(questions, answers))
