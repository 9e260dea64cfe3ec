"""Weights of strategies, fitted on labeled problems and frozen in a small YAML file.

An interpolation (the paper's lambda) is chosen on a grid by accuracy. A sum of more features is
fitted by logistic regression on pairs, a right and a wrong candidate of one problem, its penalty
chosen by cross-validation over problems. A vote's temperature, which divides its score, is chosen
by its accuracy on problems that the weights were not fitted on. The file remembers which problems
it was fitted on, so that it cannot be tested on them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import FiniteFloat, NonNegativeInt

from ledom.core.errors import InputError
from ledom.core.files import write_atomically
from ledom.core.reading import as_type
from ledom.core.records import Problem
from ledom.core.strict_yaml import read_yaml
from ledom.rerank.candidate_table import FEATURES, BoolArray, CandidateTable
from ledom.rerank.external_scores import check_names
from ledom.rerank.strategies import Strategy, Vote, strategies

__all__ = [
    "LAMBDAS",
    "Folds",
    "TunedWeights",
    "check_folds",
    "cross_fit",
    "fit_sum",
    "interpolation",
    "tune",
    "tune_labeled",
]

LAMBDAS = np.linspace(0, 1, 41)
"""The grid of lambda."""

_INVERSE_TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0)
_PENALTIES = (0.3, 3.0, 30.0)
"""Of the squared weights, in units of each feature's spread, against the sum of the losses: the
more problems there are, the less a penalty shrinks the weights."""
_FOLDS = 5
_FORMAT = 2  # of the weights file
_HASH_LENGTH = 12
_HASH = re.compile(f"[0-9a-f]{{{_HASH_LENGTH}}}")
_CLIP = 3.0  # spreads from a problem's mean beyond which a candidate is hopeless, however far


@dataclass(frozen=True)
class TunedWeights:
    """Weights by strategy and feature, and where they come from.

    Those of a vote are divided by its temperature already.
    """

    weights: dict[str, dict[str, float]]
    num_problems: int
    num_candidates: int
    problem_hashes: frozenset[str]
    external_scores: tuple[str, ...] = ()
    """The external scores that they weigh: candidates without them cannot be used."""

    def save(self, path: str | Path) -> None:
        """Write the YAML file."""
        tree = {
            "format": _FORMAT,
            "ledom": version("ledom"),
            "num_problems": self.num_problems,
            "num_candidates": self.num_candidates,
            "external_scores": list(self.external_scores),
            "weights": self.weights,
            "problems": " ".join(sorted(self.problem_hashes)),
        }
        with write_atomically(path) as out:
            yaml.safe_dump(tree, out, sort_keys=False, width=100)

    @classmethod
    def load(cls, path: str | Path) -> TunedWeights:
        """Read the YAML file; raises `InputError` with the file and the key for a bad one."""
        tree = read_yaml(path)
        if tree.get("format") != _FORMAT:
            raise InputError(
                f"a weights file of format {tree.get('format', 1)!r:.40}, expected {_FORMAT}; make "
                "it again with: ledom tune",
                path=path,
            )
        file = as_type(tree, _WeightsFile, path)
        hashes = file.problems.split()
        try:
            check_names(file.external_scores)
            _check_rows(file.weights, strategies(file.external_scores))
            bad = next((text for text in hashes if not _HASH.fullmatch(text)), None)
            if bad is not None:
                raise InputError(
                    f"key problems: {bad!r:.40} is not the hash of a question, which has "
                    f"{_HASH_LENGTH} hexadecimal digits"
                )
        except InputError as error:
            raise InputError(f"{error}; make a weights file with: ledom tune", path=path) from None
        return cls(
            {
                name: {key: float(value) for key, value in row.items()}
                for name, row in file.weights.items()
            },
            file.num_problems,
            file.num_candidates,
            frozenset(hashes),
            tuple(file.external_scores),
        )

    def refuse_overlap(self, problems: Iterable[Problem]) -> None:
        """Raise `InputError` when weights were fitted on one of these problems."""
        for problem in problems:
            if question_hash(problem.question) in self.problem_hashes:
                raise InputError(
                    f"problem {problem.id!r} is one of those that the weights were tuned on; "
                    "its accuracy would look too good: leave it out, or use other weights"
                )


@dataclass(frozen=True)
class _WeightsFile:
    """The keys of a weights file."""

    num_problems: NonNegativeInt
    num_candidates: NonNegativeInt
    problems: str
    weights: dict[str, dict[str, FiniteFloat]]
    external_scores: list[str] = field(default_factory=list)


def _check_rows(weights: Mapping[str, Mapping[str, float]], known: Mapping[str, Strategy]) -> None:
    """Raise `InputError` for weights that no strategy uses, or a strategy without its weights."""
    for name, row in weights.items():
        if name not in known:
            raise InputError(f"unknown strategy {name!r}; known: {', '.join(known)}")
        features = known[name].features
        unknown = [feature for feature in row if feature not in features]
        if unknown:
            uses = f"it uses: {', '.join(features)}" if features else "it has no weights"
            raise InputError(f"strategy {name!r}: unknown feature {unknown[0]!r:.60}; {uses}")
        if features and not row:
            raise InputError(f"strategy {name!r} has no weights; it uses: {', '.join(features)}")
        sums, means = ([f for f in part if f in row] for part in (features[:2], features[2:]))
        if known[name].interpolated and sums and means:
            raise InputError(
                f"strategy {name!r} mixes sums and means per token ({sums[0]}, {means[0]}); give "
                "two of one kind"
            )


def question_hash(question: str) -> str:
    """A short fingerprint of a question's text.

    >>> question_hash("2 + 2?") == question_hash("2 + 2 ?"), len(question_hash("2 + 2?"))
    (False, 12)
    """
    return hashlib.sha256(question.encode()).hexdigest()[:_HASH_LENGTH]


def tune(table: CandidateTable, problems: Iterable[Problem]) -> TunedWeights:
    """Fit every strategy that has weights and whose features are in the table.

    Raises `InputError` when no problem has both right and wrong candidates.
    """
    wrong = table.mask & ~table.correct
    mixed = np.flatnonzero((table.correct & table.mask).any(axis=1) & wrong.any(axis=1))
    if len(mixed) == 0:
        raise InputError("no problem has both right and wrong candidates; there is nothing to tune")
    weights: dict[str, dict[str, float]] = {}
    fits: dict[tuple[str, ...], _Fit] = {}
    for name, strategy in strategies(table.external_scores).items():
        features = strategy.features
        if not features or not strategy.available(table):
            continue
        if strategy.interpolated:
            held_out = [(table, _fit_interpolation(strategy, table))]
            fitted = held_out[0][1]
        elif len(features) == 1:
            fitted = {features[0]: 1.0}
            if features[0] not in FEATURES:  # whose unit nobody knows
                fitted = {features[0]: 1 / _spread(features, table)[0]}
            held_out = [(table, fitted)]
        else:
            if features not in fits:
                fits[features] = _cross_validate(features, table)
            fitted, held_out = fits[features].weights, fits[features].held_out
        if isinstance(strategy, Vote):
            sharpness = _inverse_temperature(strategy, held_out)
            fitted = {name: value * sharpness for name, value in fitted.items()}
        weights[name] = {name: float(f"{value:.5g}") for name, value in fitted.items()}
    return TunedWeights(
        weights,
        len(table.problem_ids),
        int(table.mask.sum(axis=1).max()),
        frozenset(question_hash(problem.question) for problem in problems),
        table.external_scores,
    )


def tune_labeled(
    table: CandidateTable, problems: Sequence[Problem], labeled: BoolArray
) -> TunedWeights:
    """`tune` on the problems that are `labeled` [P]: the others say nothing of what is right."""
    rows = np.flatnonzero(labeled)
    return tune(table.select(rows), [problems[int(row)] for row in rows])


Folds = Sequence[tuple[NDArray[np.int64], TunedWeights]]
"""Rows of `CandidateTable`, and the weights that were fitted on the other rows."""


def cross_fit(
    table: CandidateTable,
    problems: Sequence[Problem],
    num_folds: int = _FOLDS,
    labeled: BoolArray | None = None,
) -> Folds:
    """Weights for each fold of the problems, fitted on the others: every problem is a test once.

    Only `labeled` [P] problems are fitted on (None: all are labeled). Raises `InputError` for fewer
    than two folds, more folds than problems, or a fold without which there is nothing to tune on.
    """
    check_folds(num_folds, len(problems))
    known = np.ones(len(problems), bool) if labeled is None else labeled
    fold = np.random.default_rng(1).permutation(len(problems)) % num_folds
    folds = []
    for i in range(num_folds):
        rest = np.flatnonzero(known & (fold != i))
        folds.append(
            (np.flatnonzero(fold == i), tune(table.select(rest), [problems[int(j)] for j in rest]))
        )
    return folds


def check_folds(num_folds: int, num_problems: int) -> None:
    """Raise `InputError` where each fold would not have a problem, and others to learn from.

    >>> check_folds(5, 4)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ledom.core.errors.InputError: 5 folds of 4 problems; give at least 2 folds, and at most ...
    """
    if not 2 <= num_folds <= num_problems:
        raise InputError(
            f"{num_folds} folds of {num_problems} problems; give at least 2 folds, and at most as "
            "many as there are problems"
        )


def interpolation(strategy: Strategy, lam: float, mean: bool) -> dict[str, float]:
    """The weights (1 - lambda) and lambda on a strategy's two terms, as sums or as means.

    >>> from ledom.rerank.strategies import STRATEGIES
    >>> interpolation(STRATEGIES["reverse_reward"], 0.25, mean=False)
    {'forward': 0.75, 'reverse': 0.25}
    """
    first, second = strategy.features[2:] if mean else strategy.features[:2]
    return {first: 1 - lam, second: lam}


def _fit_interpolation(strategy: Strategy, table: CandidateTable) -> dict[str, float]:
    """The best lambda and normalization by accuracy; a plateau's middle, for stability."""
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for mean in (False, True):
        rows = [interpolation(strategy, float(lam), mean) for lam in LAMBDAS]
        accuracies = np.array([strategy.accuracy(table, row).mean() for row in rows])
        # Neighbours share almost all choices; their mean is a steadier guide than a single peak.
        smooth = np.convolve(np.pad(accuracies, 1, mode="edge"), np.ones(3) / 3, mode="valid")
        at = int(smooth.argmax())
        if smooth[at] > best[0]:
            best = (float(smooth[at]), rows[at])
    return {name: round(value, 4) for name, value in best[1].items()}


def fit_sum(features: tuple[str, ...], table: CandidateTable) -> dict[str, float]:
    """Weights of a sum of features, fitted pairwise; the penalty is chosen by cross-validation."""
    return _cross_validate(features, table).weights


@dataclass(frozen=True)
class _Fit:
    """Weights fitted on all problems, and each fold with those fitted on the other folds."""

    weights: dict[str, float]
    held_out: list[tuple[CandidateTable, dict[str, float]]]


def _cross_validate(features: tuple[str, ...], table: CandidateTable) -> _Fit:
    """Fit with the penalty that orders right and wrong candidates of unseen problems best."""
    fold = np.random.default_rng(0).permutation(len(table.problem_ids)) % _FOLDS
    splits = [
        (table.select(np.flatnonzero(fold != i)), table.select(np.flatnonzero(fold == i)))
        for i in range(_FOLDS)
    ]
    best: tuple[float, float, list[tuple[CandidateTable, dict[str, float]]]] = (np.inf, 0.0, [])
    for penalty in _PENALTIES:
        fitted = [(rest, _fit_pairs(features, most, penalty)) for most, rest in splits]
        loss = float(np.mean([_held_out_loss(features, *one) for one in fitted]))
        if loss < best[0]:
            best = (loss, penalty, fitted)
    return _Fit(_fit_pairs(features, table, best[1]), best[2])


def _fit_pairs(
    features: tuple[str, ...], table: CandidateTable, penalty: float
) -> dict[str, float]:
    """Minimize the pairwise logistic loss plus the penalty; zeros where nothing can be learned."""
    rows = np.flatnonzero(_pairs(table).any(axis=(1, 2)))
    if len(rows) == 0:
        return dict.fromkeys(features, 0.0)
    table = table.select(rows)
    relative = _relative(features, table)
    spread = _spread(features, table)
    x = torch.from_numpy(np.clip(relative / spread, -_CLIP, _CLIP))
    pairs = torch.from_numpy(_pairs(table))
    weights = torch.zeros(len(features), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = _pairwise_loss(x @ weights, pairs) + penalty / len(rows) * (weights**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return dict(zip(features, (weights.detach().numpy() / spread).tolist(), strict=True))


def _held_out_loss(
    features: tuple[str, ...], table: CandidateTable, weights: dict[str, float]
) -> float:
    table = table.select(np.flatnonzero(_pairs(table).any(axis=(1, 2))))
    scores = _relative(features, table) @ np.array([weights[name] for name in features])
    pairs = torch.from_numpy(_pairs(table))
    return float(_pairwise_loss(torch.from_numpy(scores), pairs)) if len(pairs) else 0.0


def _pairwise_loss(scores: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(score of the right one - score of the wrong one): each problem counts once."""
    losses = torch.nn.functional.softplus(scores[:, None, :] - scores[:, :, None]) * pairs
    return (losses.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))).mean()


def _pairs(table: CandidateTable) -> NDArray[np.bool_]:
    """[P, N, N]: a right candidate in the row, a wrong one in the column."""
    right = table.mask & table.correct
    wrong = table.mask & ~table.correct
    pairs: NDArray[np.bool_] = right[:, :, None] & wrong[:, None, :]
    return pairs


def _relative(features: tuple[str, ...], table: CandidateTable) -> NDArray[np.float64]:
    """Features less their mean over the problem's candidates, [P, N, F]; 0 where there is none."""
    stacked = np.stack([table.features[name] for name in features], axis=-1)
    counts = table.mask.sum(axis=1)[:, None, None]
    mean = (stacked * table.mask[..., None]).sum(axis=1, keepdims=True) / counts
    relative: NDArray[np.float64] = (stacked - mean) * table.mask[..., None]
    return relative


def _spread(features: tuple[str, ...], table: CandidateTable) -> NDArray[np.float64]:
    """[F]: the standard deviation of each feature among the candidates of a problem."""
    relative = _relative(features, table)[table.mask]
    spread: NDArray[np.float64] = np.sqrt((relative**2).mean(axis=0)) + 1e-9
    return spread


def _inverse_temperature(
    strategy: Strategy, held_out: list[tuple[CandidateTable, dict[str, float]]]
) -> float:
    """1 / temperature: the factor on a vote's weights, by accuracy; neighbors count too."""
    rights = [
        np.concatenate(
            [
                strategy.accuracy(table, {name: value * factor for name, value in weights.items()})
                for table, weights in held_out
            ]
        ).mean()
        for factor in _INVERSE_TEMPERATURES
    ]
    smooth = np.convolve(np.pad(rights, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    return _INVERSE_TEMPERATURES[int(smooth.argmax())]
