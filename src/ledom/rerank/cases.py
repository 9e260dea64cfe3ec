"""Cases for a report: a question, its candidates, and how well each explains the question's words.

`worked_cases` finds problems where the reverse model changed the choice for the better;
`explained_case` shows a given one.

It knows records and scores, and nothing of how a case is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ledom.core.records import Candidate, Problem, Score
from ledom.rerank.candidate_table import CandidateTable
from ledom.rerank.fit import TunedWeights
from ledom.rerank.strategies import STRATEGIES
from ledom.text.answers import extract_answer

__all__ = ["explained_case", "worked_cases"]

_CASES = 3
_SHOWN = {"forward": "y|x", "reverse": "x|y", "prior": "y"}  # totals by name, and their target
_CANDIDATES = 6  # shown in a case


def worked_cases(
    problems: Sequence[Problem],
    candidates: Sequence[Candidate],
    scores: Sequence[Score],
    table: CandidateTable,
    tuned: TunedWeights,
) -> list[dict[str, Any]]:
    """Up to three problems where Reverse Reward is right and the forward likelihood wrong.

    Those come first in which the question's log-probability differs most between the two; without
    any, the problems in which it differs most at all.
    """
    if "reverse" not in table.features:
        return []
    two_models = "forward" in table.features
    judge = "reverse reward" if two_models and "reverse reward" in tuned.weights else "reverse only"
    rival = "forward" if two_models else judge
    score = STRATEGIES[judge].score(table, tuned.weights.get(judge))
    picked = score.argmax(axis=1)
    if judge == rival:
        rejected = np.where(table.mask, score, np.inf).argmin(axis=1)
    else:
        rejected = STRATEGIES[rival].score(table, None).argmax(axis=1)
    rows = np.arange(len(picked))
    gap = table.features["reverse"][rows, picked] - table.features["reverse"][rows, rejected]
    better = table.correct[rows, picked] & ~table.correct[rows, rejected]
    order = np.lexsort((-gap, ~better))[:_CASES]
    by_problem: dict[str, list[Candidate]] = {problem.id: [] for problem in problems}
    for candidate in candidates:
        if not candidate.greedy:
            by_problem[candidate.problem_id].append(candidate)
    by_key = _by_key(scores)
    return [
        _case(problems[i], by_problem[problems[i].id], by_key, table, i, score[i], rejected[i])
        for i in order
        if picked[i] != rejected[i]
    ]


def explained_case(
    problem: Problem,
    candidates: Sequence[Candidate],
    scores: Sequence[Score],
    table: CandidateTable,
) -> dict[str, Any]:
    """One problem with all of its candidates, by log P(x|y): the best beside the worst."""
    score = table.features["reverse"][0]
    by_key = _by_key(scores)
    worst = int(score.argmin())
    return _case(problem, candidates, by_key, table, 0, score, worst, len(candidates))


def _by_key(scores: Sequence[Score]) -> dict[tuple[str, int, str], Score]:
    return {(s.problem_id, s.index, s.target): s for s in scores}


def _case(
    problem: Problem,
    group: Sequence[Candidate],
    scores: Mapping[tuple[str, int, str], Score],
    table: CandidateTable,
    row: int,
    score: Any,
    rejected: int,
    limit: int = _CANDIDATES,
) -> dict[str, Any]:
    counts = Counter(candidate.text for candidate in group)
    first: dict[str, int] = {}
    for column, candidate in enumerate(group):
        first.setdefault(candidate.text, column)
    ranked = sorted(first.values(), key=lambda column: -score[column])
    rank = {column: place for place, column in enumerate(ranked, start=1)}
    shown = ranked[:limit]
    out = first[group[int(rejected)].text]
    if out not in shown:
        shown = [*shown[:-1], out]
    rows = []
    for column in shown:
        candidate = group[column]
        known = problem.answer is not None or candidate.correct is not None
        role = "picked" if column == ranked[0] else "rejected" if column == out else None
        rows.append(
            {
                "index": candidate.index,
                "text": candidate.text,
                "answer": extract_answer(candidate.text),
                "correct": bool(table.correct[row, column]) if known else None,
                "rank": rank[column],
                "role": role,
                "count": counts[candidate.text],
                "scores": {
                    name: round(found.logprob, 2)
                    for name, target in _SHOWN.items()
                    if (found := _score(candidate, group, scores, target)) is not None
                },
                "question_tokens": _question_tokens(candidate, group, scores),
            }
        )
    return {
        "problem_id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "candidates": rows,
    }


def _question_tokens(
    candidate: Candidate,
    group: Sequence[Candidate],
    scores: Mapping[tuple[str, int, str], Score],
) -> list[dict[str, float]]:
    """log P(x|y) token by token."""
    score = _score(candidate, group, scores, "x|y")
    if score is None or not score.token_logprobs or not score.token_spans:
        return []
    return [
        {"start": start, "end": end, "logprob": logprob}
        for (start, end), logprob in zip(score.token_spans, score.token_logprobs, strict=True)
        if end > start
    ]


def _score(
    candidate: Candidate,
    group: Sequence[Candidate],
    scores: Mapping[tuple[str, int, str], Score],
    target: str,
) -> Score | None:
    """A candidate's score: the record of the first candidate with its text."""
    records = (
        scores.get((twin.problem_id, twin.index, target))
        for twin in group
        if twin.text == candidate.text
    )
    return next((record for record in records if record is not None), None)
