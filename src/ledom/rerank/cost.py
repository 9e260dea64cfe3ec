"""The cost of each strategy: generated tokens, scored tokens, FLOPs and seconds.

A strategy pays for the candidates and for the scores that it weighs. The scored tokens are those of
distinct texts, without greedy ones. A generated or scored token takes 2 FLOPs per parameter (Kaplan
et al., Scaling Laws for Neural Language Models, 2020). Attention, prompts (which candidates share),
external scores, and the generation of supplied candidates are not counted.

Seconds are the wall-clock time spent making the files, added up over processes, without loading
models, choosing or reporting. The time for candidates.jsonl is divided between greedy and other
candidates by their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ledom.core.records import Candidate, Score
from ledom.report.intervals import FloatArray
from ledom.report.results import Cost
from ledom.rerank.candidate_table import FEATURES, CandidateTable
from ledom.rerank.candidates import (
    distinct_candidates,
    pools,
    scores_by_target,
    written_tokens,
)
from ledom.rerank.score_files import FLIP, SCORE_FILES
from ledom.rerank.strategies import EarlyVote, Greedy, Random, Strategy

__all__ = ["Costs"]

_STAGES = {target: stage for stage, (_, targets) in SCORE_FILES.items() for target in targets}
"""The stage that makes each target's scores."""


@dataclass(frozen=True)
class Costs:
    """The tokens and seconds of candidates and scores, from which each strategy's cost follows.

    >>> from ledom.core.records import Problem
    >>> from ledom.rerank.candidate_table import build_candidate_table
    >>> from ledom.rerank.strategies import STRATEGIES
    >>> drawn = [Candidate(problem_id="p", index=0, text="4", extra={"num_tokens": 2})]
    >>> score = Score(problem_id="p", index=0, model="m", direction="forward", target="y|x",
    ...               logprob=-1.5, num_tokens=3)
    >>> table = build_candidate_table([Problem(id="p", question="2 + 2?")], drawn, [score])
    >>> costs = Costs.count(table, drawn, [score], {"forward": 1000, "writer": 1000})
    >>> costs.of(STRATEGIES["forward"])  # 2 FLOPs x 1000 parameters x 5 tokens
    Cost(generated_tokens=2.0, scored_tokens=3.0, flops=10000.0, seconds=None)
    """

    table: CandidateTable
    written: FloatArray
    """[P, N]: tokens of each candidate in the pool; 0 where there is no candidate."""
    greedy: float
    """Tokens of the greedy candidates, per problem."""
    scored: Mapping[str, float]
    """Tokens of each stage of scoring, per problem: `forward`, `reverse`, `contrast`, `flip`."""
    parameters: Mapping[str, int | None]
    """Parameters of the scoring models, by direction, and of the `writer` of the candidates (0: not
    counted). None where unknown."""
    seconds: Mapping[str, float]
    """Seconds per problem, by stage and for the `writer`; stages with unknown time are left out."""
    broken_off: float
    """Tokens of candidates that sampling broke off, per problem."""

    @classmethod
    def count(
        cls,
        table: CandidateTable,
        candidates: Sequence[Candidate],
        scores: Sequence[Score],
        parameters: Mapping[str, int | None],
        timings: Mapping[str, float] | None = None,
    ) -> Costs:
        """Count the costs of the table's records; `timings` are seconds by file name."""
        num = len(table.problem_ids)
        scores_of = scores_by_target(candidates, scores)
        tokens = {c.key: _tokens_of(c, scores_of[c.key]) for c in candidates}
        scored = dict.fromkeys(SCORE_FILES, 0.0)
        written = np.zeros(table.mask.shape)
        for row, pool in enumerate(pools(table.problem_ids, candidates).values()):
            written[row, : len(pool)] = [tokens[c.key] for c in pool]
            # No strategy weighs the scores of a greedy text.
            for score in (s for c in distinct_candidates(pool) for s in scores_of[c.key].values()):
                scored[_STAGES[score.target]] += score.num_tokens
        greedy = sum(tokens[c.key] for c in candidates if c.greedy)
        broken_off = sum(tokens.values()) - greedy - float(written.sum())
        files = {stage: f"scores.{stage}.jsonl" for stage in SCORE_FILES}
        files["writer"] = "candidates.jsonl"
        took = timings or {}
        seconds = {stage: took[name] / num for stage, name in files.items() if name in took}
        if parameters.get("writer") == 0:  # the candidates were supplied
            seconds["writer"] = 0.0
        scored = {stage: count / num for stage, count in scored.items()}
        return cls(table, written, greedy / num, scored, parameters, seconds, broken_off / num)

    def of(self, strategy: Strategy) -> Cost:
        """A strategy's mean cost per problem."""
        written = self._written(strategy)
        weighed = [FEATURES[name] for name in strategy.features if name in FEATURES]
        needed = {_STAGES[target] for feature in weighed for target in feature.targets}
        optional = {_STAGES[target] for feature in weighed for target in feature.optional_targets}
        needed |= {stage for stage in optional if self.scored[stage]}
        stages = [stage for stage in SCORE_FILES if stage in needed]  # always summed in this order
        tokens = {"writer": written}
        for stage in stages:
            model = SCORE_FILES[stage][0].value
            tokens[model] = tokens.get(model, 0.0) + self.scored[stage]
        sizes = [self.parameters.get(model) for model in tokens]
        known = zip(tokens.values(), sizes, strict=True)
        flops = [2.0 * size * count for count, size in known if size is not None]
        seconds = None  # unless the time of every stage is known
        if {"writer", *stages} <= self.seconds.keys():
            every = self.greedy + self.broken_off + float(self.written.sum()) / len(self.written)
            share = written / every if every else 0.0
            seconds = self.seconds["writer"] * share + sum(self.seconds[stage] for stage in stages)
        questions = self.scored[FLIP] if FLIP in stages else 0.0  # generated, not scored
        return Cost(
            generated_tokens=written + questions,
            scored_tokens=sum(self.scored[stage] for stage in stages if stage != FLIP),
            flops=None if None in sizes else sum(flops),
            seconds=seconds,
        )

    def _written(self, strategy: Strategy) -> float:
        if isinstance(strategy, Greedy):
            return self.greedy
        if isinstance(strategy, Random):
            drawn = self.table.always_drawn
            return float(((self.written * drawn).sum(axis=1) / drawn.sum(axis=1)).mean())
        if isinstance(strategy, EarlyVote):
            return float((self.written * strategy.drawn(self.table)).sum(axis=1).mean())
        return float(self.written.sum(axis=1).mean()) + self.broken_off


def _tokens_of(candidate: Candidate, scores: Mapping[str, Score]) -> int:
    """A candidate's number of tokens, as counted in sampling or else in scoring."""
    known = written_tokens(candidate)
    if known is not None:
        return known
    return (scores.get("y|x") or scores["y"]).num_tokens
