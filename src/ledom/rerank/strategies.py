"""Ways to choose among the candidates of a problem, all computed from the same features.

A strategy turns `CandidateTable` into the probability that its choice is right, problem by problem.
`STRATEGIES` is the one list of them, a plain dict; `strategies` adds those of external
scores. No model is loaded here.

Shapes: P problems, N candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ledom.rerank.candidate_table import CandidateTable, FloatArray
from ledom.rerank.early_stop import needed_candidates

__all__ = ["STRATEGIES", "Strategy", "Weights", "strategies", "vote_shares"]

Weights = Mapping[str, float] | None


@dataclass(frozen=True)
class Strategy:
    """A way to choose: what it does, and the features that it may weigh."""

    kind: str
    """`greedy`, `baseline`, `pick` (one candidate), `vote` (one answer), `early` (a vote that stops
    when it is decided) or `bound`."""
    description: str
    features: tuple[str, ...] = ()
    """The features of its score; their weights are tuned, or 1 for a single one."""
    interpolated: bool = False
    """Two terms weighed (1 - lambda) and lambda, both as sums or both as means a token; the
    features are then (first, second, first's mean, second's mean)."""

    def available(self, table: CandidateTable) -> bool:
        """Whether the scores that it needs are there."""
        return set(self.features) <= set(table.features)

    def score(self, table: CandidateTable, weights: Weights) -> FloatArray:
        """The weighted sum of its features, [P, N]; -inf where there is no candidate."""
        total = np.zeros(table.mask.shape)
        for name in self.features:
            weight = 1.0 if weights is None else weights.get(name, 0.0)
            total += weight * table.features[name]
        return np.where(table.mask, total, -np.inf)

    def accuracy(self, table: CandidateTable, weights: Weights) -> FloatArray:
        """The probability that its choice is right, [P]; ties are split evenly."""
        return _ACCURACY[self.kind](self, table, weights)


def _pick(strategy: Strategy, table: CandidateTable, weights: Weights) -> FloatArray:
    score = strategy.score(table, weights)
    best = (score == score.max(axis=1, keepdims=True)) & table.mask
    right: FloatArray = (best & table.correct).sum(axis=1) / best.sum(axis=1)
    return right


def vote_shares(strategy: Strategy, table: CandidateTable, weights: Weights) -> FloatArray:
    """Each candidate's answer's share of the votes, [P, N]; 0 for those without an answer.

    A candidate votes with exp(score), relative to the best; without features with 1. The weights of
    a vote are those of its score divided by a temperature: at a high one all votes count alike, at
    a low one the best candidate decides.
    """
    if strategy.features:
        score = strategy.score(table, weights)
        ballots = np.exp(score - score.max(axis=1, keepdims=True))
    else:
        ballots = np.ones(table.mask.shape)
    voting = table.mask & (table.answers >= 0)
    ballots = np.where(voting, ballots, 0.0)
    same = (table.answers[:, :, None] == table.answers[:, None, :]) & voting[:, None, :]
    totals: FloatArray = np.einsum("pnm,pm->pn", same, ballots)
    return np.where(voting, totals / np.maximum(ballots.sum(axis=1, keepdims=True), 1e-300), 0.0)


def _vote(strategy: Strategy, table: CandidateTable, weights: Weights) -> FloatArray:
    shares = vote_shares(strategy, table, weights)
    best = (shares >= shares.max(axis=1, keepdims=True) * (1 - 1e-9)) & (table.answers >= 0)
    # Ties are between answers, not candidates: each answer counts once, by its first candidate.
    places = np.arange(table.mask.shape[1])
    earlier = (places[None, :] < places[:, None])[None] & (
        table.answers[:, :, None] == table.answers[:, None, :]
    )
    first = ~earlier.any(axis=2)
    # An answer is right if any of its candidates is: labels that come with a file may disagree.
    same = table.answers[:, :, None] == table.answers[:, None, :]
    right = (same & table.correct[:, None, :]).any(axis=2)
    chosen = best & first
    return np.where(
        chosen.any(axis=1), (chosen & right).sum(axis=1) / np.maximum(chosen.sum(axis=1), 1), 0.0
    )


def _early(strategy: Strategy, table: CandidateTable, weights: Weights) -> FloatArray:
    drawn = np.arange(table.mask.shape[1]) < needed_candidates(table)[:, None]
    return _vote(strategy, replace(table, mask=table.mask & drawn), weights)


def _baseline(strategy: Strategy, table: CandidateTable, weights: Weights) -> FloatArray:
    share: FloatArray = (table.correct & table.mask).sum(axis=1) / table.mask.sum(axis=1)
    return share


def _bound(strategy: Strategy, table: CandidateTable, weights: Weights) -> FloatArray:
    return (table.correct & table.mask).any(axis=1).astype(float)


def _greedy(strategy: Strategy, table: CandidateTable, weights: Weights) -> FloatArray:
    return table.greedy


_ACCURACY: dict[str, Callable[[Strategy, CandidateTable, Weights], FloatArray]] = {
    "greedy": _greedy,
    "baseline": _baseline,
    "pick": _pick,
    "vote": _vote,
    "early": _early,
    "bound": _bound,
}

_FORWARD = ("forward", "forward_mean", "forward_numbers", "forward_min_digit_logprob")
_TWO_TERMS = ("forward", "reverse", "forward_mean", "reverse_mean")
_PREMISE = ("forward", "forward_mean", "reverse", "question_numbers", "question_min_digit_logprob")
_CHANNEL = ("forward", "reverse", "prior")
_REVERSE = ("reverse", "reverse_mean", "question_numbers", "question_min_digit_logprob")
_PRIOR = ("prior", "prior_mean", "prior_numbers", "prior_min_digit_logprob")
_JOINT = (*_REVERSE, *_PRIOR)
_ALL = (*_FORWARD, *_JOINT)

STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy("greedy", "the forward model's most likely token each time"),
    "random": Strategy("baseline", "a candidate at random: the expectation"),
    "forward": Strategy("pick", "the most likely candidate", ("forward",)),
    "forward mean": Strategy("pick", "the most likely a token", ("forward_mean",)),
    "forward tuned": Strategy("pick", "the forward model's scores, weighed", _FORWARD),
    "reverse only": Strategy("pick", "the candidate that best explains the question", ("reverse",)),
    "reverse tuned": Strategy("pick", "the reverse model's scores, weighed", _JOINT),
    "reverse reward": Strategy("pick", "the paper's two terms", _TWO_TERMS, interpolated=True),
    "question numbers reward": Strategy("pick", "the question's numbers weighed apart", _PREMISE),
    "noisy channel": Strategy("pick", "log P(y|x), log P(x|y) and log P(y), weighed", _CHANNEL),
    "all terms": Strategy("pick", "every score, weighed", _ALL),
    "majority": Strategy("vote", "the most frequent answer"),
    "majority, stopped": Strategy("early", "drawing stops when the lead cannot change"),
    "vote, forward": Strategy("vote", "by exp(log P(y|x) / temperature)", ("forward",)),
    "vote, forward mean": Strategy("vote", "the same, a token", ("forward_mean",)),
    "vote, forward tuned": Strategy("vote", "by the forward scores / temperature", _FORWARD),
    "vote, reverse only": Strategy("vote", "by exp(log P(x|y) / temperature)", ("reverse",)),
    "vote, reverse tuned": Strategy("vote", "by the reverse scores / temperature", _JOINT),
    "vote, reverse reward": Strategy("vote", "by the two terms / temperature", _TWO_TERMS, True),
    "vote, question numbers reward": Strategy(
        "vote", "with the question's numbers apart", _PREMISE
    ),
    "vote, noisy channel": Strategy("vote", "by the three terms / temperature", _CHANNEL),
    "vote, all terms": Strategy("vote", "by every score / temperature", _ALL),
    "oracle": Strategy("bound", "right if any candidate is"),
}
"""Every strategy by name, but those of external scores. `forward tuned` is `all terms` without the
reverse model's scores. The noisy channel is that of Yee, Dauphin and Auli, Simple and Effective Noisy
Channel Modeling for Neural Machine Translation (2019), with P(y) from the reverse model."""


def strategies(external_scores: Sequence[str] = ()) -> dict[str, Strategy]:
    """`STRATEGIES` and those that use these external scores.

    Each external score alone, by its own name and as a vote; and all of them together with the
    scores of both models, or of the reverse model where there is no forward one.
    """
    found = dict(STRATEGIES)
    for name in external_scores:
        found[name] = Strategy("pick", "an external score", (name,))
        found[f"vote, {name}"] = Strategy("vote", "by exp(score / temperature)", (name,))
    for name, features in {"all": _ALL, "reverse": _JOINT}.items() if external_scores else ():
        joint = (*features, *external_scores)
        scores = "every score" if name == "all" else "the reverse scores"
        what = f"{scores} and {', '.join(external_scores)}"
        found[f"{name} + external scores"] = Strategy("pick", f"{what}, weighed", joint)
        found[f"vote, {name} + external scores"] = Strategy(
            "vote", f"by {what} / temperature", joint
        )
    found["oracle"] = found.pop("oracle")  # the bound stays last
    return found
