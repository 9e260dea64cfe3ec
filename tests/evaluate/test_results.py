"""What a row says about its metric: shares get the interval of a share, other numbers do not."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from ledom.core.direction import Direction
from ledom.evaluate.results import (
    ENTROPY,
    Measured,
    Row,
    compare,
    reciprocal_ranks,
    right_firsts,
)


def row(metric: str, *values: float) -> Row:
    by_document = {("task", number): value for number, value in enumerate(values)}
    (found,) = compare([Measured(Direction.FORWARD, "", metric, by_document)])
    return found


def test_the_interval_of_a_perfect_share_extends_downwards() -> None:
    """Clopper and Pearson: (1 - u) ** 10 = 0.025, where u is the share that may be wrong."""
    found = row("exact_match (strict-match)", *[1.0] * 10)
    assert found.unit == "share"
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (pytest.approx(0.025**0.1), 1)


@pytest.mark.parametrize("metric", ["acc", "exact_match (strict-match)"])
def test_intervals_and_differences_resample_groups(metric: str) -> None:
    """Ten documents in five groups of equal values have the intervals of five documents."""
    keys = [("task", number) for number in range(10)]
    right = {key: float(key[1] % 5 < 3) for key in keys}

    def rows(share: int) -> list[Row]:
        own = {key: right[key] for key in keys[:share]}
        ways = [Measured(way, "", metric, own) for way in Direction]
        return compare(ways, {key: key[1] % 5 for key in keys})

    assert rows(10) == rows(5)
    assert rows(10)[1].less_forward is not None


def test_differences_are_from_the_forward_model_and_from_the_own_reversed_prompt() -> None:
    def measured(way: Direction, scoring: str, *right: float) -> Measured:
        return Measured(way, scoring, "acc", {("task", i): one for i, one in enumerate(right)})

    rows = compare(
        [
            measured(Direction.FORWARD, "conditional", 1, 0, 0, 0),
            measured(Direction.FORWARD, "reversed prompt", 0, 0, 0, 0),
            measured(Direction.REVERSE, "Bayes", 1, 1, 1, 0),
            measured(Direction.REVERSE, "reversed prompt", 1, 1, 0, 0),
        ]
    )
    means = [[i and i.mean for i in (row.less_forward, row.less_reversed)] for row in rows]
    assert means == [[None, 0.25], [None, None], [0.5, 0.25], [0.25, None]]


@pytest.mark.parametrize("metric", ["word_perplexity", "bits_per_byte", "accuracy_gap", ENTROPY])
def test_a_number_that_happens_to_be_0_or_1_is_not_a_share(metric: str) -> None:
    found = row(metric, *[1.0] * 10)
    assert found.unit == ("nats" if metric == ENTROPY else "")
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (1, 1)  # nothing bounds it


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "prompt_level_strict_acc", "f1", "pass@1"])
def test_shares_of_the_harness_are_recognized_by_name(metric: str) -> None:
    assert row(metric, 0.0, 1.0).unit == "share"


def test_percentages_named_like_a_share_are_not_shares() -> None:
    found = row("f1", 40.0, 60.0)
    assert (found.unit, found.value) == ("", 50.0)


def test_the_reciprocal_rank_uses_the_best_right_item() -> None:
    """Two right items at ranks 3 and 2 give 1/2; none ranked gives 0; a list without a right item
    is not counted."""
    order = [("q", "a"), ("q", "b"), ("other", "x"), ("q", "c"), ("unlabeled", "x")]
    ranking = [(name, item, -float(place)) for place, (name, item) in enumerate(order)]
    right = {"q": ["c", "b"], "other": ["a"]}
    assert reciprocal_ranks(right, ranking).tolist() == [0.5, 0.0]
    assert right_firsts(right, ranking).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("values", ["11", "211", "2211111", "1111", "332211", "321"])
@pytest.mark.parametrize("items", ["a", "ab", "bd", "g"])
def test_equal_scores_have_no_order(values: str, items: str) -> None:
    """The numbers are the means over all orders of the list that its scores allow."""
    scored = list(zip("abcdefg", map(float, values), strict=False))
    orders = [o for o in permutations(scored) if all(x[1] >= y[1] for x, y in pairwise(o))]
    places = [[i for i, (item, _) in enumerate(o, start=1) if item in items] for o in orders]
    ranking = [("q", item, value) for item, value in scored]
    found = reciprocal_ranks({"q": items}, ranking), right_firsts({"q": items}, ranking)
    expected = np.mean([[1 / own[0], own[0] == 1] if own else [0, 0] for own in places], axis=0)
    assert [float(one[0]) for one in found] == pytest.approx(expected.tolist())
