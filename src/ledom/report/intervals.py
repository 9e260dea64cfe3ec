"""95% confidence intervals by bootstrap over problems, and pairwise AUC.

Problems are resampled, never candidates: the candidates of one problem are not independent of each
other. Where problems share a source, such as questions about one document, `groups` [num_problems]
names it, and whole groups are drawn, with all of their values (a cluster bootstrap).

Resampling knows only the values seen: equal ones give an interval of zero width, and a few almost
equal ones a very narrow one. The range of shares is known, so `share_interval` and
`paired_share_interval` also allow for values that the sample does not have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.errors import InputError
from ledom.report.results import Interval

__all__ = [
    "BoolArray",
    "FloatArray",
    "auc_interval",
    "bootstrap_interval",
    "paired_interval",
    "paired_share_interval",
    "pairwise_auc",
    "share_interval",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CHUNK_SIZE = 2**15
"""Values drawn at a time (256 KiB), so that memory does not grow with problems x resamples."""
_LEVEL = 0.95
_ROUNDING = 1e-9
"""How far rounding may move a computed share out of its range."""
_MOST_KEPT = 2**24
"""Up to this many draws (32 MiB) are kept in memory, for the hundreds of intervals of a report."""


def bootstrap_interval(
    values: FloatArray, num_resamples: int = 10_000, groups: Sequence[Hashable] | None = None
) -> Interval:
    """The mean of `values` [num_problems] with its percentile-bootstrap interval.

    Each resample draws num_problems values with replacement; the bounds are the 2.5% and 97.5%
    quantiles of the resamples' means. The same arguments give the same interval.
    See Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Raises `InputError` for values that are empty, not finite or not one-dimensional.

    >>> found = bootstrap_interval(np.array([1.0, 0.0, 1.0, 1.0]))
    >>> found.mean, found.low < 0.75 < found.high
    (0.75, True)
    >>> bootstrap_interval(np.array([1.0, 1.0, 0.0, 0.0]), groups="aabb")
    Interval(mean=0.5, low=0.0, high=1.0)
    """
    values = _checked(values, "values")
    if groups is None or len({*groups}) == len(values):
        means = _resampled_means(values, num_resamples)
    else:
        sums, sizes = _sums(values, groups)
        means = _resampled_means(sums, num_resamples) / _resampled_means(sizes, num_resamples)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def paired_interval(
    values: FloatArray, baseline: FloatArray, num_resamples: int = 10_000
) -> Interval:
    """The mean of `values - baseline` (each [num_problems], same problems in the same order).

    Both sides of a problem are resampled together, so what makes a problem hard for both cancels
    out. Raises `InputError` as `bootstrap_interval` does, and for sides of different lengths.

    >>> paired_interval(np.array([0.5, 0.9]), np.array([0.25, 0.65]))  # always 0.25 better
    Interval(mean=0.25, low=0.25, high=0.25)
    """
    return bootstrap_interval(_differences(values, baseline), num_resamples)


def share_interval(
    values: FloatArray, num_resamples: int = 10_000, groups: Sequence[Hashable] | None = None
) -> Interval:
    """The mean of `values` [num_problems], each from 0 to 1, with its interval.

    This is `bootstrap_interval`, but never narrower than a bound that allows for values not seen: a
    share u of all problems may have the value 0 (or 1) instead, where (1 - u)^num_problems = 0.025
    (with `groups`, their number counts). For values that are all 0, or all 1, this is the exact
    interval of Clopper and Pearson (1934).

    Raises `InputError` as `bootstrap_interval` does, and for a value out of range.

    >>> found = share_interval(np.zeros(79))
    >>> found.low, round(found.high, 3)
    (0.0, 0.046)
    """
    return _interval_within(0.0, _checked(values, "values", are_shares=True), num_resamples, groups)


def paired_share_interval(
    values: FloatArray, baseline: FloatArray, groups: Sequence[Hashable] | None = None
) -> Interval:
    """`paired_interval` for shares; the difference on an unseen problem may be from -1 to 1.

    >>> found = paired_share_interval(np.ones(30), np.zeros(30))
    >>> found.mean, round(found.low, 3), found.high
    (1.0, 0.769, 1.0)
    """
    differences = _differences(values, baseline, are_shares=True)
    return _interval_within(-1.0, differences, groups=groups)


def _interval_within(
    least: float,
    values: FloatArray,
    num_resamples: int = 10_000,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The interval of values that lie between `least` and 1."""
    found = bootstrap_interval(values, num_resamples, groups)
    count = len(values) if groups is None else len({*groups})
    unseen = 1 - ((1 - _LEVEL) / 2) ** (1 / count)
    low = min(found.low, found.mean - unseen * (found.mean - least))
    high = max(found.high, found.mean + unseen * (1 - found.mean))
    return Interval(found.mean, low, high)


def pairwise_auc(scores: Sequence[FloatArray], correct: Sequence[BoolArray]) -> FloatArray:
    """The area under the ROC curve of each problem [num_problems]; NaN without both kinds.

    `scores` and `correct` hold an array [num_candidates] per problem. The area is the share of
    (right, wrong) pairs of candidates in which the right one scores higher; a tie counts 1/2.

    Raises `InputError` for a score that is NaN; infinite ones are allowed.

    >>> pairwise_auc([np.array([3.0, 1.0, 2.0])], [np.array([True, False, False])])
    array([1.])
    """
    problems = zip(scores, correct, strict=True)
    return np.array([_auc(number, *problem) for number, problem in enumerate(problems)])


def auc_interval(
    scores: Sequence[FloatArray],
    correct: Sequence[BoolArray],
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean `pairwise_auc` over the problems that have right and wrong candidates.

    Raises `InputError` as `pairwise_auc` does, and if no problem has both kinds.

    >>> right = np.array([True, False])
    >>> auc_interval([np.array([2.0, 1.0]), np.array([0.0, 3.0])], [right, right]).mean
    0.5
    """
    auc = pairwise_auc(scores, correct)
    known = np.flatnonzero(~np.isnan(auc)).tolist()
    if len(known) == 0:
        raise InputError(
            f"none of the {len(scores)} problems has both right and wrong candidates; "
            "the AUC needs at least one that does"
        )
    return share_interval(auc[known], groups=None if groups is None else [groups[i] for i in known])


def _checked(values: FloatArray, name: str, are_shares: bool = False) -> FloatArray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"{name} has shape {values.shape}, expected [num_problems], not empty")
    bad, expected = ~np.isfinite(values), "a finite number"
    if are_shares and not bad.any():
        bad, expected = (values < -_ROUNDING) | (values > 1 + _ROUNDING), "a share from 0 to 1"
    if bad.any():
        index = int(bad.argmax())
        raise InputError(f"{name}[{index}] is {values[index]}, expected {expected}")
    return values


def _differences(values: FloatArray, baseline: FloatArray, are_shares: bool = False) -> FloatArray:
    values = _checked(values, "values", are_shares)
    baseline = _checked(baseline, "baseline", are_shares)
    if len(values) != len(baseline):
        raise InputError(
            f"values has {len(values)} problems and baseline {len(baseline)}; "
            "give both for the same problems in the same order"
        )
    return values - baseline


def _sums(values: FloatArray, groups: Sequence[Hashable]) -> tuple[FloatArray, FloatArray]:
    """The sum of each group's values, and their number."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    places = [numbers[group] for group in groups]
    sums, sizes = np.bincount(places, values), np.bincount(places)
    return sums.astype(np.float64), sizes.astype(np.float64)


def _resampled_means(values: FloatArray, num_resamples: int) -> FloatArray:
    num_problems = len(values)
    few = num_problems * num_resamples <= _MOST_KEPT
    means = np.empty(num_resamples)
    start = 0
    for drawn in (_kept_draws if few else _draws)(num_problems, num_resamples):
        # No index is out of range, and "clip" skips the check, which would take most of the time.
        means[start : start + len(drawn)] = values.take(drawn, mode="clip").mean(axis=1)
        start += len(drawn)
    return means


def _draws(num_problems: int, num_resamples: int) -> Iterator[NDArray[np.integer[Any]]]:
    """The indices of each resample's problems, in chunks [rows, num_problems]."""
    rng = np.random.default_rng(0)
    rows = max(1, CHUNK_SIZE // num_problems)
    # Narrow integers are drawn several times as fast as 64-bit ones.
    dtype = np.uint16 if num_problems <= 2**16 else np.int64
    for start in range(0, num_resamples, rows):
        shape = (min(rows, num_resamples - start), num_problems)
        yield rng.integers(num_problems, size=shape, dtype=dtype)


@lru_cache(maxsize=2)
def _kept_draws(num_problems: int, num_resamples: int) -> list[NDArray[np.integer[Any]]]:
    return list(_draws(num_problems, num_resamples))


def _auc(number: int, scores: FloatArray, correct: BoolArray) -> float:
    correct = np.asarray(correct, bool)  # 0 and 1 would be taken for places
    if np.isnan(scores).any():
        raise InputError(f"problem {number} has a score that is NaN; score its candidates again")
    right, wrong = scores[correct], np.sort(scores[~correct])
    if len(right) == 0 or len(wrong) == 0:
        return float("nan")
    # Twice the number of wrong ones that each right one beats, a tie counting once.
    beaten = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(beaten.mean() / (2 * len(wrong)))
