"""Weights of strategies, fitted on labelled problems and frozen in a small YAML file.

An interpolation (the paper's lambda) is chosen on a grid by accuracy. A sum of more features is
fitted as a conditional logit: the weights that make exp(score) put the most of its mass on right
candidates, which is what both a pick and a weighted vote want. A vote also chooses, by accuracy,
how sharply it weighs. The file remembers which problems it was fitted on, so that it cannot be
tested on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from ledom.errors import InputError
from ledom.records import Problem, write_atomically
from ledom.reward.strategies import STRATEGIES, Pools, Strategy

__all__ = ["LAMBDAS", "TunedWeights", "interpolation", "tune"]

LAMBDAS = np.linspace(0, 1, 41)
"""The grid of lambda."""

_VOTE_SCALES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
_PENALTY = 1e-3  # of the squared weights, in units of each feature's spread


@dataclass(frozen=True)
class TunedWeights:
    """Weights by strategy and feature, and where they come from."""

    weights: dict[str, dict[str, float]]
    num_problems: int
    num_candidates: int
    problem_hashes: frozenset[str]

    def save(self, path: str | Path) -> None:
        """Write the YAML file."""
        tree = {
            "ledom": version("ledom"),
            "num_problems": self.num_problems,
            "num_candidates": self.num_candidates,
            "weights": self.weights,
            "problems": " ".join(sorted(self.problem_hashes)),
        }
        with write_atomically(path) as out:
            yaml.safe_dump(tree, out, sort_keys=False, width=100)

    @classmethod
    def load(cls, path: str | Path) -> TunedWeights:
        """Read the YAML file; raises `InputError` when it is not one of ours."""
        try:
            tree: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read: {error}", path=path) from None
        except yaml.YAMLError as error:
            raise InputError(f"not YAML: {' '.join(str(error).split())}", path=path) from None
        try:
            weights = {
                str(name): {str(key): _weight(value) for key, value in row.items()}
                for name, row in tree["weights"].items()
            }
            loaded = cls(
                weights,
                int(tree["num_problems"]),
                int(tree["num_candidates"]),
                frozenset(str(tree["problems"]).split()),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"not a weights file ({error}); make one with: ledom tune", path=path
            ) from None
        unknown = [name for name in weights if name not in STRATEGIES]
        if unknown:
            raise InputError(
                f"unknown strategy {unknown[0]!r}; known: {', '.join(STRATEGIES)}", path=path
            )
        return loaded

    def refuse_overlap(self, problems: Iterable[Problem]) -> None:
        """Raise `InputError` when weights were fitted on one of these problems."""
        for problem in problems:
            if question_hash(problem.question) in self.problem_hashes:
                raise InputError(
                    f"problem {problem.id!r} is one of those that the weights were tuned on; "
                    "accuracy on it would flatter: leave it out, or use other weights"
                )


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"a weight is {value!r}, expected a number")
    return float(value)


def question_hash(question: str) -> str:
    """A short fingerprint of a question's text."""
    return hashlib.sha256(question.encode()).hexdigest()[:12]


def tune(pools: Pools, problems: Iterable[Problem]) -> TunedWeights:
    """Fit every strategy that has weights and whose scores are there.

    Raises `InputError` when no problem has both right and wrong candidates.
    """
    wrong = pools.mask & ~pools.correct
    mixed = np.flatnonzero((pools.correct & pools.mask).any(axis=1) & wrong.any(axis=1))
    if len(mixed) == 0:
        raise InputError("no problem has both right and wrong candidates; there is nothing to tune")
    weights: dict[str, dict[str, float]] = {}
    for name, strategy in STRATEGIES.items():
        if not strategy.features or not strategy.available(pools):
            continue
        if strategy.interpolated:
            fitted = _fit_interpolation(strategy, pools)
        elif len(strategy.features) == 1:
            fitted = {strategy.features[0]: 1.0}
        else:
            fitted = _fit_logit(strategy, pools.select(mixed))
        if strategy.kind == "vote":
            fitted = _scale_vote(strategy, pools, fitted)
        weights[name] = fitted
    return TunedWeights(
        weights,
        len(pools.problem_ids),
        int(pools.mask.sum(axis=1).max()),
        frozenset(question_hash(problem.question) for problem in problems),
    )


def interpolation(strategy: Strategy, lam: float, mean: bool) -> dict[str, float]:
    """The weights (1 - lambda) and lambda on a strategy's two terms, as sums or as means."""
    first, second = strategy.features[2:] if mean else strategy.features[:2]
    return {first: 1 - lam, second: lam}


def _fit_interpolation(strategy: Strategy, pools: Pools) -> dict[str, float]:
    """The best lambda and normalisation by accuracy; a plateau's middle, for stability."""
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for mean in (False, True):
        rows = [interpolation(strategy, float(lam), mean) for lam in LAMBDAS]
        accuracies = np.array([strategy.accuracy(pools, row).mean() for row in rows])
        # Neighbours share almost all choices; their mean is a steadier guide than a single peak.
        smooth = np.convolve(np.pad(accuracies, 1, mode="edge"), np.ones(3) / 3, mode="valid")
        at = int(smooth.argmax())
        if smooth[at] > best[0]:
            best = (float(smooth[at]), rows[at])
    return {name: round(value, 4) for name, value in best[1].items()}


def _fit_logit(strategy: Strategy, pools: Pools) -> dict[str, float]:
    """Maximise the mean over problems of log(sum over right of exp(score) / sum over all)."""
    stacked = np.stack([pools.features[name] for name in strategy.features], axis=-1)
    centred = stacked - _masked_mean(stacked, pools.mask)
    spread = np.sqrt((centred[pools.mask] ** 2).mean(axis=0)) + 1e-9
    x = torch.from_numpy(centred / spread)
    mask = torch.from_numpy(pools.mask)
    right = mask & torch.from_numpy(pools.correct)
    weights = torch.zeros(len(spread), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = x @ weights
        total = scores.masked_fill(~mask, -torch.inf).logsumexp(1)
        good = scores.masked_fill(~right, -torch.inf).logsumexp(1)
        value = (total - good).mean() + _PENALTY * (weights**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    fitted = weights.detach().numpy() / spread
    return {
        name: float(f"{value:.5g}") for name, value in zip(strategy.features, fitted, strict=True)
    }


def _masked_mean(stacked: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    counts = mask.sum(axis=1)[:, None, None]
    mean: NDArray[np.float64] = (stacked * mask[..., None]).sum(axis=1, keepdims=True) / counts
    return mean


def _scale_vote(strategy: Strategy, pools: Pools, weights: dict[str, float]) -> dict[str, float]:
    """How sharply a vote weighs: the scale of its weights, by accuracy."""
    scaled = [
        {name: float(f"{value * scale:.5g}") for name, value in weights.items()}
        for scale in _VOTE_SCALES
    ]
    accuracies = [strategy.accuracy(pools, row).mean() for row in scaled]
    return scaled[int(np.argmax(accuracies))]
