"""The first screen of a report: the main result, what the sample can show, which term matters.

The page, the Markdown and the terminal all show this summary, which is a pure function of the
report. The main result is that of the report's `chosen` strategy, which was named before the
problems were seen, not that of the strategy that did best on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ledom.report.formatting import interval, number, percent
from ledom.report.results import AucResult, Difference, Interval, SelectionReport, StrategyResult

__all__ = ["Row", "Summary", "summarize"]

_NAMES = {
    "greedy": "the greedy answer",
    "random": "a random candidate",
    "majority": "majority voting",
    "reverse_reward": "Reverse Reward",
    "reverse_only": "Reverse Reward alone, log P(x|y)",
    "noisy_channel": "Reverse Reward with log P(y) as a third term",
    "vote_all_terms": "voting weighted by every score",
    "vote_reverse_reward": "voting weighted by Reverse Reward",
    "vote_reverse_tuned": "voting weighted by the reverse model's scores",
    "vote_reverse_only": "voting weighted by log P(x|y)",
    "vote_all_external": "voting weighted by every score and the external scores",
    "vote_reverse_external": "voting weighted by the reverse and the external scores",
}
_OPPONENTS = ("greedy", "majority", "random")
_REWARDS = ("reverse_reward", "reverse_only")
_TERMS = {
    "forward": "log P(y|x), the answer under the forward model",
    "reverse": "log P(x|y), the question under the reverse model",
    "prior": "log P(y), the answer under the reverse model",
}
_FEW = 30  # problems, below which a percentile bootstrap is rough
_DETECTABLE = 2.8 / 1.96
"""Half-widths of an interval: the true difference that four of five samples detect (power 0.8,
level 0.05)."""


@dataclass(frozen=True)
class Row:
    """A strategy on the first screen."""

    label: str
    strategy: str
    is_chosen: bool
    accuracy: Interval
    versus: Mapping[str, Interval]
    """Paired differences, by the opponent's id."""


@dataclass(frozen=True)
class Summary:
    """The first screen of a report, in words and rows."""

    sentence: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    """The ids of the opponents that the rows are compared with."""
    opponent: str
    """The id of the opponent in the sentence and the figure; empty without one."""
    opponent_name: str
    """The same opponent in words."""
    claims: tuple[Difference, ...]
    """The main claims."""
    sample: str
    """What differences a sample of this size can show."""
    signal: str
    """Which single term best tells right answers from wrong ones."""


def summarize(report: SelectionReport) -> Summary:
    """The first screen of a report; a part that was not measured is empty.

    >>> unlabeled = SelectionReport(title="", warning=None, num_problems=1, num_labeled=0)
    >>> summarize(unlabeled).sentence  # doctest: +ELLIPSIS
    'The problem has no right answer to compare with, so nothing was measured: ...'
    """
    known = {strategy.id: strategy for strategy in report.strategies}
    chosen = known.get(report.chosen)
    reward = next((name for name in _REWARDS if name in known), "")
    names = dict.fromkeys(["greedy", "random", "majority", reward, report.chosen])
    shown = [known[name] for name in names if name in known]
    versus = chosen.versus if chosen else {}
    opponent = next((name for name in _OPPONENTS if name in versus), "")
    return Summary(
        sentence=_sentence(chosen, known.get(opponent), report),
        rows=tuple(_row(strategy, strategy is chosen) for strategy in shown),
        columns=_columns(shown),
        opponent=opponent,
        opponent_name=_plain(known.get(opponent)),
        claims=tuple(claim for claim in report.headline if claim.main),
        sample=_sample(_labeled(report), versus.get(opponent)),
        signal=_signal(report.auc),
    )


def _columns(shown: Sequence[StrategyResult]) -> tuple[str, ...]:
    """The opponents of any row; the random candidate only if there is no other."""
    known = {name for strategy in shown for name in strategy.versus}
    columns = tuple(name for name in ("greedy", "majority") if name in known)
    return columns or tuple(known & {"random"})


def _plain(strategy: StrategyResult | None) -> str:
    """A strategy's name within a sentence."""
    if strategy is None:
        return ""
    return _NAMES.get(strategy.id, f"the strategy “{strategy.label}”")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _row(strategy: StrategyResult, is_chosen: bool) -> Row:
    label = _upper(_plain(strategy))
    return Row(label, strategy.id, is_chosen, strategy.accuracy, strategy.versus)


def _labeled(report: SelectionReport) -> int:
    """The number of problems that the accuracies cover."""
    return report.num_problems if report.num_labeled is None else report.num_labeled


def _sentence(
    chosen: StrategyResult | None, opponent: StrategyResult | None, report: SelectionReport
) -> str:
    """How often the chosen strategy was right, and how that compares with the opponent."""
    total, labeled = report.num_problems, _labeled(report)
    if report.num_labeled == 0:
        whose = "The problem has no" if total == 1 else f"None of the {total} problems has a"
        return (
            f"{whose} right answer to compare with, so nothing was measured: below are the chosen "
            "answers."
        )
    if chosen is None:
        return ""
    of = "1 problem" if total == 1 else f"the {total} problems"
    if labeled != total:
        of = f"the {labeled} of {total} labeled problems"
    right = percent(chosen.accuracy.mean)
    sentence = f"{_upper(_plain(chosen))} is right on {right}% of {of}"
    if opponent is None:
        return sentence + "."
    return f"{sentence}, {_compared(chosen.versus[opponent.id], _plain(opponent))}."


def _compared(against: Interval, opponent: str) -> str:
    """`8.3 points more than the greedy answer (95% interval 1.0 to 15.6)`."""
    more, sign = ("more", 1) if against.mean >= 0 else ("fewer", -1)
    low, high = sorted((100 * sign * against.low, 100 * sign * against.high))
    chance = "; it includes 0, so this may be chance" if against.verdict == "open" else ""
    return (
        f"{number(100 * abs(against.mean), 1)} points {more} than {opponent} "
        f"(95% interval {number(low, 1)} to {number(high, 1)}{chance})"
    )


def _sample(num_problems: int, against: Interval | None) -> str:
    """What differences a sample of this size can show, going by the width of one interval."""
    if against is None:
        return ""
    if against.low == against.high:
        return (
            "Both chose equally well on every problem, so this sample cannot tell them apart, and "
            "does not show that they are equal."
        )
    points = 100 * _DETECTABLE * (against.high - against.low) / 2
    what = "1 problem" if num_problems == 1 else f"{num_problems} problems"
    rough = "Fewer than 30 problems: every interval is rough. " if num_problems < _FEW else ""
    return (
        f"{rough}A sample of {what} shows a true difference of about "
        f"{number(points, 1)} points four times out of five, and usually misses a smaller one. An "
        "interval that includes 0 shows neither a gain nor the lack of one. Other problems and "
        "other models may differ."
    )


def _signal(auc: Sequence[AucResult]) -> str:
    """Which single term best tells right answers from wrong ones."""
    terms = [(row.term, row.auc) for row in auc if row.term and row.term in _TERMS]
    if not terms:
        return ""
    terms.sort(key=lambda term: -term[1].mean)
    (best, first), rest = terms[0], terms[1:]
    others = "; ".join(f"{_TERMS[name].split(',')[0]}: {interval(b, 2)}" for name, b in rest)
    measured = f"{interval(first, 2)}{f' ({others})' if others else ''}"
    if first.low <= 0.5:
        return (
            "No single term is shown to tell right answers from wrong ones. The best, "
            f"{_TERMS[best]}, has a pairwise AUC of {measured}; 0.5 is chance."
        )
    ahead = all(b.high < first.low for _, b in rest)
    carries = "carries most of the signal" if ahead else "does best, but not clearly"
    return (
        f"Of the single terms, {_TERMS[best]}, {carries}: it puts a right answer above a wrong "
        f"one with a pairwise AUC of {measured}; 0.5 is chance."
    )
