"""The candidates of many problems as arrays: the input of every strategy.

Features are the numbers that strategies weigh. They come from a candidate's scores and its external
scores. The steps of a solution are its lines. A forward model scores a step given the earlier
steps, a reverse model given the later ones (after BiPRM, 2025). This module loads no model.

Shapes: P problems, N candidates (padded; `mask` marks real candidates).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, Score
from ledom.report.intervals import BoolArray, FloatArray
from ledom.rerank.candidates import (
    AnswerClasses,
    is_blank,
    labeled_problems,
    planned_candidates,
    pools,
    question_hash,
    scores_by_target,
)
from ledom.text.answers import extract_answer, is_right

__all__ = [
    "FEATURES",
    "TOKEN_FEATURES",
    "CandidateTable",
    "build_candidate_table",
    "candidate_features",
    "computable_features",
    "split_steps",
]


@dataclass(frozen=True)
class Feature:
    """A number that strategies weigh, in nats; larger for better candidates."""

    targets: tuple[str, ...]
    """The targets of the scores that it needs."""
    label: str
    """Its description in reports."""
    optional_targets: tuple[str, ...] = ()
    """The targets of further scores, which it uses if there are any."""


FEATURES = {
    "forward": Feature(("y|x",), "log P(y|x), forward model"),
    "forward_mean": Feature(("y|x",), "log P(y|x) per token"),
    "forward_numbers": Feature(("y|x",), "log P(y|x) over the numbers of the solution"),
    "forward_min_digit_logprob": Feature(
        ("y|x",), "log P(y|x) of the solution's least likely digit"
    ),
    "reverse": Feature(("x|y",), "log P(x|y), reverse model"),
    "reverse_mean": Feature(("x|y",), "log P(x|y) per token"),
    "question_numbers": Feature(("x|y",), "log P(x|y) over the numbers of the question"),
    "question_min_digit_logprob": Feature(
        ("x|y",), "log P(x|y) of the question's least likely digit"
    ),
    "worst_step": Feature(
        ("y",),
        "log P of the least likely token of the least likely step, both models",
        optional_targets=("y|x",),
    ),
    "contrast": Feature(
        ("x|y", "x'|y"), "log P(x|y) minus that of copies of x with a number changed"
    ),
    "overlap": Feature(("x~|y",), "log overlap of x with questions written backwards from y"),
    "prior": Feature(("y",), "log P(y), reverse model"),
    "prior_mean": Feature(("y",), "log P(y) per token, reverse model"),
    "prior_numbers": Feature(("y",), "log P(y) over the numbers of the solution, reverse model"),
    "prior_min_digit_logprob": Feature(
        ("y",), "log P(y) of the solution's least likely digit, reverse model"
    ),
}
"""Features by name. External scores are features too, under their own names."""

TOKEN_FEATURES = {
    "y|x": ("forward", "forward_mean", "forward_numbers", "forward_min_digit_logprob"),
    "x|y": ("reverse", "reverse_mean", "question_numbers", "question_min_digit_logprob"),
    "y": ("prior", "prior_mean", "prior_numbers", "prior_min_digit_logprob"),
}
"""The features from the tokens of each target's score: sum, mean, sum over numbers, worst digit."""

_MIN_PER_MODEL = 20  # candidates of each model, for a reliable mean
_DIGIT = re.compile(r"\d")
_STEP = re.compile(r"[^\n]*\S[^\n]*")


@dataclass(frozen=True)
class CandidateTable:
    """The candidates of P problems."""

    problem_ids: list[str]
    question_hashes: list[str]
    """[P]: see `question_hash`; problems with the same question are not independent."""
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

        >>> drawn = [Candidate(problem_id="p", index=i, text="4"[i:]) for i in (0, 1)]
        >>> build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, []).eligible
        array([[ True, False]])
        """
        written = self.mask & ~self.blank  # sums of log-probabilities are highest for empty texts
        return np.where(written.any(axis=1, keepdims=True), written, self.mask)

    @property
    def always_drawn(self) -> BoolArray:
        """[P, N]: the candidates that were drawn whatever their answers were.

        With early stopping, these are only the first round's, one more than half of the planned
        ones. Later ones were drawn only if the first disagreed, so a random one of all would be
        right too often where most are right.
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
            question_hashes=[self.question_hashes[i] for i in rows],
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
    known = computable_features(scored)
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
        question_hashes=[question_hash(problem.question) for problem in problems],
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
        num_planned=max(planned_candidates(candidate) for candidate in candidates),
    )


def _group(problem: Problem) -> str:
    group = problem.extra.get("group")
    return "none" if group in (None, "") else str(group)


def _greedy_right(problems: Sequence[Problem], candidates: Sequence[Candidate]) -> FloatArray:
    """See `CandidateTable.greedy`."""
    by_id = {problem.id: problem for problem in problems}
    right: dict[str, list[float]] = {problem.id: [] for problem in problems}
    for candidate in candidates:
        if candidate.greedy:
            problem = by_id[candidate.problem_id]
            verdict = is_right(candidate, extract_answer(candidate.text), problem)
            right[problem.id].append(np.nan if verdict is None else float(verdict))
    return np.array([np.mean(found) if found else np.nan for found in right.values()])


def _relative_to_models(
    features: dict[str, FloatArray], mask: BoolArray, writers: NDArray[np.int64]
) -> tuple[dict[str, FloatArray], bool]:
    """Subtract from features [P, N] the mean of each problem, then of each writer, if several wrote
    enough candidates; also returns whether they did. Cells outside `mask` [P, N] get 0."""
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


def computable_features(targets: Collection[str]) -> list[str]:
    """The features that can be computed from scores of these targets.

    >>> computable_features({"y|x"})
    ['forward', 'forward_mean', 'forward_numbers', 'forward_min_digit_logprob']
    """
    return [name for name, feature in FEATURES.items() if {*feature.targets} <= {*targets}]


def candidate_features(
    scores: Mapping[str, Score | None], problem: Problem, candidate: Candidate
) -> dict[str, float]:
    """A candidate's `FEATURES` from its scores by target; raises `InputError` for one that is None.

    >>> candidate = Candidate(problem_id="p", index=0, text="4")
    >>> score = Score(problem_id="p", index=0, model="m", direction="forward", target="y|x",
    ...               logprob=-1.5, num_tokens=2, token_logprobs=[-0.5, -1.0],
    ...               token_spans=[[0, 1], [1, 1]])  # the 4, then the document's end
    >>> found = candidate_features({"y|x": score}, Problem(id="p", question="2 + 2?"), candidate)
    >>> found["forward"], found["forward_mean"], found["forward_numbers"]
    (-1.5, -0.75, -0.5)
    """
    values: dict[str, float] = {}
    for target, score in scores.items():
        if score is None:
            raise InputError(
                f"candidate {candidate.index} of problem {problem.id!r} has no score for {target}; "
                "score the candidates again"
            )
        if target in TOKEN_FEATURES:
            text = problem.question if target == "x|y" else score.solution(candidate.text)
            tokens = score.tokens() or []
            digits = [value for value, (start, end) in tokens if _DIGIT.search(text, start, end)]
            mean = score.logprob / max(1, score.num_tokens)
            numbers = (score.logprob, mean, sum(digits), min(digits, default=0.0))
            values |= zip(TOKEN_FEATURES[target], numbers, strict=True)
    given, changed = scores.get("x|y"), scores.get("x'|y")
    if given and changed:
        values["contrast"] = given.logprob - changed.logprob
    if written := scores.get("x~|y"):
        values["overlap"] = written.logprob
    if prior := scores.get("y"):
        values["worst_step"] = worst_step(prior, scores.get("y|x"), candidate.text)
    return values


def split_steps(score: Score, text: str) -> list[list[float]]:
    """The log-probabilities of each step's tokens, from a score of the solution `text` (y or y|x).

    A token belongs to the step of its last character; line ends and the document-end token belong
    to none. Empty without token scores.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> split_steps(score, "1+1\\n#2")
    [[-1.0], [-2.0]]
    """
    if (tokens := score.tokens()) is None:
        return []
    return [
        [
            value
            for value, (start, end) in tokens
            if end > start and line.start() < end <= line.end()
        ]
        for line in _STEP.finditer(text)
    ]


def worst_step(reverse: Score, forward: Score | None, text: str) -> float:
    """The log-probability of the least likely token of a solution's least likely step, in nats.

    `reverse` is a score of `y`, `forward` one of `y|x`. If both scored the same text, each step
    gets the mean of the two; otherwise `forward` is ignored. 0 without token scores.

    >>> score = Score(problem_id="p", index=0, model="m", direction="reverse", target="y",
    ...               logprob=-3.5, num_tokens=3, token_logprobs=[-1.0, -0.5, -2.0],
    ...               token_spans=[[0, 3], [3, 4], [4, 6]])
    >>> worst_step(score, None, "1+1\\n#2")
    -2.0
    """
    readings = [
        [min(step, default=0.0) for step in split_steps(score, score.solution(text))]
        for score in (reverse, forward)
        if score is not None and score.text == reverse.text
    ]
    steps = [sum(step) / len(step) for step in zip(*filter(None, readings), strict=True)]
    # An empty text has only its end token. Without that, it would beat every step.
    ends = [value for score in (reverse, forward) if score for value in score.token_logprobs or ()]
    return min(steps or ends, default=0.0)
