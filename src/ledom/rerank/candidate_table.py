"""The candidates of many problems as arrays: the input of every strategy.

It holds the features of each candidate, from its scores and its external scores, and its answer.
This module loads no model.

Shapes: P problems, N candidates (padded; `mask` marks real candidates).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.records import EARLY_STOP, Candidate, Problem, Score
from ledom.report.intervals import BoolArray, FloatArray
from ledom.rerank.candidates import AnswerClasses, labeled_problems, pools, scores_by_target
from ledom.rerank.features import candidate_features, computable
from ledom.text.answers import extract_answer, is_right, split_thought

__all__ = ["CandidateTable", "build_candidate_table", "is_blank"]

_MIN_PER_MODEL = 20  # candidates of each model, for a reliable mean


@dataclass(frozen=True)
class CandidateTable:
    """The candidates of P problems."""

    problem_ids: list[str]
    questions: list[str]
    """[P]: the text of each question."""
    labeled: BoolArray
    """[P]: whether it is known which candidates are right; see `labeled_problems`."""
    features: dict[str, FloatArray]
    """Each [P, N]."""
    answers: NDArray[np.int64]
    """[P, N]: equal numbers for equal answers to one problem; -1 where no answer was found."""
    correct: BoolArray
    """[P, N]."""
    mask: BoolArray
    """[P, N]: where there is a candidate."""
    blank: BoolArray
    """[P, N]: see `is_blank`."""
    greedy: FloatArray
    """[P]: the share of greedy candidates (usually one) that are right; NaN where unknown."""
    groups: list[str]
    """[P]: the group for results by group, such as the problem's template."""
    by_model: bool = False
    """Whether features are relative to the mean of the model that wrote the candidate, because
    several models did: they differ more in style than in correctness. This uses no labels."""
    external_scores: tuple[str, ...] = ()
    """The names of the features that came with the candidates."""
    num_planned: int = 0
    """Candidates per problem without early stopping; 0 if no vote was stopped early."""

    @property
    def eligible(self) -> BoolArray:
        """[P, N]: the candidates that a score may choose; blank ones only if there are no others.

        The sum of a text's log-probabilities is highest for an empty one.

        >>> drawn = [Candidate(problem_id="p", index=i, text="4"[i:]) for i in (0, 1)]
        >>> build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, []).eligible
        array([[ True, False]])
        """
        written = self.mask & ~self.blank
        return np.where(written.any(axis=1, keepdims=True), written, self.mask)

    @property
    def always_drawn(self) -> BoolArray:
        """[P, N]: the candidates that were drawn whatever their answers were.

        These are all of them. With early stopping, they are the first round's: one more than half
        of the planned ones. Later ones were drawn only if the first disagreed, so a random one of
        all would be right too often where most are right.
        """
        first = self.num_planned // 2 + 1 if self.num_planned else self.mask.shape[1]
        return np.asarray(self.mask & (np.arange(self.mask.shape[1]) < first))

    def select(self, rows: NDArray[np.int64]) -> CandidateTable:
        """The table of the problems in these `rows`.

        >>> problems = [Problem(id=id, question="2 + 2?", answer="4") for id in "ab"]
        >>> drawn = [Candidate(problem_id=id, index=0, text="4") for id in "ab"]
        >>> build_candidate_table(problems, drawn, []).select(np.array([1])).problem_ids
        ['b']
        """
        return replace(
            self._with_cells(lambda values: values[rows]),
            problem_ids=[self.problem_ids[i] for i in rows],
            questions=[self.questions[i] for i in rows],
            labeled=self.labeled[rows],
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
        sampled = self._with_cells(lambda values: np.take_along_axis(values, kept, axis=1))
        return replace(sampled, num_planned=0)

    def _with_cells(self, choose: Callable[[Any], Any]) -> CandidateTable:
        """The table with some of the cells of each array [P, N]."""
        return replace(
            self,
            features={name: choose(values) for name, values in self.features.items()},
            answers=choose(self.answers),
            correct=choose(self.correct),
            mask=choose(self.mask),
            blank=choose(self.blank),
        )


def build_candidate_table(
    problems: Sequence[Problem],
    candidates: Sequence[Candidate],
    scores: Sequence[Score],
    external_scores: Sequence[str] = (),
) -> CandidateTable:
    """Build the table from these records. Greedy candidates count only in `greedy`.

    `external_scores` are names of fields of the candidates, as chosen by `choose_external_scores`.
    Raises `InputError` for a candidate that lacks a score or a field.

    >>> drawn = [Candidate(problem_id="p", index=i, text=f"#### {i + 3}") for i in (0, 1)]
    >>> scores = [Score(problem_id="p", index=i, model="m", direction="forward", target="y|x",
    ...                 logprob=-2.0 - i, num_tokens=2) for i in (0, 1)]
    >>> table = build_candidate_table([Problem(id="p", question="?", answer="4")], drawn, scores)
    >>> table.correct, table.features["forward"]
    (array([[False,  True]]), array([[-2., -3.]]))
    """
    scores_of = scores_by_target(candidates, scores)
    scored: set[str] = {score.target for score in scores}
    known = computable(scored)
    pool_of = pools([problem.id for problem in problems], candidates)
    shape = len(pool_of), max(map(len, pool_of.values()))
    features = {name: np.zeros(shape) for name in (*known, *external_scores)}
    answers, writers = np.full(shape, -1, np.int64), np.full(shape, -1)
    correct, mask, blank = (np.zeros(shape, bool) for _ in range(3))
    number_of: dict[str | None, int] = {}
    contrasted = {s.problem_id for s in scores if s.target == "x'|y"}
    for row, problem in enumerate(problems):
        classes = AnswerClasses()
        # A question without numbers has no copies, so its candidates get a contrast of 0.
        targets = scored if problem.id in contrasted else scored - {"x'|y"}
        for column, candidate in enumerate(pool_of[problem.id]):
            cell, answer = (row, column), extract_answer(candidate.text)
            mask[cell] = True
            blank[cell] = is_blank(candidate.text)
            writers[cell] = number_of.setdefault(candidate.model, len(number_of))
            answers[cell] = classes.number(answer)
            correct[cell] = is_right(candidate, answer, problem) is True
            found = {target: scores_of[candidate.key].get(target) for target in targets}
            values = {"contrast": 0.0} | candidate_features(found, problem, candidate)
            values |= {name: candidate.external_score(name) for name in external_scores}
            for name, array in features.items():
                array[cell] = values[name]
    features, by_model = _relative_to_models(features, mask & ~blank, writers)
    return CandidateTable(
        problem_ids=[*pool_of],
        questions=[problem.question for problem in problems],
        labeled=labeled_problems(problems, candidates),
        features=features,
        answers=answers,
        correct=correct,
        mask=mask,
        blank=blank,
        greedy=_greedy_right(problems, candidates),
        groups=[_group(problem) for problem in problems],
        by_model=by_model,
        external_scores=tuple(external_scores),
        num_planned=max(_planned(candidate) for candidate in candidates),
    )


def is_blank(text: str) -> bool:
    """Whether nothing of a candidate is read: an empty text, or a thought that was cut off.

    >>> is_blank(" "), is_blank("<think>1 + 1"), is_blank("<think>1 + 1</think>2")
    (True, True, False)
    """
    return not "".join(split_thought(text)).strip()


def _group(problem: Problem) -> str:
    group = problem.extra.get("group")
    return "none" if group in (None, "") else str(group)


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
    """How many candidates were planned for its problem; 0 if drawn without early stopping."""
    planned = (candidate.sampling or {}).get(EARLY_STOP)
    return planned if isinstance(planned, int) and 0 < planned < 2**31 else 0


def _relative_to_models(
    features: dict[str, FloatArray], mask: BoolArray, writers: NDArray[np.int64]
) -> tuple[dict[str, FloatArray], bool]:
    """Subtract from features [P, N] the mean of each problem, then the mean of each writer.

    It does so only if there are several writers with enough candidates each, and also returns
    whether there are. Only the cells of `mask` [P, N] count and change; the others get 0.
    """
    counts = np.bincount(writers[mask], minlength=writers.max(initial=-1) + 1)
    if len(counts) < 2 or counts.min() < _MIN_PER_MODEL:
        return features, False
    sizes = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    relative: dict[str, FloatArray] = {}
    for name, values in features.items():
        means = (values * mask).sum(axis=1, keepdims=True) / sizes
        centered = np.where(mask, values - means, 0.0)
        for writer in range(len(counts)):
            its = mask & (writers == writer)
            centered[its] -= centered[its].mean()
        relative[name] = centered
    return relative, True
