"""The candidates of many problems as arrays: the input of every strategy.

Features come from scores (see `features`) and from the candidates' external scores. This module
loads no model.

Shapes: P problems, N candidates (padded; `mask` marks real candidates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.records import EARLY_STOP, Candidate, Problem, Score
from ledom.rerank.candidates import SharedScores, pools
from ledom.rerank.features import available_features, candidate_features
from ledom.text.answers import extract_answer, is_right
from ledom.text.math.equality import equal_answers, has_content

__all__ = [
    "AnswerClasses",
    "BoolArray",
    "CandidateTable",
    "FloatArray",
    "build_candidate_table",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_MIN_PER_MODEL = 20  # candidates of each model, for a reliable mean


@dataclass(frozen=True)
class CandidateTable:
    """The candidates of P problems."""

    problem_ids: list[str]
    features: dict[str, FloatArray]
    """Each [P, N]."""
    answers: NDArray[np.int64]
    """[P, N]: equal numbers for equal answers to one problem; -1 where no answer was found."""
    correct: BoolArray
    """[P, N]."""
    mask: BoolArray
    """[P, N]: where there is a candidate."""
    greedy: FloatArray
    """[P]: the share of greedy candidates (usually one) that are right; NaN where unknown."""
    groups: list[str]
    """[P]: the group for results by group, such as the problem's template."""
    by_model: bool = False
    """Whether features are relative to the mean of the model that wrote the candidate."""
    external_scores: tuple[str, ...] = ()
    """The names of the features that came with the candidates."""
    num_planned: int = 0
    """Candidates per problem without early stopping; 0 if no vote was stopped early."""

    def select(self, rows: NDArray[np.int64]) -> CandidateTable:
        """The table of the problems in these `rows`.

        >>> problems = [Problem(id=id, question="2 + 2?", answer="4") for id in "ab"]
        >>> drawn = [Candidate(problem_id=id, index=0, text="4") for id in "ab"]
        >>> build_candidate_table(problems, drawn, []).select(np.array([1])).problem_ids
        ['b']
        """
        return replace(
            self,
            problem_ids=[self.problem_ids[i] for i in rows],
            features={name: values[rows] for name, values in self.features.items()},
            answers=self.answers[rows],
            correct=self.correct[rows],
            mask=self.mask[rows],
            greedy=self.greedy[rows],
            groups=[self.groups[i] for i in rows],
        )

    def sample(self, n: int, rng: np.random.Generator) -> CandidateTable:
        """The table with `n` random candidates of each problem, drawn without replacement.

        >>> drawn = [Candidate(problem_id="p", index=i, text=str(i)) for i in range(5)]
        >>> table = build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, [])
        >>> table.sample(3, np.random.default_rng(0)).mask.shape
        (1, 3)
        """
        keys = np.where(self.mask, rng.random(self.mask.shape), 2.0)
        kept = np.argsort(keys, axis=1)[:, :n]
        return replace(
            self,
            features={
                name: np.take_along_axis(values, kept, axis=1)
                for name, values in self.features.items()
            },
            answers=np.take_along_axis(self.answers, kept, axis=1),
            correct=np.take_along_axis(self.correct, kept, axis=1),
            mask=np.take_along_axis(self.mask, kept, axis=1),
            num_planned=0,
        )


def build_candidate_table(
    problems: Sequence[Problem],
    candidates: Sequence[Candidate],
    scores: Sequence[Score],
    external_scores: Sequence[str] = (),
) -> CandidateTable:
    """The table of these records. Greedy candidates are not in the pool, but in `greedy`.

    Candidates of different models differ more in style than in correctness. So if several models
    wrote them, each feature is taken relative to its mean over the writer's candidates. No label
    is used for this; see `_relative_to_models`.

    `external_scores` name number fields of the candidates (see `ledom.rerank.external_scores`).
    Raises `InputError` for a candidate that lacks a score or one of these fields.

    >>> drawn = [Candidate(problem_id="p", index=i, text=f"#### {i + 3}") for i in range(2)]
    >>> scores = [
    ...     Score(problem_id="p", index=i, model="m", direction="forward", target="y|x",
    ...           logprob=-2.0 - i, num_tokens=2)
    ...     for i in range(2)
    ... ]
    >>> problem = Problem(id="p", question="2 + 2?", answer="4")
    >>> table = build_candidate_table([problem], drawn, scores)
    >>> table.correct, table.features["forward"]
    (array([[False,  True]]), array([[-2., -3.]]))
    """
    shared = SharedScores(candidates, scores)
    cells = _Cells(
        pools([problem.id for problem in problems], candidates),
        [*available_features(shared.targets), *external_scores],
    )
    contrasted = {s.problem_id for s in scores if s.target == "x'|y"}
    for row, problem in enumerate(problems):
        targets = shared.targets - (set() if problem.id in contrasted else {"x'|y"})
        classes = AnswerClasses()
        for column, candidate in enumerate(cells.pools[problem.id]):
            found = {target: shared.find(candidate, target) for target in targets}
            # A question without numbers has no copies, so its candidates get a contrast of 0.
            values = {"contrast": 0.0} | candidate_features(found, problem, candidate)
            values |= {name: candidate.external_score(name) for name in external_scores}
            cells.fill((row, column), problem, candidate, classes, values)
    by_model = cells.has_models_to_compare()
    return CandidateTable(
        problem_ids=[problem.id for problem in problems],
        features=cells.relative_features() if by_model else cells.features,
        answers=cells.answers,
        correct=cells.correct,
        mask=cells.mask,
        greedy=_greedy_right(problems, candidates),
        groups=[str(problem.extra.get("group", "")) for problem in problems],
        by_model=by_model,
        external_scores=tuple(external_scores),
        num_planned=max(_planned(candidate) for candidate in candidates),
    )


class _Cells:
    """A table's arrays, each [P, N], filled candidate by candidate."""

    def __init__(self, pools: dict[str, list[Candidate]], features: Sequence[str]) -> None:
        shape = (len(pools), max(map(len, pools.values())))
        self.pools = pools
        self.features = {name: np.zeros(shape) for name in features}
        self.answers = np.full(shape, -1, np.int64)
        self.correct = np.zeros(shape, bool)
        self.mask = np.zeros(shape, bool)
        self._writers = np.full(shape, -1)
        self._number_of: dict[str | None, int] = {}

    def fill(
        self,
        cell: tuple[int, int],
        problem: Problem,
        candidate: Candidate,
        classes: AnswerClasses,
        values: Mapping[str, float],
    ) -> None:
        """Enter a candidate at `cell` (row, column)."""
        answer = extract_answer(candidate.text)
        self.mask[cell] = True
        self._writers[cell] = self._number_of.setdefault(candidate.model, len(self._number_of))
        self.answers[cell] = classes.number(answer)
        self.correct[cell] = is_right(candidate, answer, problem) is True
        for name, array in self.features.items():
            array[cell] = values[name]

    def has_models_to_compare(self) -> bool:
        """Whether several models wrote candidates, each enough of them for a reliable mean."""
        counts = np.bincount(self._writers[self.mask])
        return len(counts) > 1 and bool(counts.min() >= _MIN_PER_MODEL)

    def relative_features(self) -> dict[str, FloatArray]:
        """The features minus their mean over the candidates of the same model."""
        return {
            name: _relative_to_models(values, self.mask, self._writers)
            for name, values in self.features.items()
        }


def _greedy_right(problems: Sequence[Problem], candidates: Sequence[Candidate]) -> FloatArray:
    """[P]: the share of each problem's greedy candidates that are right.

    NaN without a greedy candidate, and where it is unknown whether one is right.
    """
    by_id = {problem.id: problem for problem in problems}
    right: dict[str, list[float]] = {problem.id: [] for problem in problems}
    for candidate in candidates:
        if candidate.greedy:
            problem = by_id[candidate.problem_id]
            verdict = is_right(candidate, extract_answer(candidate.text), problem)
            right[problem.id].append(np.nan if verdict is None else float(verdict))
    return np.array([np.mean(found) if found else np.nan for found in right.values()])


def _planned(candidate: Candidate) -> int:
    """Candidates of its problem without early stopping; 0 if it was drawn without."""
    planned = (candidate.sampling or {}).get(EARLY_STOP)
    return planned if isinstance(planned, int) and 0 < planned < 2**31 else 0


def _relative_to_models(values: FloatArray, mask: BoolArray, writers: NDArray[Any]) -> FloatArray:
    """Values [P, N] minus the mean of each problem, and then minus the mean of each writer."""
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    relative = np.where(mask, values - (values * mask).sum(axis=1, keepdims=True) / counts, 0.0)
    for writer in np.unique(writers[mask]):
        its = writers == writer
        relative[its] -= relative[its].mean()
    result: FloatArray = relative
    return result


class AnswerClasses:
    """Groups the equal answers to one problem, and numbers the groups.

    All answers of a class equal each other. Equality is not transitive ("5 cm" and "5 m" both equal
    "5"), so a new answer joins the first class whose members all equal it.

    >>> classes = AnswerClasses()
    >>> [classes.number(answer) for answer in ("1/2", "2", "0.5", None)]
    [0, 1, 0, -1]
    """

    def __init__(self) -> None:
        self._by_answer: dict[str, int] = {}
        self._members: list[list[str]] = []

    def number(self, answer: str | None) -> int:
        """The number of the answer's class; -1 without an answer."""
        if answer is None or not has_content(answer):
            return -1
        if answer not in self._by_answer:
            self._by_answer[answer] = self._class_of(answer)
        return self._by_answer[answer]

    def _class_of(self, answer: str) -> int:
        for number, members in enumerate(self._members):
            if all(equal_answers(member, answer) for member in members):
                members.append(answer)
                return number
        self._members.append([answer])
        return len(self._members) - 1
