"""Candidates and the scores that equal texts share."""

from __future__ import annotations

from ledom.core.records import Candidate
from ledom.rerank.candidates import SharedScores, pools
from made import made_score


def candidate(problem: str, index: int, text: str, greedy: bool = False) -> Candidate:
    return Candidate(problem_id=problem, index=index, text=text, greedy=greedy)


def test_equal_texts_of_one_problem_share_the_first_ones_scores() -> None:
    greedy = candidate("a", 0, "2", greedy=True)
    twin, other = candidate("a", 1, "2"), candidate("a", 2, "3")
    elsewhere = candidate("b", 0, "2")
    score = made_score("x|y", problem_id="a")
    shared = SharedScores([greedy, twin, other, elsewhere], [score])
    assert shared.targets == {"x|y"}
    assert shared.find(greedy, "x|y") is score
    assert shared.find(twin, "x|y") is score
    assert shared.find(twin, "y|x") is None
    assert shared.find(other, "x|y") is None
    assert shared.find(elsewhere, "x|y") is None


def test_a_pool_has_no_greedy_candidates_and_keeps_the_problems_order() -> None:
    drawn = [candidate("b", 0, "1"), candidate("a", 0, "2"), candidate("a", 1, "3", greedy=True)]
    found = pools(["a", "b"], drawn)
    assert list(found) == ["a", "b"]
    assert [[c.text for c in pool] for pool in found.values()] == [["2"], ["1"]]
