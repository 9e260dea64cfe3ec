"""What a report says first: one sentence, five rows, what the sample can show, which term matters.

Everything here is a pure function of the report object, so that the page, the Markdown and the
terminal say the same. The strategy of the sentence is the report's `chosen`, which was named before
the problems were seen; the best of all strategies on these problems is not looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledom.report.numbers import Bounds, interval, number, percent

__all__ = ["Claim", "Row", "Summary", "summarize"]

_NAMES = {
    "greedy": "the greedy answer",
    "random": "a random candidate",
    "majority": "majority voting",
    "reverse reward": "Reverse Reward",
    "reverse only": "Reverse Reward alone, log P(x|y)",
    "noisy channel": "Reverse Reward with log P(y) as a third term",
    "vote, all terms": "voting weighted by every score",
    "vote, reverse reward": "voting weighted by Reverse Reward",
    "vote, reverse tuned": "voting weighted by the reverse model's scores",
    "vote, reverse only": "voting weighted by log P(x|y)",
    "vote, all + external scores": "voting weighted by every score and the external scores",
    "vote, reverse + external scores": "voting weighted by the reverse and the external scores",
}
_OPPONENTS = ("greedy", "majority", "random")
_REWARDS = ("reverse reward", "reverse only")
_TERMS = {
    "forward": "log P(y|x), the answer under the forward model",
    "reverse": "log P(x|y), the question under the reverse model",
    "prior": "log P(y), the answer under the reverse model",
}
_FEW = 30  # problems below which a percentile bootstrap is rough
_DETECTABLE = 2.8 / 1.96  # half-widths: what four of five samples show (power 0.8, level 0.05)


@dataclass(frozen=True)
class Row:
    """One of the first strategies: its name, accuracy, and paired differences."""

    label: str
    strategy: str
    is_chosen: bool
    accuracy: Bounds
    versus: Mapping[str, Bounds]
    """By opponent, those that the other rows have."""


@dataclass(frozen=True)
class Claim:
    """A difference between two strategies that was named before the test."""

    claim: str
    difference: Bounds


@dataclass(frozen=True)
class Summary:
    """The first screen of a report, in words and rows."""

    sentence: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    """The opponents that the rows are compared with."""
    opponent: str
    """The one that the sentence and the picture compare with; empty for none."""
    opponent_name: str
    """The same as it is said."""
    claims: tuple[Claim, ...]
    sample: str
    signal: str


def summarize(report: Mapping[str, Any]) -> Summary:
    """The first screen of a report object; keys that it lacks leave their part empty."""
    known = {str(row.get("name")): row for row in report.get("strategies") or []}
    chosen = known.get(str(report.get("chosen")))
    reward = next((name for name in _REWARDS if name in known), "")
    names = list(dict.fromkeys(["greedy", "random", "majority", reward, _name(chosen)]))
    shown = [known[name] for name in names if name in known]
    versus = (chosen or {}).get("versus") or {}
    opponent = next((name for name in _OPPONENTS if name in versus), "")
    columns = [name for name in ("greedy", "majority") if any(_versus(s, name) for s in shown)]
    if not columns and any(_versus(s, "random") for s in shown):
        columns = ["random"]
    against = Bounds.read(versus.get(opponent))
    return Summary(
        sentence=_sentence(chosen, opponent, report),
        rows=tuple(_row(strategy, columns, strategy is chosen) for strategy in shown),
        columns=tuple(columns),
        opponent=opponent,
        opponent_name=_plain(opponent),
        claims=tuple(
            Claim(str(row.get("claim")), Bounds.read(row.get("difference")))
            for row in report.get("headline") or []
            if row.get("main")
        ),
        sample=_sample(_labeled(report), against) if chosen else "",
        signal=_signal(report.get("auc") or []),
    )


def _name(strategy: Mapping[str, Any] | None) -> str:
    return str((strategy or {}).get("name") or "")


def _plain(name: str) -> str:
    return _NAMES.get(
        name, f"the strategy \N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"
    )


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _versus(strategy: Mapping[str, Any], name: str) -> Any:
    return (strategy.get("versus") or {}).get(name)


def _row(strategy: Mapping[str, Any], columns: Sequence[str], is_chosen: bool) -> Row:
    name = _name(strategy)
    differences = {other: _versus(strategy, other) for other in columns}
    return Row(
        label=_upper(_plain(name)),
        strategy=name,
        is_chosen=is_chosen,
        accuracy=Bounds.read(strategy.get("accuracy")),
        versus={other: Bounds.read(value) for other, value in differences.items() if value},
    )


def _labeled(report: Mapping[str, Any]) -> int:
    """How many problems the accuracies are of."""
    labeled = report.get("num_labeled")
    return int((report.get("num_problems") or 0) if labeled is None else labeled)


def _sentence(chosen: Mapping[str, Any] | None, opponent: str, report: Mapping[str, Any]) -> str:
    """Who was right how often, and by how much more than whom."""
    total, labeled = report.get("num_problems") or 0, _labeled(report)
    if report.get("num_labeled") == 0:
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
    right = percent(Bounds.read(chosen.get("accuracy")).mean)
    sentence = f"{_upper(_plain(_name(chosen)))} is right on {right} % of {of}"
    against = Bounds.read(_versus(chosen, opponent))
    if against.mean is None or against.low is None or against.high is None:
        return sentence + "."
    more = "more" if against.mean >= 0 else "fewer"
    low, high = sorted((against.low, against.high))
    if against.mean < 0:
        low, high = -high, -low
    chance = "; it includes 0, so this may be chance" if against.verdict == "open" else ""
    return (
        f"{sentence}, {number(100 * abs(against.mean), 1)} points {more} than {_plain(opponent)} "
        f"(95 % interval {number(100 * low, 1)} to {number(100 * high, 1)}{chance})."
    )


def _sample(num_problems: int, against: Bounds) -> str:
    """What differences so many problems can show, from the interval of the first one."""
    if against.low is None or against.high is None:
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
        f"{number(points, 1)} points four times out of five, and mostly misses a smaller one. An "
        "interval that includes 0 shows neither a gain nor that there is none; other problems and "
        "other models may differ."
    )


def _signal(auc: Sequence[Mapping[str, Any]]) -> str:
    """Which single term tells right from wrong best."""
    found = [(str(row.get("term")), Bounds.read(row.get("auc"))) for row in auc]
    terms = [(name, b) for name, b in found if name in _TERMS and b.mean is not None]
    if not terms:
        return ""
    terms.sort(key=lambda term: -(term[1].mean or 0.0))
    (best, first), rest = terms[0], terms[1:]
    others = "; ".join(f"{_TERMS[name].split(',')[0]}: {interval(b, 2)}" for name, b in rest)
    measured = f"{interval(first, 2)}{f' ({others})' if others else ''}"
    if first.low is None or first.low <= 0.5:
        return (
            "No single term is shown to tell right answers from wrong ones. The best, "
            f"{_TERMS[best]}, has a pairwise AUC of {measured}; 0.5 is chance."
        )
    ahead = all(b.high is None or b.high < first.low for _, b in rest)
    carries = "carries most of the signal" if ahead else "does best, but not clearly"
    return (
        f"Of the single terms, {_TERMS[best]}, {carries}: it puts a right answer above a wrong "
        f"one with a pairwise AUC of {measured}; 0.5 is chance."
    )
