"""The candidates of many problems as arrays: what every strategy reads.

Features are computed here from scores, and copied from the candidates' external scores. This module
loads no model.

Shapes: P problems, N candidates (padded; `mask` marks real candidates).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.core.records import CONFIDENCE, EARLY_STOP, SELF_CERTAINTY, Candidate, Problem, Score
from ledom.rerank.candidates import SharedScores, pools
from ledom.rerank.steps import worst_step
from ledom.text.answers import extract_answer
from ledom.text.math.equality import equal_answers, has_content

__all__ = [
    "EXTERNAL_LABELS",
    "FEATURES",
    "AnswerClasses",
    "BoolArray",
    "CandidateTable",
    "FloatArray",
    "build_candidate_table",
    "candidate_features",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FEATURES: dict[str, tuple[str, str]] = {
    "forward": ("y|x", "log P(y|x), forward model"),
    "forward_mean": ("y|x", "log P(y|x) per token"),
    "forward_numbers": ("y|x", "log P(y|x) over the numbers of the solution"),
    "forward_min_digit_logprob": ("y|x", "log P(y|x) of the solution's least likely digit"),
    "reverse": ("x|y", "log P(x|y), reverse model"),
    "reverse_mean": ("x|y", "log P(x|y) per token"),
    "question_numbers": ("x|y", "log P(x|y) over the numbers of the question"),
    "question_min_digit_logprob": ("x|y", "log P(x|y) of the question's least likely digit"),
    "worst_step": ("y", "log P of the least likely token of the least likely step, both models"),
    "contrast": ("x'|y", "log P(x|y) less that of copies of x with a number changed"),
    "overlap": ("x~|y", "log overlap of x with questions written backwards from y"),
    "prior": ("y", "log P(y), reverse model"),
    "prior_mean": ("y", "log P(y) per token, reverse model"),
    "prior_numbers": ("y", "log P(y) over the numbers of the solution, reverse model"),
    "prior_min_digit_logprob": (
        "y",
        "log P(y) of the solution's least likely digit, reverse model",
    ),
}
"""What scores say of a candidate: the score's target, and what it is. All are in nats, the larger
the better. External scores are features too, under their own names."""

EXTERNAL_LABELS = {
    SELF_CERTAINTY: "self-certainty",
    **{name: f"{name.partition('_')[2]} confidence" for name in CONFIDENCE},
}
"""Labels of the external scores that sampling writes; those of others are their fields' names."""

_MIN_PER_MODEL = 20  # candidates of each model from which its mean is known
_DIGIT = re.compile(r"\d")
_PREFIXES = {"y|x": "forward", "x|y": "reverse", "y": "prior"}


@dataclass(frozen=True)
class CandidateTable:
    """The candidates of P problems."""

    problem_ids: list[str]
    features: dict[str, FloatArray]
    """Each [P, N]."""
    answers: NDArray[np.int64]
    """[P, N]: equal numbers for equal answers of one problem; -1 where none could be read."""
    correct: BoolArray
    """[P, N]."""
    mask: BoolArray
    """[P, N]: where there is a candidate."""
    greedy: FloatArray
    """[P]: the share of its greedy candidates (mostly one) that are right, NaN without any."""
    groups: list[str]
    """[P]: a label by which results can be told apart, such as the template."""
    by_model: bool = False
    """Whether features are relative to the mean of the model that wrote the candidate."""
    external_scores: tuple[str, ...] = ()
    """The features that came with the candidates."""
    num_planned: int = 0
    """Candidates that each problem would have, had its vote not been stopped early; 0 where none
    was stopped."""

    def select(self, rows: NDArray[np.int64]) -> CandidateTable:
        """Only some problems."""
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
        """A random n of each problem's candidates, without replacement."""
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
    """Arrays from records. Greedy candidates are kept apart; the others form the pool.

    Candidates of several models differ in style more than in truth, so features are then taken
    relative to the mean of the model that wrote them, without a look at any label; see
    `_relative_to_models`.

    `external_scores` name numbers that come with the candidates (see the module of that name).
    Raises `InputError` for a candidate without scores, or without one of them.

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
        [*_available(shared.targets), *external_scores],
    )
    contrasted = {s.problem_id for s in scores if s.target == "x'|y"}
    for row, problem in enumerate(problems):
        targets = shared.targets - (set() if problem.id in contrasted else {"x'|y"})
        classes = AnswerClasses()
        for column, candidate in enumerate(cells.pools[problem.id]):
            found = {target: shared.find(candidate, target) for target in targets}
            # A question without numbers has no copies to contrast it with.
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
        """Enter a candidate at (row, column)."""
        answer = extract_answer(candidate.text)
        self.mask[cell] = True
        self._writers[cell] = self._number_of.setdefault(candidate.model, len(self._number_of))
        self.answers[cell] = classes.number(answer)
        self.correct[cell] = _is_right(candidate, answer, problem)
        for name, array in self.features.items():
            array[cell] = values[name]

    def has_models_to_compare(self) -> bool:
        """Whether several models wrote candidates, enough of them to know each model's mean."""
        counts = np.bincount(self._writers[self.mask])
        return len(counts) > 1 and bool(counts.min() >= _MIN_PER_MODEL)

    def relative_features(self) -> dict[str, FloatArray]:
        """The features less the mean of the model that wrote the candidate."""
        return {
            name: _relative_to_models(values, self.mask, self._writers)
            for name, values in self.features.items()
        }


def _greedy_right(problems: Sequence[Problem], candidates: Sequence[Candidate]) -> FloatArray:
    """[P]: the share of each problem's greedy candidates that are right, NaN without any."""
    by_id = {problem.id: problem for problem in problems}
    right: dict[str, list[bool]] = {problem.id: [] for problem in problems}
    for candidate in candidates:
        if candidate.greedy:
            is_right = _is_right(
                candidate, extract_answer(candidate.text), by_id[candidate.problem_id]
            )
            right[candidate.problem_id].append(is_right)
    return np.array([np.mean(found) if found else np.nan for found in right.values()])


def _planned(candidate: Candidate) -> int:
    """How many candidates its problem would have, had sampling not been stopped early; else 0."""
    planned = (candidate.sampling or {}).get(EARLY_STOP)
    return planned if isinstance(planned, int) and 0 < planned < 2**31 else 0


def _relative_to_models(values: FloatArray, mask: BoolArray, writers: NDArray[Any]) -> FloatArray:
    """Values [P, N] less their problem's mean, then less their model's mean of these."""
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    relative = np.where(mask, values - (values * mask).sum(axis=1, keepdims=True) / counts, 0.0)
    for writer in np.unique(writers[mask]):
        its = writers == writer
        relative[its] -= relative[its].mean()
    result: FloatArray = relative
    return result


class AnswerClasses:
    """Numbers for the answers to one problem.

    Answers of one class are all equal to each other: equality is not transitive ("5 cm" and "5 m"
    both equal "5"), so a new answer joins the first class of which it equals every member.

    >>> classes = AnswerClasses()
    >>> [classes.number(answer) for answer in ("1/2", "2", "0.5", None)]
    [0, 1, 0, -1]
    """

    def __init__(self) -> None:
        self._by_answer: dict[str, int] = {}
        self._members: list[list[str]] = []

    def number(self, answer: str | None) -> int:
        """The answer's class; -1 for none."""
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


def _is_right(candidate: Candidate, answer: str | None, problem: Problem) -> bool:
    if candidate.correct is not None:
        return candidate.correct
    return equal_answers(problem.answer, answer)


def _available(targets: set[str]) -> list[str]:
    """The features that scores of these targets give."""
    return [name for name, (target, _) in FEATURES.items() if target in targets]


def candidate_features(
    scores: Mapping[str, Score | None], problem: Problem, candidate: Candidate
) -> dict[str, float]:
    """What a candidate's scores, by target, say of it: its share of `FEATURES`.

    Raises `InputError` for a score that is None.
    """
    values: dict[str, float] = {}
    for target, score in scores.items():
        if score is None:
            raise InputError(
                f"candidate {candidate.index} of problem {problem.id!r} has no score for {target}; "
                "score the candidates again"
            )
        if target in ("x'|y", "x~|y"):
            continue
        prefix = _PREFIXES[target]
        text = problem.question if target == "x|y" else score.text or candidate.text
        digits = _digit_logprobs(score, text)
        values[prefix] = score.logprob
        values[f"{prefix}_mean"] = score.logprob / max(1, score.num_tokens)
        numbers = "question_numbers" if target == "x|y" else f"{prefix}_numbers"
        values[numbers] = sum(digits)
        values[f"{numbers.removesuffix('_numbers')}_min_digit_logprob"] = min(digits, default=0.0)
    given, changed = scores.get("x|y"), scores.get("x'|y")
    if given and changed:
        values["contrast"] = given.logprob - changed.logprob
    if written := scores.get("x~|y"):
        values["overlap"] = written.logprob
    if prior := scores.get("y"):
        values["worst_step"] = worst_step(prior, scores.get("y|x"), candidate.text)
    return values


def _digit_logprobs(score: Score, text: str) -> list[float]:
    """The log-probabilities of the tokens that hold a digit; none without token scores."""
    if score.token_logprobs is None or score.token_spans is None:
        return []
    return [
        logprob
        for logprob, (start, end) in zip(score.token_logprobs, score.token_spans, strict=True)
        if _DIGIT.search(text, start, end)
    ]
