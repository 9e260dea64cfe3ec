"""Cases for a report: how well candidates explain the words of their question.

`worked_cases` finds problems where the reverse model changed the choice for the better. `explain`
compares given solutions of one problem. `unfamiliar` warns of texts that the embedded model cannot
judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.records import Candidate, Problem, Score
from ledom.lm import embedded_folder
from ledom.lm.language_model import LanguageModel, TokenSpan
from ledom.report.results import Case, CaseCandidate, ModelInfo, QuestionToken, SelectionReport
from ledom.rerank.candidate_table import CandidateTable, FloatArray, build_candidate_table
from ledom.rerank.candidates import SharedScores, pools
from ledom.rerank.score import score_candidates
from ledom.rerank.strategies import STRATEGIES
from ledom.rerank.weights import TunedWeights
from ledom.text.answers import extract_answer, is_right

__all__ = [
    "FAMILIAR_LOSS",
    "explain",
    "model_info",
    "unfamiliar",
    "unfamiliar_texts",
    "worked_cases",
]

FAMILIAR_LOSS = 1.0
"""Nats per token of a question, given the best of its answers. None of 480 unseen problems from the
embedded model's templates is above 0.49; none of 60 from other templates is below 7.8, and none of
60 from GSM8K below 1.5."""

_UNLIKELY_LOSS = 6.0
"""Nats per token of a text by itself. None of 40 unseen questions from the templates is above 0.8,
and none of their second halves above 2.8; few other texts in plain English are below 8."""
_FEW_TOKENS = 8  # shorter texts are not judged: "A baker" may start anything

_CASES = 3
_CANDIDATES = 6  # shown per case
_TARGETS = {"forward": "y|x", "reverse": "x|y", "prior": "y"}  # of the scores shown, by name


def explain(problem: Problem, solutions: Sequence[str], lm: LanguageModel) -> SelectionReport:
    """A report with one case: the distinct solutions, ranked by log P(x|y).

    Raises `DirectionError` for a forward model.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(direction="reverse")
    >>> report = explain(Problem(id="p", question="2 + 2?"), ["4", "5"], lm)
    >>> [candidate.rank for candidate in report.cases[0].candidates]
    [1, 2]
    """
    Direction.REVERSE.require(lm.direction, lm.name, "to explain questions")
    candidates = [
        Candidate(problem_id=problem.id, index=index, text=solution)
        for index, solution in enumerate(dict.fromkeys(solutions))
    ]
    scores = [s for chunk in score_candidates([problem], candidates, lm) for s in chunk]
    table = build_candidate_table([problem], candidates, scores)
    judged = table.features["reverse"][0]
    pool = _Pool(problem, candidates, SharedScores(candidates, scores))
    return SelectionReport(
        title="What each answer explains",
        warning=unfamiliar(lm, scores),
        models={"reverse": model_info(lm)},
        cases=[pool.case(judged, int(judged.argmin()), len(candidates))],
    )


def model_info(lm: LanguageModel) -> ModelInfo:
    """A model's entry in a report.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> model_info(lm).parameters
    0
    """
    return ModelInfo(name=lm.name, parameters=lm.num_parameters)


def worked_cases(
    problems: Sequence[Problem],
    candidates: Sequence[Candidate],
    scores: Sequence[Score],
    table: CandidateTable,
    tuned: TunedWeights,
) -> list[Case]:
    """Up to three problems, first those where Reverse Reward is right and the forward model wrong.

    Among these, and among the rest, those come first whose question's log-probability differs most
    between the picked and the rejected candidate.

    >>> problem = Problem(id="p", question="2 + 2?", answer="4")
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("45")]
    >>> scores = [Score(problem_id="p", index=i, model="m", direction="reverse", target="x|y",
    ...                 logprob=-1.0 - i, num_tokens=2) for i in (0, 1)]
    >>> table = build_candidate_table([problem], drawn, scores)
    >>> weights = TunedWeights({}, 0, 0, frozenset())
    >>> (case,) = worked_cases([problem], drawn, scores, table, weights)
    >>> [(candidate.text, candidate.role) for candidate in case.candidates]
    [('4', 'picked'), ('5', 'rejected')]
    """
    if "reverse" not in table.features:
        return []
    judged, rejected = _judge(table, tuned)
    picked = judged.argmax(axis=1)
    rows = np.arange(len(picked))
    reverse = table.features["reverse"]
    gap = reverse[rows, picked] - reverse[rows, rejected]
    better = table.correct[rows, picked] & ~table.correct[rows, rejected]
    candidates_of = pools([problem.id for problem in problems], candidates)
    shared = SharedScores(candidates, scores)
    return [
        _Pool(problems[i], candidates_of[problems[i].id], shared).case(judged[i], int(rejected[i]))
        for i in np.lexsort((-gap, ~better))[:_CASES]
        if picked[i] != rejected[i]
    ]


def _judge(table: CandidateTable, tuned: TunedWeights) -> tuple[FloatArray, NDArray[np.int64]]:
    """Scores [P, N] that pick a candidate, and the columns [P] of the rejected candidates.

    Rejected are the forward model's picks, or the worst candidates without a forward model.
    """
    if "forward" not in table.features:
        score = STRATEGIES["reverse_only"].score(table, None)
        return score, np.where(table.mask, score, np.inf).argmin(axis=1)
    judge = "reverse_reward" if "reverse_reward" in tuned.weights else "reverse_only"
    score = STRATEGIES[judge].score(table, tuned.weights.get(judge))
    return score, STRATEGIES["forward"].score(table, None).argmax(axis=1)


@dataclass(frozen=True)
class _Pool:
    """One problem's candidates, with the scores of all problems."""

    problem: Problem
    candidates: Sequence[Candidate]
    scores: SharedScores

    def case(self, judged: FloatArray, rejected: int, limit: int = _CANDIDATES) -> Case:
        """The case with the best distinct candidates by `judged` [N], and the rejected one."""
        first: dict[str, int] = {}
        for column, candidate in enumerate(self.candidates):
            first.setdefault(candidate.text, column)
        ranked = sorted(first.values(), key=lambda column: -judged[column])
        out = first[self.candidates[rejected].text]
        shown = ranked[:limit] if out in ranked[:limit] else [*ranked[: limit - 1], out]
        roles = {out: "rejected"} | {ranked[0]: "picked"}
        return Case(
            problem_id=self.problem.id,
            question=self.problem.question,
            answer=self.problem.answer,
            candidates=[
                self._candidate(column, ranked.index(column) + 1, roles.get(column))
                for column in shown
            ],
        )

    def _candidate(self, column: int, rank: int, role: str | None) -> CaseCandidate:
        candidate = self.candidates[column]
        answer = extract_answer(candidate.text)
        scores = {n: self.scores.find(candidate, target) for n, target in _TARGETS.items()}
        return CaseCandidate(
            index=candidate.index,
            text=candidate.text,
            answer=answer,
            correct=is_right(candidate, answer, self.problem),
            rank=rank,
            role=role,
            count=sum(twin.text == candidate.text for twin in self.candidates),
            scores={name: round(s.logprob, 2) for name, s in scores.items() if s is not None},
            question_tokens=_question_tokens(scores["reverse"]),
        )


def _question_tokens(score: Score | None) -> list[QuestionToken]:
    """log P(x|y) token by token; empty without token scores."""
    return [
        QuestionToken(start=start, end=end, logprob=logprob)
        for logprob, (start, end) in (score and score.tokens()) or []
        if end > start
    ]


def unfamiliar(lm: LanguageModel | None, scores: Sequence[Score]) -> str | None:
    """A warning if at least half of the questions are unlike the embedded model's training texts.

    The embedded pair knows only 75 templates of school problems. On other texts it still prefers
    one answer confidently, but that means nothing. None for other models, and without scores of
    log P(x|y).

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel(direction="reverse")
    >>> unfamiliar(lm, []) is None  # not an embedded model
    True
    """
    if lm is None or not _is_embedded(lm):
        return None
    losses: dict[str, float] = {}
    for score in scores:
        if score.target == "x|y":
            loss = -score.logprob / max(1, score.num_tokens)
            losses[score.problem_id] = min(loss, losses.get(score.problem_id, loss))
    if not losses or (loss := median(losses.values())) <= FAMILIAR_LOSS:
        return None
    limit = f"of the question; at most {FAMILIAR_LOSS:.1f} on its kind of problem"
    return _warning(loss, limit, "its preference")


def unfamiliar_texts(
    lm: LanguageModel, texts: Sequence[str], what: str = "what it writes"
) -> str | None:
    """A warning if at least half of `texts` are unlike the embedded model's training texts.

    The texts are beginnings of documents for a forward model, endings for a reverse model. None for
    other models. Texts of a few tokens are not judged; of a text that is longer than the context,
    the part that the model would continue is. `what` of the model means nothing then.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = FakeLanguageModel()
    >>> unfamiliar_texts(lm, ["Call me Ishmael."]) is None  # not an embedded model
    True
    """
    if not _is_embedded(lm):
        return None
    losses, room = [], lm.context - len(lm.bos_ids) - 1
    for text in texts:
        read = lm.prompt_ids(lm.shortened_prompt(text, room)[0], 1)
        ids, first = lm.direction.to_reading_order(read), len(lm.bos_ids)
        if len(ids) - first >= _FEW_TOKENS:
            span = lm.direction.span_to_model_order(first, len(ids), len(ids))
            losses.append(-float(lm.logprobs([TokenSpan(ids, *span)])[0].mean()))
    if not losses or (loss := median(losses)) <= _UNLIKELY_LOSS:
        return None
    return _warning(loss, "of this text; under 3 on its kind of problem", what)


def _is_embedded(lm: LanguageModel) -> bool:
    return lm.name == str(embedded_folder(lm.direction))


def _warning(loss: float, per_token: str, what: str) -> str:
    return (
        f"unlike anything that the embedded model was trained on (loss {loss:.1f} nats per token "
        f"{per_token}): {what} means nothing here; use a model of your own"
    )
