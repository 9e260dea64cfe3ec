"""The costs of strategies, on two problems worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ledom.core.records import Candidate, Problem
from ledom.report.results import Cost
from ledom.rerank.candidate_table import build_candidate_table
from ledom.rerank.cost import Costs
from ledom.rerank.strategies import STRATEGIES, strategies
from made import made_score

PROBLEMS = [
    Problem(id="p", question="1 + 1?", answer="2"),
    Problem(id="q", question="?", answer="2"),
]


def candidate(problem: str, index: int, text: str, tokens: int, greedy: bool = False) -> Candidate:
    return Candidate(
        problem_id=problem, index=index, text=text, greedy=greedy, extra={"num_tokens": tokens}
    )


# 10, 20, 10 and greedy 12; 40 and greedy 8
CANDIDATES = [
    candidate("p", 0, "#### 2", 10),
    candidate("p", 1, "so #### 3", 20),
    candidate("p", 2, "#### 2", 10),
    candidate("p", 3, "## 2", 12, greedy=True),
    candidate("q", 0, "#### 7", 40),
    candidate("q", 1, "#### 2", 8, greedy=True),
]
DISTINCT = [("p", 0), ("p", 1), ("p", 3), ("q", 0), ("q", 1)]
TOKENS = {"y|x": 10, "y": 9, "x|y": 5, "x'|y": 30, "x~|y": 50}
SCORES = [
    made_score(target, num_tokens=tokens, problem_id=problem, index=index)
    for problem, index in DISTINCT
    for target, tokens in TOKENS.items()
]
TABLE = build_candidate_table(PROBLEMS, CANDIDATES, SCORES)


def costs(**parameters: int | None) -> Costs:
    sizes = {"writer": 100, "forward": 100, "reverse": 1000} | parameters
    return Costs.count(TABLE, CANDIDATES, SCORES, sizes)


@pytest.mark.parametrize(
    ("name", "generated", "scored", "flops"),
    [
        # Generated: (40 + 40) / 2. Scored: 3 texts of 10, 14 and 30 tokens, for 2 problems; the
        # greedy ones do not count.
        ("majority", 40, 0, 200 * 40),
        ("oracle", 40, 0, 200 * 40),
        ("greedy", (12 + 8) / 2, 0, 200 * 10),
        ("random", (40 / 3 + 40) / 2, 0, 200 * (40 / 3 + 40) / 2),
        ("forward", 40, 15, 200 * 40 + 200 * 15),
        ("reverse_only", 40, 21, 200 * 40 + 2000 * 21),
        ("noisy_channel", 40, 36, 200 * 40 + 200 * 15 + 2000 * 21),
        ("contrast", 40, 66, 200 * 40 + 2000 * (21 + 45)),
        ("flip", 40 + 75, 0, 200 * 40 + 2000 * 75),  # generates 3 times 50 tokens and reads none
        ("worst_step", 40, 36, 200 * 40 + 200 * 15 + 2000 * 21),
    ],
)
def test_costs_match_hand_values(name: str, generated: float, scored: float, flops: float) -> None:
    found = costs().of(STRATEGIES[name])
    assert found.generated_tokens == pytest.approx(generated)
    assert found.scored_tokens == pytest.approx(scored)
    assert found.flops == pytest.approx(flops)


def test_a_stopped_vote_generates_only_what_it_draws() -> None:
    # Two of p's three answers agree, but only after the third; q has one candidate.
    assert costs().of(STRATEGIES["majority_stopped"]).generated_tokens == 40
    three = [candidate("p", i, text, 10) for i, text in enumerate(["#### 2", "a #### 2", "#### 3"])]
    scores = [made_score("y|x", num_tokens=9, index=c.index) for c in three]
    table = build_candidate_table(PROBLEMS[:1], three, scores)
    found = Costs.count(table, three, scores, {"writer": 1, "forward": 1})
    assert found.of(STRATEGIES["majority_stopped"]).generated_tokens == 20


def test_unknown_sizes_and_lengths_give_unknown_costs() -> None:
    assert costs(reverse=None).of(STRATEGIES["reverse_only"]).flops is None
    assert costs(reverse=None).of(STRATEGIES["forward"]).flops is not None
    given = [
        Candidate(problem_id=c.problem_id, index=c.index, text=c.text, greedy=c.greedy)
        for c in CANDIDATES
    ]
    # Without its own count, a candidate has the tokens of its text's score: 3 x 10 and 10.
    found = Costs.count(TABLE, given, SCORES, {"writer": 0, "forward": 100, "reverse": 1000})
    np.testing.assert_array_equal(found.written, [[10, 10, 10], [10, 0, 0]])
    assert found.of(STRATEGIES["forward"]) == Cost(
        generated_tokens=20, scored_tokens=15, flops=200 * 15, seconds=None
    )


def test_seconds_are_summed_over_the_files_a_strategy_needs() -> None:
    """Two problems; candidates.jsonl holds 80 sampled and 20 greedy tokens, and took 10 s."""
    timings = {"candidates.jsonl": 10.0, "scores.forward.jsonl": 3.0, "scores.reverse.jsonl": 5.0}
    sizes = {"writer": 1, "forward": 1, "reverse": 1}
    found = Costs.count(TABLE, CANDIDATES, SCORES, sizes, timings)

    def seconds(name: str) -> float | None:
        return found.of(STRATEGIES[name]).seconds

    assert seconds("greedy") == pytest.approx(10 * 0.2 / 2)
    assert seconds("majority") == pytest.approx(10 * 0.8 / 2)
    assert seconds("forward") == pytest.approx((8 + 3) / 2)
    assert seconds("noisy_channel") == pytest.approx((8 + 3 + 5) / 2)
    assert seconds("flip") is None  # unknown for its file
    given = Costs.count(TABLE, CANDIDATES, SCORES, sizes | {"writer": 0}, timings)
    assert given.of(STRATEGIES["forward"]).seconds == pytest.approx(3 / 2)


def test_what_a_broken_off_candidate_wrote_is_counted() -> None:
    """Its 8 tokens, 4 per problem, are paid for by the strategies that need the whole pool."""
    unsure = replace(candidate("p", 9, "so", 8), finish_reason="unsure")
    timings = {"candidates.jsonl": 54.0}  # 80, 20 and 8 tokens, at half a second each
    found = Costs.count(TABLE, [*CANDIDATES, unsure], SCORES, {"writer": 1}, timings)
    cost, greedy = (found.of(STRATEGIES[name]) for name in ("majority", "greedy"))
    assert (cost.generated_tokens, cost.seconds) == (44, pytest.approx(22))
    assert (greedy.generated_tokens, greedy.seconds) == (10, pytest.approx(5))


def test_a_cost_is_summed_in_a_fixed_order() -> None:
    """Otherwise equal runs could differ in the last bit, because the order of a set changes."""
    ones = dict.fromkeys(["writer", "forward", "reverse"], 1)
    written, scored = np.array([[0.05], [0.05]]), {"forward": 0.05, "reverse": 0.2}
    found = Costs(TABLE, written, 0.0, scored, ones, {}, 0.0).of(STRATEGIES["noisy_channel"])
    assert found.flops == 0.1 + 0.1 + 0.4 != 0.1 + 0.4 + 0.1


def test_external_scores_cost_nothing_here() -> None:
    known = strategies(("verifier",))
    assert costs().of(known["external:verifier"]).scored_tokens == 0
