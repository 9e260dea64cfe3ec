"""Fits the weights of strategies on labeled problems, without loading a model.

An interpolation (the paper's lambda) is chosen from a grid by accuracy. The weights of a sum of
features are fitted by logistic regression on pairs of a right and a wrong candidate for the same
problem, with a penalty chosen by cross-validation over problems. A vote's temperature, which
divides its score, is chosen by accuracy on problems that the weights were not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.core.reading import exists
from ledom.core.records import Problem, read_records, unique_ids
from ledom.report.intervals import BoolArray, FloatArray
from ledom.rerank.candidate_table import FEATURES, CandidateTable, build_candidate_table
from ledom.rerank.candidates import GIVEN, choose_external_scores, match_candidates, read_candidates
from ledom.rerank.score_files import read_scores, scored_problems, scoring_models
from ledom.rerank.strategies import Strategy, Vote, check_score_names, strategies
from ledom.rerank.weights import LAMBDAS, CrossFitted, TunedWeights

__all__ = ["check_folds", "cross_fit", "fit_sum", "tune", "tune_folder"]

_INVERSE_TEMPERATURES = (
    *(0.001, 0.002, 0.005, 0.01, 0.02),  # sums over long texts differ by hundreds of nats
    *(0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0),
)
_PENALTIES = (0.3, 3.0, 30.0)
"""Factors on the squared weights, in units of one over the feature's spread. A penalty is added to
the sum of the losses, so it shrinks the weights less with more problems."""
_FOLDS = 5
_NEWTON_STEPS, _CONVERGED = 100, 1e-9  # at most, and the largest step at the minimum
_MOST = 60  # right and wrong candidates of a problem: pairs of a thousand would fill the memory
_CLIP = 3.0  # features are clipped to this many spreads from the problem's mean


def tune(table: CandidateTable) -> TunedWeights:
    """Fit every strategy that has weights and whose features are in the table.

    Only labeled problems are used. Raises `InputError` if none of them has both right and wrong
    candidates.

    >>> from ledom.core.records import Candidate, Score
    >>> problems = [Problem(id="p", question="2 + 2?", answer="4")]
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("45")]
    >>> scores = [Score(problem_id="p", index=i, model="m", direction="forward", target="y|x",
    ...                 logprob=-1.0 - i, num_tokens=2) for i in (0, 1)]
    >>> tune(build_candidate_table(problems, drawn, scores)).weights["forward"]
    {'forward': 1.0}
    """
    table = table.select(np.flatnonzero(table.labeled))
    if not table.labeled.any():
        raise InputError(
            "none of the problems has a known answer to fit on; add answers to the problems, or "
            "labels to the candidates, or choose without fitting"
        )
    if not _has_pairs(table).any():
        raise InputError(
            f"none of the {len(table.problem_ids)} problems to fit on has both right and wrong "
            "candidates; give more problems, or more candidates of each, or choose without fitting"
        )
    weights: dict[str, dict[str, float]] = {}
    sums: dict[tuple[str, ...], _Fit] = {}
    for name, strategy in strategies(table.external_scores).items():
        if not strategy.features or not strategy.available(table):
            continue
        fit = _fit(strategy, table, sums)
        scale = _inverse_temperature(strategy, fit.held_out) if isinstance(strategy, Vote) else 1.0
        weights[name] = {key: float(f"{scale * value:.5g}") for key, value in fit.weights.items()}
    return TunedWeights(
        weights,
        len(table.problem_ids),
        int(table.mask.sum(axis=1).max()),
        frozenset(table.question_hashes),
        table.external_scores,
    )


def tune_folder(
    folder: Path,
    problems: Path | None = None,
    candidates: Path | None = None,
    external_scores: Sequence[str] | None = None,
) -> TunedWeights:
    """Fit the weights of every strategy on the labeled problems in a reranked `folder`.

    Problems and candidates are those of the last run in the folder, unless files are given.
    Problems without scores are left out. For `external_scores` see `choose_external_scores`. Raises
    `InputError` for a bad file, scores of other problems or candidates, and as `tune` does.

    >>> tune_folder(Path("no-folder"))
    Traceback (most recent call last):
    ledom.core.errors.InputError: no-folder: no scores here; make them with: ledom rerank
    """
    check_score_names(external_scores or ())
    scored = scored_problems(folder)
    questions = read_records(problems or folder / "problems.jsonl", Problem, unique_ids())
    kept = (folder / name for name in (GIVEN, "candidates.jsonl"))
    file = candidates or next(filter(exists, kept), folder / "candidates.jsonl")
    answers = read_candidates(file, external_scores)
    questions = [problem for problem in questions if problem.id in scored]
    answers = [candidate for candidate in answers if candidate.problem_id in scored]
    scores = read_scores(folder, questions, answers)
    match_candidates(questions, answers)
    table = build_candidate_table(
        questions, answers, scores, choose_external_scores(answers, external_scores)
    )
    return replace(tune(table), models=scoring_models(folder))


def cross_fit(table: CandidateTable, num_folds: int) -> CrossFitted:
    """Weights for each fold of the problems, fitted on the other folds (cross-fitting).

    Problems with the same question are in one fold, so that no problem is tested with weights that
    were fitted on it. Raises `InputError` as `check_folds` does, and as `tune` does on the other
    folds.

    >>> from ledom.core.records import Candidate, Score
    >>> problems = [Problem(id=id, question=id, answer="4") for id in "pq"]
    >>> drawn = [Candidate(problem_id=p, index=i, text=str(4 + i)) for p in "pq" for i in (0, 1)]
    >>> scores = [Score(problem_id=c.problem_id, index=c.index, model="m", direction="forward",
    ...                 target="y|x", logprob=-1.0 - c.index, num_tokens=2) for c in drawn]
    >>> fitted = cross_fit(build_candidate_table(problems, drawn, scores), num_folds=2)
    >>> [(rows.tolist(), weights.num_problems) for rows, weights in fitted.folds]
    [([0], 1), ([1], 1)]
    """
    check_folds(num_folds, len({*table.question_hashes}))
    fold = _folds(table, num_folds, seed=1)
    folds = [
        (np.flatnonzero(fold == i), tune(table.select(np.flatnonzero(fold != i))))
        for i in range(num_folds)
    ]
    return CrossFitted(**vars(tune(table)), folds=folds)


def check_folds(num_folds: int, num_problems: int) -> None:
    """Raise `InputError` for fewer than two folds, or more folds than problems.

    >>> check_folds(5, 4)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: 5 folds of 4 problems; give at least 2 folds, and at most ...
    """
    if not 2 <= num_folds <= num_problems:
        raise InputError(
            f"{num_folds} folds of {num_problems} problems; give at least 2 folds, and at most as "
            "many as there are problems with different questions"
        )


def _folds(table: CandidateTable, num_folds: int, seed: int) -> NDArray[np.int64]:
    """[P]: a fold for each problem; problems with equal questions are in one fold."""
    place = {own: i for i, own in enumerate(dict.fromkeys(table.question_hashes))}
    fold_of = np.random.default_rng(seed).permutation(len(place)) % num_folds
    return fold_of[[place[own] for own in table.question_hashes]]


@dataclass(frozen=True)
class _Fit:
    """Weights fitted on all problems, and for each fold the weights fitted on the other folds."""

    weights: dict[str, float]
    held_out: list[tuple[CandidateTable, dict[str, float]]]


def _fit(strategy: Strategy, table: CandidateTable, sums: dict[tuple[str, ...], _Fit]) -> _Fit:
    """Fit one strategy. `sums` caches the fits of sums, which a pick and a vote share.

    A fit with at most one free parameter holds nothing out, because it hardly overfits.
    """
    features = strategy.features
    if len(features) > 1 and not strategy.interpolated:
        if features not in sums:
            sums[features] = _cross_validate(features, table)
        return sums[features]
    if strategy.interpolated:
        weights = _fit_interpolation(strategy, table)
    else:
        # The unit of an external score is unknown, so its spread becomes the unit.
        is_known = features[0] in FEATURES
        weights = {features[0]: 1.0 if is_known else 1 / float(_spread(features, table)[0])}
    return _Fit(weights, [(table, weights)])


def _fit_interpolation(strategy: Strategy, table: CandidateTable) -> dict[str, float]:
    """The lambda and normalization with the best accuracy, averaged over neighboring lambdas."""
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for mean in (False, True):
        rows = [strategy.interpolation(float(lam), mean) for lam in LAMBDAS]
        smooth = _smoothed([strategy.accuracy(table, row).mean() for row in rows])
        at = int(smooth.argmax())
        if smooth[at] > best[0]:
            best = (float(smooth[at]), rows[at])
    return {name: round(value, 4) for name, value in best[1].items()}


def fit_sum(features: tuple[str, ...], table: CandidateTable) -> dict[str, float]:
    """Weights of a sum of features, fitted on pairs; the penalty is chosen by cross-validation."""
    return _cross_validate(features, table).weights


def _cross_validate(features: tuple[str, ...], table: CandidateTable) -> _Fit:
    """Fit with the penalty that best orders right and wrong candidates of held-out questions."""
    fold = _folds(table, _FOLDS, seed=0)
    splits = [
        (table.select(np.flatnonzero(fold != i)), table.select(np.flatnonzero(fold == i)))
        for i in range(_FOLDS)
    ]
    fitted = [_fit_pairs(features, most, _PENALTIES) for most, _ in splits]
    fits = {
        penalty: [(rest, weights) for (_, rest), weights in zip(splits, own, strict=True)]
        for penalty, own in zip(_PENALTIES, zip(*fitted, strict=True), strict=True)
    }
    best = min(
        _PENALTIES, key=lambda one: np.mean([_held_out_loss(features, *fit) for fit in fits[one]])
    )
    (weights,) = _fit_pairs(features, table, [best])
    return _Fit(weights, fits[best])


def _fit_pairs(
    features: tuple[str, ...], table: CandidateTable, penalties: Sequence[float]
) -> list[dict[str, float]]:
    """For each penalty, the weights of the features; zero weights without any pair."""
    table = table.select(np.flatnonzero(_has_pairs(table)))
    num_problems = len(table.problem_ids)
    if num_problems == 0:
        return [dict.fromkeys(features, 0.0) for _ in penalties]
    spread = _spread(features, table)
    values = np.clip(_relative(features, table) / spread, -_CLIP, _CLIP)
    pairs = _differences(values, table)
    fits = [_minimize(*pairs, penalty / num_problems) / spread for penalty in penalties]
    return [dict(zip(features, weights.tolist(), strict=True)) for weights in fits]


def _minimize(differences: FloatArray, shares: FloatArray, ridge: float) -> FloatArray:
    """The weights [F] with the least pairwise logistic loss plus `ridge` times their squares.

    It uses Newton's method with step halving, which takes a few products; an optimizer from torch
    or scipy would take seconds to import.
    """

    def loss(weights: FloatArray) -> float:
        return _pairwise_loss(differences @ weights, shares) + ridge * float(weights @ weights)

    weights = np.zeros(differences.shape[1])
    for _ in range(_NEWTON_STEPS):
        wrong = np.exp(-np.logaddexp(0, differences @ weights))  # probability of the wrong order
        gradient = 2 * ridge * weights - (shares * wrong) @ differences
        curvature = (differences.T * (shares * wrong * (1 - wrong))) @ differences
        step = np.linalg.solve(curvature + 2 * ridge * np.eye(len(weights)), gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > _CONVERGED:
            step /= 2
        weights -= step
        if np.abs(step).max() <= _CONVERGED:
            break
    return weights


def _held_out_loss(
    features: tuple[str, ...], table: CandidateTable, weights: dict[str, float]
) -> float:
    scores = _relative(features, table) @ np.array([weights[name] for name in features])
    return _pairwise_loss(*_differences(scores, table))


def _pairwise_loss(margins: FloatArray, shares: FloatArray) -> float:
    """The mean of -log sigmoid(right score - wrong score) over pairs, then over problems."""
    return float(shares @ np.logaddexp(0, -margins))


def _differences(values: FloatArray, table: CandidateTable) -> tuple[FloatArray, FloatArray]:
    """Right minus wrong value [M, ...] of the M pairs of values [P, N, ...], and shares [M].

    A pair's share is its weight in the mean over pairs, then over problems with pairs.
    """
    rights, wrongs = _right_and_wrong(table)
    num_wrong = wrongs.sum(axis=1)
    row, column = np.nonzero(rights)
    partners = num_wrong[row]  # of each right candidate
    # The place of its first partner, less that of its first pair.
    first = np.cumsum(num_wrong)[row] - np.cumsum(partners)
    partner = np.repeat(first, partners) + np.arange(partners.sum())
    differences = values[np.repeat(row, partners), np.repeat(column, partners)]
    differences -= values[wrongs][partner]
    num_pairs = rights.sum(axis=1) * num_wrong
    share = 1 / np.maximum(num_pairs * np.count_nonzero(num_pairs), 1)
    return differences, np.repeat(share, num_pairs)


def _right_and_wrong(table: CandidateTable) -> tuple[BoolArray, BoolArray]:
    """[P, N] each: which candidates are right, and which are wrong; see `_thinned`."""
    right, wrong = table.eligible & table.correct, table.eligible & ~table.correct
    return _thinned(right), _thinned(wrong)


def _thinned(chosen: BoolArray) -> BoolArray:
    """At most `_MOST` of the chosen candidates [P, N] of each problem, evenly spaced."""
    place = chosen.cumsum(axis=1)
    total = np.maximum(chosen.sum(axis=1, keepdims=True), _MOST)
    return np.asarray(chosen & (place * _MOST // total > (place - 1) * _MOST // total))


def _has_pairs(table: CandidateTable) -> BoolArray:
    """[P]: whether a problem has both right and wrong candidates."""
    right, wrong = _right_and_wrong(table)
    return np.asarray(right.any(axis=1) & wrong.any(axis=1))


def _relative(features: tuple[str, ...], table: CandidateTable) -> FloatArray:
    """Features minus their mean over the problem's eligible candidates, [P, N, F]; 0 for others."""
    stacked = np.stack([table.features[name] for name in features], axis=-1)
    eligible = table.eligible[..., None]
    mean = (stacked * eligible).sum(axis=1, keepdims=True) / eligible.sum(axis=1, keepdims=True)
    relative: FloatArray = (stacked - mean) * eligible
    return relative


def _spread(features: tuple[str, ...], table: CandidateTable) -> FloatArray:
    """[F]: the standard deviation of each feature within a problem; 1 if it is 0 everywhere.

    The spread of a constant is a billionth of its size, so that rounding does not count as spread.
    """
    largest = np.array([np.abs(table.features[name][table.eligible]).max() for name in features])
    size = np.where(largest > 0, largest, 1e9)  # before the squares, in which 1e-200 is lost
    relative = _relative(features, table)[table.eligible] / size
    spread: FloatArray = (np.sqrt((relative**2).mean(axis=0)) + 1e-9) * size
    return spread


def _inverse_temperature(
    strategy: Strategy, held_out: list[tuple[CandidateTable, dict[str, float]]]
) -> float:
    """1 / temperature, the factor on a vote's weights with the best (smoothed) accuracy."""
    rights = []
    for factor in _INVERSE_TEMPERATURES:
        scaled = [(rows, {k: v * factor for k, v in weights.items()}) for rows, weights in held_out]
        rights.append(np.concatenate([strategy.accuracy(*one) for one in scaled]).mean())
    return _INVERSE_TEMPERATURES[int(_smoothed(rights).argmax())]


def _smoothed(accuracies: Sequence[float]) -> FloatArray:
    """Average each accuracy with its neighbors, because a lone peak is likely to be chance."""
    return np.convolve(np.pad(accuracies, 1, mode="edge"), np.ones(3) / 3, mode="valid")
