"""Weights from a reranked folder: its problems, candidates and scores, no model loaded."""

from __future__ import annotations

from pathlib import Path

from ledom.errors import InputError
from ledom.records import Candidate, Problem, Score, read_records
from ledom.reward.strategies import build_pools
from ledom.reward.tune import TunedWeights, tune

__all__ = ["tune_folder"]


def tune_folder(
    folder: Path, problems: Path | None = None, candidates: Path | None = None
) -> TunedWeights:
    """Fit the weights of every strategy on the labelled problems whose scores lie in `folder`.

    Problems and candidates are those in the folder too, unless files of them are given. Raises
    `InputError` for a bad file, a folder without scores, or labels that leave nothing to tune.
    """
    questions = read_records(problems or folder / "problems.jsonl", Problem)
    answers = read_records(candidates or folder / "candidates.jsonl", Candidate)
    files = sorted(folder.glob("scores.*.jsonl"))
    if not files:
        raise InputError("no scores here; make them with: ledom rerank", path=folder)
    scores = [score for file in files for score in read_records(file, Score)]
    scored = {score.problem_id for score in scores}
    questions = [problem for problem in questions if problem.id in scored]
    return tune(build_pools(questions, answers, scores), questions)
