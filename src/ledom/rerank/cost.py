"""What a strategy costs: tokens written, tokens scored, the arithmetic for them, and seconds.

A strategy needs the stages that make its features: candidates always; a model's scores where it
weighs them. Tokens are counted in the files of the stages: a candidate's own (`num_tokens`, or
those of its score), and those of the scores of distinct texts. A token that a model writes or
scores takes 2 FLOPs per parameter (Kaplan et al., Scaling Laws for Neural Language Models, 2020).
Prompts, which are shared, and attention are left out, as are external scores and the writing of
candidates that were given.

Seconds are wall-clock time while the files of these stages were made: model calls and writing
records, without loading models, choosing and reporting. Processes that share the work add up. The
time of candidates.jsonl, which holds the greedy candidates too, is divided by the tokens written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ledom.core.records import NUM_TOKENS, Candidate, Score
from ledom.report.results import Cost, StrategyResult
from ledom.rerank.candidate_table import CandidateTable, FloatArray
from ledom.rerank.candidates import SharedScores
from ledom.rerank.features import FEATURES
from ledom.rerank.strategies import (
    EarlyVote,
    Greedy,
    Random,
    Strategy,
    needed_candidates,
    strategies,
)

__all__ = ["Costs"]

_STAGES: dict[str, tuple[str, ...]] = {
    "y|x": ("forward",),
    "x|y": ("reverse",),
    "y": ("reverse",),
    "x'|y": ("reverse", "contrast"),
    "x~|y": ("flip",),
}
_MODELS = {"forward": "forward", "reverse": "reverse", "contrast": "reverse", "flip": "reverse"}
_WRITES = {"flip"}
"""Stages whose tokens are generated, not scored."""


@dataclass(frozen=True)
class Costs:
    """What candidates and scores took, and so what each strategy takes.

    >>> from ledom.core.records import Problem
    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> drawn = [Candidate(problem_id="p", index=0, text="4", extra={NUM_TOKENS: 2})]
    >>> score = Score(problem_id="p", index=0, model="m", direction="forward", target="y|x",
    ...               logprob=-1.5, num_tokens=3)
    >>> table = build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, [score])
    >>> costs = Costs.count(table, drawn, [score], {"forward": 1000, "writer": 1000})
    >>> costs.of(strategies()["forward"], table)  # 2 FLOPs x 1000 parameters x 5 tokens
    Cost(generated_tokens=2.0, scored_tokens=3.0, flops=10000.0, seconds=None)
    """

    written: FloatArray
    """[P, N]: tokens of each candidate of the pool; 0 where there is none."""
    greedy: float
    """Tokens of the greedy candidates, per problem."""
    scored: Mapping[str, float]
    """Tokens of each stage of scoring, per problem: `forward`, `reverse`, `contrast`, `flip`."""
    parameters: Mapping[str, int | None]
    """Of the models that score, by direction, and of the `writer`; 0 where it is not counted."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Per problem, by stage, and of the `writer`; without those that are not known."""
    broken_off: float = 0.0
    """Tokens of the candidates that sampling broke off, per problem."""

    @classmethod
    def count(
        cls,
        table: CandidateTable,
        candidates: Sequence[Candidate],
        scores: Sequence[Score],
        parameters: Mapping[str, int | None],
        timings: Mapping[str, float] | None = None,
    ) -> Costs:
        """The costs of the records that the table was built from.

        `timings` are the seconds that each file took, by its name.
        """
        row_of = {problem_id: row for row, problem_id in enumerate(table.problem_ids)}
        shared = SharedScores(candidates, scores)
        scored = dict.fromkeys(_MODELS, 0.0)
        for score in scores:
            scored[_STAGES[score.target][-1]] += score.num_tokens
        written, greedy, broken_off = np.zeros(table.mask.shape), 0.0, 0.0
        column = dict.fromkeys(row_of, 0)
        for candidate in candidates:
            tokens = _tokens_of(candidate, shared)
            if candidate.greedy:
                greedy += tokens
                continue
            if candidate.finish_reason == "unsure":
                broken_off += tokens
                continue
            written[row_of[candidate.problem_id], column[candidate.problem_id]] = tokens
            column[candidate.problem_id] += 1
        num = len(row_of)
        per_problem = {stage: tokens / num for stage, tokens in scored.items()}
        files = {stage: f"scores.{stage}.jsonl" for stage in _MODELS}
        files["writer"] = "candidates.jsonl"
        took = timings or {}
        seconds = {stage: took[name] / num for stage, name in files.items() if name in took}
        if parameters.get("writer") == 0:  # others wrote the candidates
            seconds["writer"] = 0.0
        return cls(written, greedy / num, per_problem, parameters, seconds, broken_off / num)

    def of(self, strategy: Strategy, table: CandidateTable) -> Cost:
        """What a strategy costs, in means per problem."""
        written = self._written(strategy, table)
        targets = {FEATURES[name][0] for name in strategy.features if name in FEATURES}
        if "worst_step" in strategy.features and self.scored["forward"]:
            targets.add("y|x")
        stages = {stage for target in targets for stage in _STAGES[target]}
        parts = {"writer": written}
        for stage in stages:
            model = _MODELS[stage]
            parts[model] = parts.get(model, 0.0) + self.scored[stage]
        flops: float | None = 0.0
        for model, tokens in parts.items():
            size = self.parameters.get(model)
            flops = None if flops is None or size is None else flops + 2.0 * size * tokens
        return Cost(
            generated_tokens=written + sum(self.scored[stage] for stage in stages & _WRITES),
            scored_tokens=sum(self.scored[stage] for stage in stages - _WRITES),
            flops=flops,
            seconds=self._seconds(written, stages),
        )

    def _seconds(self, written: float, stages: set[str]) -> float | None:
        """Per problem; None where a stage's are not known."""
        if not {"writer", *stages} <= self.seconds.keys():
            return None
        every = self.greedy + self.broken_off + float(self.written.sum()) / len(self.written)
        share = written / every if every else 0.0
        return self.seconds["writer"] * share + sum(self.seconds[stage] for stage in stages)

    def added_to(
        self, results: Sequence[StrategyResult], table: CandidateTable
    ) -> list[StrategyResult]:
        """The results with their costs."""
        known = strategies(table.external_scores)
        return [replace(found, cost=self.of(known[found.id], table)) for found in results]

    def _written(self, strategy: Strategy, table: CandidateTable) -> float:
        if isinstance(strategy, Greedy):
            return self.greedy
        totals = self.written.sum(axis=1)
        if isinstance(strategy, Random):
            return float((totals / table.mask.sum(axis=1)).mean())
        if isinstance(strategy, EarlyVote):
            drawn = np.arange(table.mask.shape[1]) < needed_candidates(table)[:, None]
            return float((self.written * drawn).sum(axis=1).mean())
        return float(totals.mean()) + self.broken_off


def _tokens_of(candidate: Candidate, shared: SharedScores) -> int:
    """Tokens of a candidate: those that sampling counted, else those that a model scored."""
    known = candidate.extra.get(NUM_TOKENS)
    if isinstance(known, int):
        return known
    score = shared.find(candidate, "y|x") or shared.find(candidate, "y")
    assert score is not None, "every candidate has a score"
    return score.num_tokens
