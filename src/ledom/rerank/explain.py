"""Cases for a report show how well candidates explain the words of their question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ledom.core.direction import Direction
from ledom.core.errors import InputError
from ledom.core.records import Candidate, Key, Problem, Score
from ledom.lm import LanguageModel, unfamiliar
from ledom.report.intervals import FloatArray
from ledom.report.results import Case, CaseCandidate, ModelInfo, QuestionToken, SelectionReport
from ledom.rerank.candidate_table import build_candidate_table
from ledom.rerank.candidates import scores_by_target
from ledom.rerank.score import score_candidates
from ledom.text.answers import extract_answer, is_right, split_thought

__all__ = ["case_of", "explain"]

_CANDIDATES = 6  # shown per case
_TARGETS = {"forward": "y|x", "reverse": "x|y", "prior": "y"}  # of the scores shown, by name


def explain(problem: Problem, solutions: Sequence[str], lm: LanguageModel) -> SelectionReport:
    """A report with one case: the distinct solutions, ranked by log P(x|y).

    Raises `DirectionError` for a forward model, and `InputError` for an empty question or if all
    answers are empty.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(direction="reverse")
    >>> report = explain(Problem(id="p", question="2 + 2?"), ["4", "5"], lm)
    >>> [candidate.rank for candidate in report.cases[0].candidates]
    [1, 2]
    """
    Direction.REVERSE.require(lm.direction, lm.name, "to explain questions")
    if not problem.question.strip():
        raise InputError("the question is empty; give one to explain")
    if not any(split_thought(solution)[1].strip() for solution in solutions):
        raise InputError("no answer has text after its thought; give at least one that has")
    candidates = [
        Candidate(problem_id=problem.id, index=index, text=solution)
        for index, solution in enumerate(dict.fromkeys(solutions))
    ]
    scores = [s for chunk in score_candidates([problem], candidates, lm) for s in chunk]
    table = build_candidate_table([problem], candidates, scores)
    judged, eligible = table.features["reverse"][0], table.eligible[0]
    worst = int(np.where(eligible, judged, np.inf).argmin())
    judged = np.where(eligible, judged, -np.inf)  # as in a selection, an empty answer is last
    found = scores_by_target(candidates, scores)
    return SelectionReport(
        title="What each answer explains",
        warning=unfamiliar(lm, scores),
        models={"reverse": ModelInfo(name=lm.name, parameters=lm.num_parameters)},
        cases=[case_of(problem, candidates, found, judged, worst, limit=len(candidates))],
    )


def case_of(
    problem: Problem,
    candidates: Sequence[Candidate],
    scores: Mapping[Key, Mapping[str, Score]],
    judged: FloatArray,
    rejected: int,
    limit: int = _CANDIDATES,
) -> Case:
    """The case of a problem: its best distinct candidates by `judged` [N], and the rejected one.

    `candidates` [N] are those of the problem; `scores` are those of `scores_by_target`; `rejected`
    is the index of a candidate.

    >>> import numpy as np
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("4544")]
    >>> scores, judged = scores_by_target(drawn, []), np.array([-1.0, -2.0, -1.0, -1.0])
    >>> case = case_of(Problem(id="p", question="2 + 2?"), drawn, scores, judged, rejected=1)
    >>> [(candidate.text, candidate.role, candidate.count) for candidate in case.candidates]
    [('4', 'picked', 3), ('5', 'rejected', 1)]
    """
    columns: dict[str, list[int]] = {}
    for column, candidate in enumerate(candidates):
        columns.setdefault(candidate.text, []).append(column)
    ranked = sorted((same[0] for same in columns.values()), key=lambda column: -judged[column])
    out = columns[candidates[rejected].text][0]
    shown = ranked[:limit] if out in ranked[:limit] else [*ranked[: limit - 1], out]
    roles = {out: "rejected"} | {ranked[0]: "picked"}
    rows = []
    for column in shown:
        candidate = candidates[column]
        answer = extract_answer(candidate.text)
        own = scores[candidate.key]
        shown_scores = {name: own[target] for name, target in _TARGETS.items() if target in own}
        rows.append(
            CaseCandidate(
                index=candidate.index,
                text=candidate.text,
                answer=answer,
                correct=is_right(candidate, answer, problem),
                rank=ranked.index(column) + 1,
                role=roles.get(column),
                count=len(columns[candidate.text]),
                scores={name: round(s.logprob, 2) for name, s in shown_scores.items()},
                question_tokens=[
                    QuestionToken(start=start, end=end, logprob=logprob)
                    for logprob, (start, end) in (own["x|y"].tokens() if "x|y" in own else ()) or ()
                    if end > start
                ],
            )
        )
    return Case(
        problem_id=problem.id, question=problem.question, answer=problem.answer, candidates=rows
    )
