"""Intervals compared with exact distributions computed another way; AUC with its definition."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from ledom.core.errors import InputError
from ledom.report.formatting import verdict
from ledom.report.intervals import (
    auc_interval,
    bootstrap_interval,
    paired_interval,
    paired_share_interval,
    pairwise_auc,
    share_interval,
)
from ledom.report.results import Interval


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def binomial_quantile(num: int, share: float, level: float) -> float:
    """The level-quantile of Binomial(num, share) / num, the limit of resampling 0s and 1s."""
    total = 0.0
    for count in range(num + 1):
        total += math.comb(num, count) * share**count * (1 - share) ** (num - count)
        if total >= level:
            return count / num
    raise AssertionError


# ---- bootstrap_interval ----


def test_two_values_have_three_means() -> None:
    """Of {0, 1}: mean 0 with probability 1/4, 1/2 with 1/2, 1 with 1/4."""
    assert bootstrap_interval(array(0, 1)) == Interval(0.5, 0.0, 1.0)


@pytest.mark.parametrize(("num", "num_ones"), [(10, 3), (100, 50), (400, 380)])
def test_bounds_of_shares_are_binomial_quantiles(num: int, num_ones: int) -> None:
    values = np.repeat([1.0, 0.0], [num_ones, num - num_ones])
    interval = bootstrap_interval(values)
    share = num_ones / num
    assert interval.mean == pytest.approx(share)
    # The resolution is 1 / num: 10,000 resamples may end up on either side of a step.
    low, high = (binomial_quantile(num, share, level) for level in (0.025, 0.975))
    assert interval.low == pytest.approx(low, abs=1.01 / num)
    assert interval.high == pytest.approx(high, abs=1.01 / num)


@pytest.mark.slow
def test_bounds_of_many_values_are_those_of_a_normal() -> None:
    values = np.random.default_rng(7).gamma(2.0, size=3000)
    interval = bootstrap_interval(values)
    standard_error = values.std() / math.sqrt(3000)
    assert interval.mean == values.mean()
    assert interval.low == pytest.approx(values.mean() - 1.96 * standard_error, rel=5e-3)
    assert interval.high == pytest.approx(values.mean() + 1.96 * standard_error, rel=5e-3)


def test_more_problems_than_a_16_bit_index_can_count() -> None:
    """16-bit indices would never draw the last 4,464 of 70,000, the only ones that are 1."""
    values = np.where(np.arange(70_000) < 2**16, 0.0, 1.0)
    interval = bootstrap_interval(values, num_resamples=40)
    assert interval.low < values.mean() < interval.high


def test_one_value_and_equal_values_have_no_width() -> None:
    assert bootstrap_interval(array(0.25)) == Interval(0.25, 0.25, 0.25)
    assert bootstrap_interval(array(2, 2, 2)) == Interval(2.0, 2.0, 2.0)


def test_the_values_are_not_modified() -> None:
    values = array(3, 1, 2)
    values.flags.writeable = False
    bootstrap_interval(values)
    assert values.tolist() == [3, 1, 2]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_resamples() -> None:
    """3,000 problems x 10,000 resamples would be 240 MB at once."""
    values = np.random.default_rng(3).random(3000)
    tracemalloc.start()
    try:
        bootstrap_interval(values)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([], "shape"),
        ([[1.0, 2.0]], "shape"),
        ([1.0, math.nan], r"values\[1\] is nan"),
        ([math.inf, 1.0], r"values\[0\] is inf"),
    ],
)
def test_the_error_for_bad_values_names_them(values: list[float], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        bootstrap_interval(np.array(values))


# ---- paired_interval ----


def test_a_constant_difference_is_certain() -> None:
    """Each side alone is very uncertain; pairing removes all uncertainty."""
    baseline = array(0, 10, 20, 30)
    assert paired_interval(baseline + 0.5, baseline) == Interval(0.5, 0.5, 0.5)


def test_a_paired_interval_is_that_of_the_differences() -> None:
    values, baseline = array(1, 1, 0, 1), array(0, 1, 1, 0)
    expected = bootstrap_interval(array(1, 0, -1, 1), num_resamples=500)
    assert paired_interval(values, baseline, num_resamples=500) == expected
    assert expected.mean == 0.25


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="values has 3 problems and baseline 2"):
        paired_interval(array(1, 2, 3), array(1, 2))
    with pytest.raises(InputError, match=r"baseline\[1\]"):
        paired_interval(array(1, 2), array(1, math.nan))
    with pytest.raises(InputError, match="shape"):
        paired_interval(array(), array())


# ---- shares ----


@pytest.mark.parametrize("num", [1, 5, 30, 79])
def test_shares_that_are_all_0_or_all_1_have_the_interval_of_clopper_and_pearson(num: int) -> None:
    """At its upper bound, no success in `num` trials has a probability of 2.5%."""
    none, all_ = share_interval(np.zeros(num)), share_interval(np.ones(num))
    assert (none.mean, none.low) == (0, 0)
    assert binomial_quantile(num, none.high, 0.0249) == 0
    assert binomial_quantile(num, none.high, 0.0251) > 0
    assert (all_.mean, all_.high) == (1, 1)
    assert all_.low == pytest.approx(1 - none.high)


def test_none_of_79_is_at_most_4_6_percent() -> None:
    """1 - 0.025 ** (1 / 79)."""
    assert share_interval(np.zeros(79)).high == pytest.approx(0.04562, abs=1e-5)


def test_equal_shares_allow_for_values_that_were_not_seen() -> None:
    """With ten halves, at most 30.85% have another value, 0 or 1."""
    assert share_interval(np.full(10, 0.5)) == Interval(
        0.5, pytest.approx(0.5 - 0.30850 / 2, abs=1e-5), pytest.approx(0.5 + 0.30850 / 2, abs=1e-5)
    )


def test_other_shares_are_resampled() -> None:
    values = np.repeat([1.0, 0.0], [15, 35])
    assert share_interval(values, 500) == bootstrap_interval(values, 500)
    base = np.repeat([0.0, 1.0], [25, 25])
    assert paired_share_interval(values, base) == paired_interval(values, base)


def test_shares_that_differ_only_by_rounding_are_equal() -> None:
    """1 - 1/3 and 2/3 - 0 differ in the last bit."""
    values, base = np.array([1.0, 2 / 3] * 15), np.array([1 / 3, 0.0] * 15)
    assert len(set(values - base)) == 2
    found = paired_share_interval(values, base)
    assert found.low == pytest.approx(2 / 3 - 0.11570 * (2 / 3 + 1), abs=1e-5)
    assert found.high == pytest.approx(2 / 3 + 0.11570 / 3, abs=1e-5)


def test_one_right_of_a_hundred_allows_for_more_that_were_not_seen() -> None:
    """Resampling gives 0 to 3%; 3.62% more may be right: 0.01 + 0.0362 * 0.99."""
    found = share_interval(np.eye(1, 100)[0])
    assert (found.mean, found.low) == (0.01, 0.0)
    assert found.high == pytest.approx(0.01 + 0.036217 * 0.99, abs=1e-5)


@pytest.mark.parametrize(("num", "shown"), [(2, "open"), (4, "open"), (9, "better")])
def test_a_few_almost_equal_differences_show_nothing(num: int, shown: str) -> None:
    """Their mean is 0.55; with nine, at most 33.6% may be -1: 0.55 - 0.336 * 1.55 = 0.03."""
    differences = np.linspace(0.5, 0.6, num)
    assert verdict(paired_share_interval(differences, np.zeros(num))) == shown


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 5, 10, 30])
def test_an_interval_of_few_shares_covers_the_mean(num: int) -> None:
    """Of a skewed and of a symmetric distribution; resampling alone covers 46% to 93%."""
    rng = np.random.default_rng(1)
    for a, b in ((1, 6), (2, 2)):
        drawn = [share_interval(rng.beta(a, b, num), 500) for _ in range(300)]
        assert np.mean([i.low <= a / (a + b) <= i.high for i in drawn]) > 0.92


@pytest.mark.slow
def test_an_interval_of_few_groups_covers_the_mean() -> None:
    """Both sides get the same expected share; answers within a group of four agree."""
    rng, covered = np.random.default_rng(1), []
    groups = [i // 4 for i in range(40)]
    for _ in range(300):
        odds = rng.normal(size=10).repeat(4)
        sides = (rng.random(40) < 1 / (1 + np.exp(sign * odds)) for sign in (1, -1))
        found = paired_share_interval(*(side.astype(float) for side in sides), groups)
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) > 0.92


def test_equal_differences_allow_for_others_that_were_not_seen() -> None:
    """With 30 problems, at most 11.57% have another difference, from -1 to 1."""
    ones, none = np.ones(30), np.zeros(30)
    unseen = pytest.approx(0.11570, abs=1e-5)
    equal = paired_share_interval(ones, ones)
    assert (equal.mean, -equal.low, equal.high) == (0, unseen, unseen)
    better, worse = paired_share_interval(ones, none), paired_share_interval(none, ones)
    assert (better.mean, (1 - better.low) / 2, better.high) == (1, unseen, 1)
    assert (worse.mean, worse.low, (worse.high + 1) / 2) == (-1, -1, unseen)


# ---- groups ----


@pytest.mark.parametrize("values", [[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0], [0.5, 0.5, 0.5]])
def test_copies_of_a_problem_do_not_narrow_an_interval(values: list[float]) -> None:
    """Four equal values in each group give the interval of the groups."""
    once, groups = np.array(values, float), np.repeat(range(len(values)), 4)
    four = np.repeat(once, 4)
    assert share_interval(four, groups=groups) == share_interval(once)
    assert bootstrap_interval(four, groups=groups) == bootstrap_interval(once)
    paired = paired_share_interval(four, np.zeros_like(four), groups)
    assert paired == paired_share_interval(once, np.zeros_like(once))


def test_a_resample_of_groups_has_all_values_of_each() -> None:
    """Of a (two ones) and b (a zero), a resample has mean 1, 2/3 or 0."""
    found = bootstrap_interval(array(1, 1, 0), groups="aab")
    assert (found.mean, found.low, found.high) == (pytest.approx(2 / 3), 0, 1)


@pytest.mark.parametrize(("num", "shown"), [(5, "open"), (6, "better")])
def test_few_wins_are_not_significant(num: int, shown: str) -> None:
    """The sign test: five wins of five have a probability of 1/32 by chance, six of six 1/64."""
    assert verdict(paired_share_interval(np.ones(num), np.zeros(num))) == shown


def test_values_outside_0_to_1_are_refused_as_shares() -> None:
    with pytest.raises(InputError, match=r"values\[1\] is 1.5, expected a share from 0 to 1"):
        share_interval(array(0, 1.5))
    with pytest.raises(InputError, match=r"baseline\[0\] is -0.5"):
        paired_share_interval(array(0), array(-0.5))
    with pytest.raises(InputError, match="values has 2 problems and baseline 1"):
        paired_share_interval(array(0, 1), array(0))
    assert share_interval(array(0, 1 + 1e-12)).high == pytest.approx(1)  # as rounding may give


# ---- pairwise_auc ----


def test_auc_equals_that_by_hand() -> None:
    """Pairs (right, wrong): (3, 1) won, (3, 3) tied, (2, 1) won, (2, 3) lost: 2.5 of 4."""
    scores, correct = array(3, 1, 2, 3), np.array([True, False, True, False])
    assert pairwise_auc([scores], [correct]).tolist() == [0.625]


def test_auc_of_perfect_reversed_and_tied_scores() -> None:
    correct = [np.array([False, True, False, True])] * 3
    scores = [array(-9, -1, -8, -2), array(9, 1, 8, 2), array(5, 5, 5, 5)]
    assert pairwise_auc(scores, correct).tolist() == [1.0, 0.0, 0.5]


def test_auc_of_a_problem_without_both_kinds_is_nan() -> None:
    scores = [array(1, 2), array(1, 2), array(), array(1, 2)]
    correct = [np.array(labels, dtype=bool) for labels in ([1, 1], [0, 0], [], [0, 1])]
    np.testing.assert_array_equal(pairwise_auc(scores, correct), [math.nan] * 3 + [1.0])


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(5)
    scores = [rng.integers(0, 6, size).astype(np.float64) for size in (5, 30, 64)]
    correct = [np.arange(len(s)) % 3 == 0 for s in scores]
    expected = []
    for one, labels in zip(scores, correct, strict=True):
        pairs = list(itertools.product(one[labels], one[~labels]))
        expected.append(sum((r > w) + 0.5 * (r == w) for r, w in pairs) / len(pairs))
    assert pairwise_auc(scores, correct).tolist() == pytest.approx(expected)


def test_auc_accepts_infinite_scores() -> None:
    scores = array(-math.inf, -3, -math.inf)
    assert pairwise_auc([scores], [np.array([False, True, True])]).tolist() == [0.75]


def test_auc_refuses_an_undefined_score() -> None:
    right = np.array([True, False])
    with pytest.raises(InputError, match="problem 1 has a score that is NaN"):
        pairwise_auc([array(1, 2), array(1, math.nan)], [right, right])


def test_auc_needs_labels_for_every_problem() -> None:
    with pytest.raises(ValueError, match="shorter"):
        pairwise_auc([array(1, 2), array(2, 1)], [np.array([True, False])])


def test_auc_reads_labels_of_0_and_1() -> None:
    assert pairwise_auc([array(3, 1, 2)], [np.array([1, 0, 0])]).tolist() == [1.0]


# ---- auc_interval ----


def test_auc_interval_leaves_out_problems_without_both_kinds() -> None:
    """The AUCs are 1, 0 and none; resampling {1, 0} gives the means 0, 1/2 and 1."""
    scores = [array(1, 2), array(2, 1), array(1, 2)]
    correct = [np.array(labels) for labels in ([False, True], [False, True], [True, True])]
    assert auc_interval(scores, correct) == Interval(0.5, 0.0, 1.0)


def test_auc_interval_requires_a_problem_of_both_kinds() -> None:
    with pytest.raises(InputError, match="none of the 1 problems"):
        auc_interval([array(1, 2)], [np.array([True, True])])
