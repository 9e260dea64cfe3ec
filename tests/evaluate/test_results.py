"""What a row says of its metric: a share has the interval of a share, another number has not."""

from __future__ import annotations

import pytest

from ledom.core.direction import Direction
from ledom.evaluate.results import ENTROPY, Measured, Row, compare, reciprocal_ranks


def row(metric: str, *values: float) -> Row:
    by_document = {("task", number): value for number, value in enumerate(values)}
    (found,) = compare([Measured(Direction.FORWARD, "", metric, by_document)])
    return found


def test_a_share_of_ones_may_be_lower() -> None:
    """Clopper and Pearson: (1 - u) ** 10 = 0.025 for the share u that may be wrong."""
    found = row("exact_match (strict-match)", *[1.0] * 10)
    assert found.unit == "share"
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (pytest.approx(0.025**0.1), 1)


@pytest.mark.parametrize("metric", ["word_perplexity", "bits_per_byte", "accuracy_gap", ENTROPY])
def test_a_number_that_happens_to_be_0_or_1_is_no_share(metric: str) -> None:
    found = row(metric, *[1.0] * 10)
    assert found.unit == ("nats" if metric == ENTROPY else "")
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (1, 1)  # nothing bounds it


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "prompt_level_strict_acc", "f1", "pass@1"])
def test_shares_of_the_harness_are_known_by_name(metric: str) -> None:
    assert row(metric, 0.0, 1.0).unit == "share"


def test_percentages_under_a_name_of_a_share_are_none() -> None:
    found = row("f1", 40.0, 60.0)
    assert (found.unit, found.value) == ("", 50.0)


def test_the_reciprocal_rank_is_that_of_the_best_right_item() -> None:
    """Ranks 3 and 2 of two right ones: 1/2; none ranked: 0; a list without a right item is not
    counted."""
    ranking = [("q", "a"), ("q", "b"), ("other", "x"), ("q", "c"), ("unlabeled", "x")]
    right = {"q": ["c", "b"], "other": ["a"]}
    assert reciprocal_ranks(right, ranking).tolist() == [0.5, 0.0]
