"""Strategies: ways to choose among the candidates of a problem, all from the same features.

`STRATEGIES` lists all of them; `strategies` adds those for external scores. This module loads no
model. Shapes: P problems, N candidates.
"""

from __future__ import annotations

import heapq
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.core.records import Candidate
from ledom.report.intervals import BoolArray, FloatArray
from ledom.rerank.candidate_table import FEATURES, TOKEN_FEATURES, CandidateTable
from ledom.rerank.candidates import EXTERNAL_LABELS

__all__ = [
    "STRATEGIES",
    "EarlyVote",
    "Greedy",
    "Pick",
    "Random",
    "Strategy",
    "Vote",
    "Weights",
    "check_score_names",
    "is_decided",
    "leading",
    "needed_candidates",
    "strategies",
]

Weights = Mapping[str, float] | Mapping[str, FloatArray] | None
"""The weight of each feature: a number, or an array [P, 1] with one for each problem."""

_SCORE_NAME = re.compile(r"\w[\w .-]*")


@dataclass(frozen=True)
class Strategy(ABC):
    """A way to choose among candidates, and the features that it uses.

    >>> from ledom.core.records import Candidate, Problem
    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("4454")]
    >>> table = build_candidate_table([Problem(id="p", question="2 + 2?", answer="4")], drawn, [])
    >>> STRATEGIES["random"].accuracy(table, None), STRATEGIES["majority"].accuracy(table, None)
    (array([0.75]), array([1.]))
    >>> STRATEGIES["majority"].shares(table, None)
    array([[0.75, 0.75, 0.25, 0.75]])
    """

    kind: ClassVar[str]
    """Its group in a report: `baseline`, `pick`, `vote` or `bound`."""
    label: str
    """Its name in reports; files and code use its id, the key in `STRATEGIES`."""
    description: str
    features: tuple[str, ...] = ()
    """The features of its score; a single feature has the weight 1 unless it is tuned."""
    interpolated: bool = False
    """Whether it has two terms with the weights (1 - lambda) and lambda, both sums or both means
    per token. If so, its features are (first, second, mean of first, mean of second)."""

    def interpolation(self, lam: float, mean: bool) -> dict[str, float]:
        """The weights (1 - lambda) and lambda of an interpolation's terms, which are sums or means.

        >>> STRATEGIES["reverse_reward"].interpolation(0.25, mean=False)
        {'forward': 0.75, 'reverse': 0.25}
        """
        first, second = self.features[2:] if mean else self.features[:2]
        return {first: 1 - lam, second: lam}

    @abstractmethod
    def accuracy(self, table: CandidateTable, weights: Weights) -> FloatArray:
        """[P]: the probability that its choice is right; ties are split evenly."""

    def available(self, table: CandidateTable) -> bool:
        """Whether the table has every feature of its score."""
        return set(self.features) <= set(table.features)

    def score(self, table: CandidateTable, weights: Weights) -> FloatArray:
        """[P, N]: the weighted sum of its features; -inf where no candidate is eligible."""
        return np.where(table.eligible, self.weigh(table.features, weights), -np.inf)

    def weigh(self, features: Mapping[str, Any], weights: Weights) -> Any:
        """The weighted sum of its features, numbers or arrays.

        >>> pick = Pick("both", "by two terms", ("forward", "reverse"))
        >>> pick.weigh({"forward": -2.0, "reverse": -4.0}, {"forward": 0.75, "reverse": 0.25})
        -2.5
        """
        return sum(
            (1.0 if weights is None else weights.get(name, 0.0)) * features[name]
            for name in self.features
        )

    def shares(self, table: CandidateTable, weights: Weights) -> FloatArray:
        """[P, N]: the share of the votes for each candidate's answer; 0 without an answer.

        A candidate's vote counts exp(score), or 1 if the strategy has no features. The weights of a
        vote are those of a score divided by a temperature: at a high temperature all votes count
        the same, at a low one the best candidate decides.
        """
        voting = table.mask & (table.answers >= 0)
        score = np.where(voting, self.score(table, weights), -np.inf)
        best = score.max(axis=1, keepdims=True)  # -inf where no candidate has an answer
        ballots = np.exp(score - np.maximum(best, np.finfo(float).min))
        groups = _answer_groups(table)
        totals = np.bincount(groups.ravel(), ballots.ravel()).astype(float)[groups]
        all_ballots = np.maximum(ballots.sum(axis=1, keepdims=True), 1e-300)
        return np.where(voting, totals / all_ballots, 0.0)


class Greedy(Strategy):
    """The greedy candidate, which is not among the others in the table."""

    kind = "baseline"

    def accuracy(self, table: CandidateTable, weights: Weights) -> FloatArray:
        """See `Strategy.accuracy`; NaN for a problem without a greedy candidate."""
        return table.greedy


class Random(Strategy):
    """A candidate at random, of those that are always drawn."""

    kind = "baseline"

    def accuracy(self, table: CandidateTable, weights: Weights) -> FloatArray:
        drawn = table.always_drawn
        return np.asarray((table.correct & drawn).sum(axis=1) / drawn.sum(axis=1))


class Pick(Strategy):
    """The candidate with the highest score."""

    kind = "pick"

    def accuracy(self, table: CandidateTable, weights: Weights) -> FloatArray:
        score = self.score(table, weights)
        best = (score == score.max(axis=1, keepdims=True)) & table.mask
        return np.asarray((best & table.correct).sum(axis=1) / best.sum(axis=1))


class Vote(Strategy):
    """The answer with the largest share of the votes; see `Strategy.shares`."""

    kind = "vote"

    def accuracy(self, table: CandidateTable, weights: Weights) -> FloatArray:
        """Where no candidate has an answer, the best candidate is chosen. Labels from a file may
        disagree about an answer: it is then right to the share of its candidates with the label
        right. So votes for the same answer are equally right, whichever text they prefer."""
        drawn = replace(table, mask=self.drawn(table))
        groups = _answer_groups(table)
        has_answer = drawn.mask & (table.answers >= 0)
        score = self.score(drawn, weights)
        best = np.where(
            has_answer.any(axis=1, keepdims=True),
            has_answer & leading(self.shares(drawn, weights)),
            drawn.mask & (score == score.max(axis=1, keepdims=True)),
        )
        labels = _share(groups, table.correct, table.mask)
        right = np.where(table.answers >= 0, labels, table.correct)
        # A tie is between answers, not candidates.
        parts = best / np.maximum(np.bincount(groups.ravel(), best.ravel())[groups], 1)
        return np.asarray((parts * right).sum(axis=1) / parts.sum(axis=1))

    def drawn(self, table: CandidateTable) -> BoolArray:
        """[P, N]: the candidates that vote."""
        return table.mask


class EarlyVote(Vote):
    """A vote for which no more candidates are drawn once it is decided."""

    def drawn(self, table: CandidateTable) -> BoolArray:
        places = np.arange(table.mask.shape[1])
        return np.asarray(table.mask & (places < needed_candidates(table)[:, None]))


class Bound(Strategy):
    """Right if any candidate is right: no choice can be better."""

    kind = "bound"

    def accuracy(self, table: CandidateTable, weights: Weights) -> FloatArray:
        return (table.correct & table.mask).any(axis=1).astype(float)


def leading(shares: FloatArray) -> BoolArray:
    """[P, N]: whether each share is the largest in its problem, up to rounding.

    >>> leading(np.array([[0.5, 0.25, 0.5]]))
    array([[ True, False,  True]])
    """
    return np.asarray(shares >= shares.max(axis=1, keepdims=True) * (1 - 1e-9))


def is_decided(votes: Iterable[int], remaining: int) -> bool:
    """Whether `remaining` more votes cannot change or tie the winner, given the votes per answer.

    >>> is_decided([5, 2], remaining=2), is_decided([5, 2], remaining=3)
    (True, False)
    """
    first, second = [*heapq.nlargest(2, votes), 0, 0][:2]
    return first - second > remaining


def needed_candidates(table: CandidateTable) -> NDArray[np.int64]:
    """[P]: after how many candidates, in order, each problem's vote is decided; all if it never is.

    Only the unweighted vote can stop: the weight of a later candidate has no useful bound.

    >>> from ledom.core.records import Candidate, Problem
    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> texts = ["4", "4", "4", "5", "4"]
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate(texts)]
    >>> table = build_candidate_table([Problem(id="p", question="?", answer="4")], drawn, [])
    >>> needed_candidates(table)  # 3 of 5 are a majority
    array([3])
    """
    needed: NDArray[np.int64] = table.mask.sum(axis=1)
    for row, (own, mask) in enumerate(zip(table.answers, table.mask, strict=True)):
        votes: Counter[int] = Counter()
        planned = max(table.num_planned, int(needed[row]))
        for drawn, answer in enumerate(own[mask].tolist(), start=1):
            if answer >= 0:
                votes[answer] += 1
            if is_decided(votes.values(), planned - drawn):
                needed[row] = drawn
                break
    return needed


def _share(groups: NDArray[np.int64], some: BoolArray, mask: BoolArray) -> FloatArray:
    """[P, N]: the share of `some` among the cells of each cell's group that are in the mask."""
    found, sizes = (np.bincount(groups.ravel(), cells.ravel()) for cells in (some & mask, mask))
    return np.asarray((found / np.maximum(sizes, 1))[groups])


def _answer_groups(table: CandidateTable) -> NDArray[np.int64]:
    """[P, N]: a number for each problem and answer; candidates without one share a number."""
    span = int(table.answers.max(initial=-1)) + 2
    return np.arange(len(table.answers))[:, None] * span + table.answers + 1


_FORWARD, _REVERSE, _PRIOR = (TOKEN_FEATURES[target] for target in ("y|x", "x|y", "y"))
_TWO_TERMS = ("forward", "reverse", "forward_mean", "reverse_mean")
_NUMBERS = ("forward", "forward_mean", "reverse", "question_numbers", "question_min_digit_logprob")
_CHANNEL = ("forward", "reverse", "prior")
_BY_REVERSE = (*_REVERSE, *_PRIOR)  # all features from the reverse model's own scores
_ALL = (*_FORWARD, *_BY_REVERSE)

_PICK_TERMS: dict[str, tuple[tuple[str, ...], str]] = {
    "forward": (("forward",), "highest log-probability"),
    "forward_mean": (("forward_mean",), "highest mean log-probability per token"),
    "forward_tuned": (_FORWARD, "the forward model's scores, weighted"),
    "reverse_only": (("reverse",), "the candidate that best explains the question"),
    "reverse_tuned": (_BY_REVERSE, "the reverse model's scores, weighted"),
    "reverse_reward": (_TWO_TERMS, "the paper's two terms"),
    "question_numbers_reward": (_NUMBERS, "the question's numbers weighted separately"),
    "noisy_channel": (_CHANNEL, "log P(y|x), log P(x|y) and log P(y), weighted"),
    "all_terms": (_ALL, "every score, weighted"),
    "worst_step": (("worst_step",), "the candidate whose least likely step is most likely"),
    "all_terms_worst_step": ((*_ALL, "worst_step"), "every score and the worst step, weighted"),
    "contrast": (("contrast",), "the candidate that best explains the question's numbers"),
    "all_terms_contrast": ((*_ALL, "contrast"), "every score and the contrast, weighted"),
    "flip": (("overlap",), "questions written backwards overlap most with the real one"),
    "all_terms_flip": ((*_ALL, "overlap"), "every score and the overlap, weighted"),
}
"""The features and description of each pick, by id."""


def _label(name: str) -> str:
    """The label of a pick: `all terms + FLIP` for `all_terms_flip`."""
    return name.replace("all_terms_", "all terms + ").replace("_", " ").replace("flip", "FLIP")


_PICKS = {
    name: Pick(_label(name), description, features, interpolated=name == "reverse_reward")
    for name, (features, description) in _PICK_TERMS.items()
}


def _vote(pick: Pick) -> Vote:
    counts = "each candidate counts exp(score / temperature)"
    return Vote(f"vote, {pick.label}", counts, pick.features, pick.interpolated)


STRATEGIES: dict[str, Strategy] = {
    "greedy": Greedy("greedy", "the forward model's most likely token at each step"),
    "random": Random("random", "a random candidate: its expected accuracy"),
    **_PICKS,
    "majority": Vote("majority", "the most frequent answer"),
    "majority_stopped": EarlyVote("majority, stopped", "drawing stops when the lead cannot change"),
    **{f"vote_{name}": _vote(pick) for name, pick in _PICKS.items()},
    "oracle": Bound("oracle", "right if any candidate is"),
}
"""Every strategy by its id, except those for external scores.

`forward_tuned` is `all_terms` without the reverse model's scores. `noisy_channel` follows Yee,
Dauphin and Auli, Simple and Effective Noisy Channel Modeling for Neural Machine Translation (2019),
with P(y) from the reverse model."""


def strategies(external_scores: Sequence[str] = ()) -> dict[str, Strategy]:
    """`STRATEGIES`, and a pick and a vote for each of these external scores, and for all of them
    with every score of both models and with the reverse model's scores.

    >>> list(strategies(["verifier"]))[-7:-5]
    ['external:verifier', 'vote_external:verifier']
    >>> strategies(["self_certainty"])["vote_external:self_certainty"].label
    'vote, self-certainty'
    """
    found = dict(STRATEGIES)
    oracle = found.pop("oracle")  # the bound stays last
    labels = {name: EXTERNAL_LABELS.get(name, name) for name in external_scores}
    for name, label in labels.items():
        pick = Pick(label, "an external score", (name,))
        found |= {f"external:{name}": pick, f"vote_external:{name}": _vote(pick)}
    own = {"all": ("every score", _ALL), "reverse": ("the reverse scores", _BY_REVERSE)}
    for name, (scores, features) in own.items() if external_scores else ():
        what = f"{scores} and {', '.join(labels.values())}, weighted"
        pick = Pick(f"{name} + external scores", what, (*features, *external_scores))
        found |= {f"{name}_external": pick, f"vote_{name}_external": _vote(pick)}
    return found | {"oracle": oracle}


def check_score_names(names: Iterable[str]) -> None:
    """Raise `InputError` for a name that an external score cannot have.

    >>> check_score_names(["text"])
    Traceback (most recent call last):
    ledom.core.errors.InputError: 'text' is a key of every candidate, not an extra score field
    """
    for name in names:
        if name in FEATURES or name in STRATEGIES:
            raise InputError(
                f"a score field cannot be called {name!r}: ledom computes a score of that name"
            )
        if name in Candidate.own_keys():
            raise InputError(f"{name!r} is a key of every candidate, not an extra score field")
        if not _SCORE_NAME.fullmatch(name):
            raise InputError(
                f"a score field cannot be called {name!r}: give a key of the candidates made of "
                "letters, digits, spaces and _ . -"
            )
