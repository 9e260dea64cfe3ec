"""Measures every strategy on the same candidates, all from a `CandidateTable`, for a report.

It also finds the problems that best show what the reverse model changes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ledom.report import results
from ledom.report.intervals import (
    FloatArray,
    auc_interval,
    bootstrap_interval,
    paired_share_interval,
    share_interval,
)
from ledom.rerank.candidate_table import FEATURES, CandidateTable
from ledom.rerank.candidates import EXTERNAL_LABELS
from ledom.rerank.cost import Costs
from ledom.rerank.strategies import STRATEGIES, EarlyVote, Pick, needed_candidates, strategies
from ledom.rerank.weights import LAMBDAS, TunedWeights, preferred_strategy

__all__ = ["changes", "measure"]

_OPPONENTS = ("greedy", "random", "majority")
_SUBSETS = 16  # random subsets of each size, in accuracy by number of candidates
_BINS = 8
_NUM_CHANGES = 3
_SHOWN_BY_N = (
    "random",
    "forward_tuned",
    "reverse_reward",
    "all_terms",
    "majority",
    "vote_all_terms",
    "oracle",
)
_MAIN_CLAIMS = (
    ("Reverse Reward with its third term beats the greedy answer", "noisy_channel", "greedy"),
    ("Weighted voting beats majority voting", "vote_all_terms", "majority"),
)
"""The claims of the demo, stated before any of its problems was seen (docs/results.md)."""
_CLAIMS = (
    *_MAIN_CLAIMS,
    ("Reverse Reward beats the greedy answer", "reverse_reward", "greedy"),
    ("Reverse Reward beats a random candidate", "reverse_reward", "random"),
    ("Picking: adding reverse scores to the forward ones helps", "all_terms", "forward_tuned"),
    (
        "Voting: adding reverse scores to the forward ones helps",
        "vote_all_terms",
        "vote_forward_tuned",
    ),
    ("Voting: adding external scores to all others helps", "vote_all_external", "vote_all_terms"),
)


def measure(
    table: CandidateTable, weights: TunedWeights, costs: Costs | None = None
) -> results.Measurement:
    """The measured part of a report: on the labeled problems, but `costs` are means over all.

    Problems with the same question are not independent: intervals resample them together.

    >>> from ledom.core.records import Candidate, Problem
    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> problems = [Problem(id="p", question="2 + 2?", answer="4")]
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("4454")]
    >>> weights = TunedWeights({}, 0, 0, frozenset())
    >>> found = measure(build_candidate_table(problems, drawn, []), weights)
    >>> {strategy.id: strategy.accuracy.mean for strategy in found.strategies}
    {'random': 0.75, 'majority': 1.0, 'majority_stopped': 1.0, 'oracle': 1.0}
    """
    rows = np.flatnonzero(table.labeled)
    if not len(rows):
        return results.Measurement(num_labeled=0)
    table, weights = table.select(rows), weights.select(rows)
    able = weights.usable_with(table.features, table.external_scores)
    rights = {name: one.accuracy(table, weights.of(name)) for name, one in able.items()}
    # A strategy that cannot choose for every problem is left out (greedy may lack candidates).
    rights = {name: right for name, right in rights.items() if not np.isnan(right).any()}
    return results.Measurement(
        num_labeled=len(table.problem_ids),
        settings=weights.settings if "reverse_reward" in rights else {},
        strategies=[_result(name, rights, table, weights, costs) for name in rights],
        headline=[
            results.Difference(
                claim=claim,
                difference=paired_share_interval(rights[a], rights[b], table.question_hashes),
                main=(claim, a, b) in _MAIN_CLAIMS,
            )
            for claim, a, b in _CLAIMS
            if a in rights and b in rights
        ],
        accuracy_by_n=_by_number(table, weights, rights),
        accuracy_by_lambda=_by_lambda(table, weights),
        reliability=_reliability(table, weights),
        auc=_aucs(table, weights),
        by_group=_by_group(table, rights),
    )


def _result(
    name: str,
    rights: dict[str, FloatArray],
    table: CandidateTable,
    weights: TunedWeights,
    costs: Costs | None,
) -> results.StrategyResult:
    groups = table.question_hashes
    strategy, own = strategies(table.external_scores)[name], weights.weights.get(name, {})
    terms = [f"{value:+.3g} {term}" for term, value in own.items() if value]
    return results.StrategyResult(
        id=name,
        label=strategy.label,
        kind=strategy.kind,
        description=strategy.description,
        formula=" ".join(terms).lstrip("+"),
        accuracy=share_interval(rights[name], groups=groups),
        versus={
            other: paired_share_interval(rights[name], rights[other], groups)
            for other in _OPPONENTS
            if other in rights and other != name and strategy.kind != "bound"
        },
        needed=_needed(table) if isinstance(strategy, EarlyVote) else None,
        cost=costs.of(strategy) if costs else None,
    )


def _needed(table: CandidateTable) -> results.Needed:
    """How many candidates decide a problem's vote, and what share of the candidates this saves."""
    needed = needed_candidates(table).astype(float)
    planned = np.maximum(table.mask.sum(axis=1), max(table.num_planned, 1))
    mean = float(planned.mean())
    return results.Needed(
        candidates=bootstrap_interval(needed, groups=table.question_hashes),
        of=int(mean) if mean.is_integer() else round(mean, 1),
        saved=share_interval(1 - needed / planned, groups=table.question_hashes),
    )


def _by_number(
    table: CandidateTable, weights: TunedWeights, rights: dict[str, FloatArray]
) -> results.AccuracyByN | None:
    table = replace(table, mask=table.always_drawn)
    counts = table.mask.sum(axis=1)
    smallest = int(counts.min())
    numbers = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < smallest] + [smallest]
    if smallest < 2:
        return None
    shown = {name: STRATEGIES[name] for name in _SHOWN_BY_N if name in rights}
    curves: dict[str, list[float]] = {name: [] for name in shown}
    for n in numbers:
        # With the same seed, each subset is part of the next, so curves do not move by chance.
        seeds = range(_SUBSETS if n < counts.max() else 1)
        subsets = [table.sample(n, np.random.default_rng(seed)) for seed in seeds]
        for name, strategy in shown.items():
            own = weights.of(name)
            values = [strategy.accuracy(subset, own).mean() for subset in subsets]
            curves[name].append(float(np.mean(values)))
    return results.AccuracyByN(n=numbers, strategies=curves)


def _by_lambda(table: CandidateTable, weights: TunedWeights) -> results.AccuracyByLambda | None:
    groups = table.question_hashes
    strategy = STRATEGIES["reverse_reward"]
    in_use = weights.interpolation
    if in_use is None or not strategy.available(table):
        return None
    chosen, mean = in_use
    rows = [strategy.interpolation(float(lam), mean) for lam in LAMBDAS]
    intervals = [
        share_interval(strategy.accuracy(table, row), num_resamples=2000, groups=groups)
        for row in rows
    ]
    return results.AccuracyByLambda(
        lambda_=[round(float(lam), 4) for lam in LAMBDAS],
        accuracy=[i.mean for i in intervals],
        low=[i.low for i in intervals],
        high=[i.high for i in intervals],
        chosen=chosen,
    )


def _reliability(table: CandidateTable, weights: TunedWeights) -> results.Reliability:
    """Accuracy by the winning answer's share of the vote that chooses the answers."""
    name = preferred_strategy(table, weights)
    strategy, own = strategies(table.external_scores)[name], weights.of(name)
    confidence = strategy.shares(table, own).max(axis=1).round(9)  # equal up to rounding
    right = strategy.accuracy(table, own)
    order = np.argsort(confidence, kind="stable")
    in_order = confidence[order]
    starts = (len(order) * np.arange(1, _BINS)) // _BINS
    # Equal confidences share a bin, so that the order of the problems does not matter.
    edges = np.unique(np.searchsorted(in_order, in_order[starts]))
    bins = []
    for rows in np.split(order, edges[edges > 0]):
        groups = [table.question_hashes[row] for row in rows]
        interval = share_interval(right[rows], num_resamples=2000, groups=groups)
        bins.append(
            results.Bin(
                mean_score=float(confidence[rows].mean()),
                accuracy=interval.mean,
                low=interval.low,
                high=interval.high,
                count=len(rows),
            )
        )
    return results.Reliability(score="the winning answer's share of votes", bins=bins)


def _aucs(table: CandidateTable, weights: TunedWeights) -> list[results.AucResult]:
    """Pairwise AUC, on eligible candidates, of every feature and every pick with tuned weights."""
    correct = [table.correct[i, here] for i, here in enumerate(table.eligible)]
    if not any(c.any() and not c.all() for c in correct):
        return []

    def row(name: str, values: FloatArray, term: str | None = None) -> results.AucResult:
        scores = [values[i, here] for i, here in enumerate(table.eligible)]
        auc = auc_interval(scores, correct, table.question_hashes)
        return results.AucResult(score=name, auc=auc, term=term)

    rows = [
        row(feature.label, table.features[name], name)
        for name, feature in FEATURES.items()
        if name in table.features
    ]
    rows += [
        row(f"{EXTERNAL_LABELS.get(name, name)}, external score", table.features[name])
        for name in table.external_scores
    ]
    known = strategies(table.external_scores)
    for name in weights.weights:
        pick = known[name]
        if isinstance(pick, Pick) and len(pick.features) > 1 and pick.available(table):
            rows.append(row(f"{pick.label} (tuned)", pick.score(table, weights.of(name))))
    return rows


def _by_group(table: CandidateTable, rights: dict[str, FloatArray]) -> list[results.GroupResult]:
    groups = sorted(set(table.groups))
    if len(groups) < 2:
        return []
    found = []
    for group in groups:
        rows = [row for row, own in enumerate(table.groups) if own == group]
        accuracy = {name: float(right[rows].mean()) for name, right in rights.items()}
        found.append(results.GroupResult(group=group, num_problems=len(rows), accuracy=accuracy))
    return found


def changes(table: CandidateTable, weights: TunedWeights) -> list[tuple[int, FloatArray, int]]:
    """The problems that best show where Reverse Reward differs from the forward model's pick.

    Each is (row, scores [N] that pick a candidate, column of the forward model's pick). First come
    those where only Reverse Reward is right. These, and then the rest, are sorted by how much
    log P(question) differs between the two candidates, largest first. None without reverse scores.

    >>> from ledom.core.records import Candidate, Problem, Score
    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> drawn = [Candidate(problem_id="p", index=i, text=text) for i, text in enumerate("45")]
    >>> scores = [Score(problem_id="p", index=i, model="m", direction="reverse", target="x|y",
    ...                 logprob=-1.0 - i, num_tokens=2) for i in (0, 1)]
    >>> table = build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, scores)
    >>> changes(table, TunedWeights({}, 0, 0, frozenset()))
    [(0, array([-1., -2.]), 1)]
    """
    if "reverse" not in table.features:
        return []
    judged, rejected = _judge(table, weights)
    picked = judged.argmax(axis=1)
    rows = np.flatnonzero(picked != rejected)
    picked, rejected = picked[rows], rejected[rows]
    reverse = table.features["reverse"]
    gap = reverse[rows, picked] - reverse[rows, rejected]
    better = table.correct[rows, picked] & ~table.correct[rows, rejected]
    return [
        (int(rows[place]), judged[rows[place]], int(rejected[place]))
        for place in np.lexsort((-gap, ~better))[:_NUM_CHANGES]
    ]


def _judge(table: CandidateTable, weights: TunedWeights) -> tuple[FloatArray, NDArray[np.int64]]:
    """Scores [P, N] that pick a candidate, and the columns [P] of the rejected candidates: the
    forward model's picks or, without a forward model, the worst ones."""
    if "forward" not in table.features:
        score = STRATEGIES["reverse_only"].score(table, None)
        return score, np.where(table.eligible, score, np.inf).argmin(axis=1)
    judge = "reverse_reward" if "reverse_reward" in weights.weights else "reverse_only"
    score = STRATEGIES[judge].score(table, weights.of(judge))
    return score, STRATEGIES["forward"].score(table, None).argmax(axis=1)
