"""The report of `ledom rerank` and `ledom explain` as files: report.json, report.md, report.html.

No statistics are computed here. The page, the Markdown and the terminal open with the same summary.
Its main result is that of the report's `chosen` strategy, which was fixed before the problems were
seen, not that of the strategy that did best on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ledom.report import figures, results
from ledom.report.formatting import (
    accuracy,
    bounds,
    clean,
    count,
    interval,
    number,
    percent,
    render_template,
    to_json,
    verdict,
    write_pages,
)
from ledom.report.words import Word, compare, question_words

__all__ = ["Summary", "render", "summarize", "write_report"]

_FORMAT = 2  # of report.json
_NUM_GAP_WORDS = 6  # listed as the main differences
_BASELINES = ("greedy", "random", "majority")
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
_FEW = 30  # with fewer problems, a percentile bootstrap is rough
_DETECTABLE = 2.8 / 1.96
"""Half-widths of an interval: four of five samples detect so large a difference (level 0.05)."""


def write_report(folder: Path, report: results.SelectionReport) -> Path:
    """Write report.json, report.md and report.html as `write_pages` does; returns the page's path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(Path(folder), results.SelectionReport(title="Two", warning=None))
    ...     page.name, sorted(file.suffix for file in Path(folder).iterdir())
    ('report.html', ['.html', '.json', '.md'])
    """
    contents = {"format": _FORMAT, **to_json(report)}
    return write_pages(folder, "report", contents, partial(render, report))


def render(report: results.SelectionReport, kind: str = "html") -> str:
    """The report as Markdown (`md`), or as an `html` page that needs no network and no script.

    >>> page = render(results.SelectionReport(title="<b>Two</b> of three", warning=None))
    >>> "&lt;b&gt;Two" in page, "<script" in page
    (True, False)
    """
    report = clean(report)
    drawn = _figures(report) if kind == "html" else {}
    return render_template(f"selection.{kind}", _view(report), drawn)


def _figures(report: results.SelectionReport) -> dict[str, str]:
    summary = summarize(report)
    differences = {
        label: strategy.versus[summary.opponent]
        for label, strategy in summary.rows.items()
        if summary.opponent in strategy.versus
    }
    return {
        "differences": figures.differences_figure(differences, summary.opponent_name),
        "strategies": figures.strategies_figure(report.strategies),
        "by_n": figures.by_n_figure(report.accuracy_by_n, report.strategies),
        "by_lambda": figures.by_lambda_figure(report.accuracy_by_lambda),
        "reliability": figures.reliability_figure(report.reliability),
    }


# --- the summary ---


@dataclass(frozen=True)
class Summary:
    """The first screen of a report, in words and rows."""

    sentence: str
    rows: Mapping[str, results.StrategyResult]
    """The strategies on the first screen, by their display names."""
    columns: tuple[str, ...]
    """The ids of the opponents that the rows are compared with."""
    opponent: str
    """The id of the opponent in the sentence and the figure; empty without one."""
    opponent_name: str
    """The same opponent in words."""
    claims: tuple[results.Difference, ...]
    """The main claims."""
    sample: str
    """What differences a sample of this size can show."""
    signal: str
    """Which single term best tells right answers from wrong ones."""


def summarize(report: results.SelectionReport) -> Summary:
    """The first screen of a report; a part that was not measured is empty.

    >>> unlabeled = results.SelectionReport(title="", warning=None, num_problems=1, num_labeled=0)
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
        rows={_upper(_plain(strategy)): strategy for strategy in shown},
        columns=tuple(
            name for name in ("greedy", "majority") if any(name in s.versus for s in shown)
        ),
        opponent=opponent,
        opponent_name=_plain(known.get(opponent)),
        claims=tuple(claim for claim in report.headline if claim.main),
        sample=_sample(_labeled(report), versus.get(opponent)),
        signal=_signal(report.auc),
    )


def _plain(strategy: results.StrategyResult | None) -> str:
    """A strategy's name within a sentence."""
    if strategy is None:
        return ""
    return _NAMES.get(strategy.id, f"the strategy “{strategy.label}”")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _labeled(report: results.SelectionReport) -> int:
    """The number of problems that the accuracies cover."""
    return report.num_problems if report.num_labeled is None else report.num_labeled


def _sentence(
    chosen: results.StrategyResult | None,
    opponent: results.StrategyResult | None,
    report: results.SelectionReport,
) -> str:
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
        of = f"the {labeled} labeled problem{'' if labeled == 1 else 's'} of {total}"
    right = percent(chosen.accuracy.mean)
    sentence = f"{_upper(_plain(chosen))} is right on {right}% of {of}"
    if opponent is None:
        return sentence + "."
    return f"{sentence}, {_compared(chosen.versus[opponent.id], _plain(opponent))}."


def _compared(against: results.Interval, opponent: str) -> str:
    """`8.3 points more than the greedy answer (95% interval 1.0 to 15.6)`."""
    more, sign = ("more", 1) if against.mean >= 0 else ("fewer", -1)
    low, high = sorted((100 * sign * against.low, 100 * sign * against.high))
    shown = bounds(results.Interval(100 * sign * against.mean, low, high), 1)
    chance = "; it includes 0, so this may be chance" if verdict(against) == "open" else ""
    return (
        f"{number(100 * abs(against.mean), 1)} points {more} than {opponent} "
        f"(95% interval {shown[0]} to {shown[1]}{chance})"
    )


def _sample(num_problems: int, against: results.Interval | None) -> str:
    """See `Summary.sample`; this goes by the width of one interval."""
    if against is None:
        return ""
    points = 100 * _DETECTABLE * (against.high - against.low) / 2
    what = "1 problem" if num_problems == 1 else f"{num_problems} problems"
    rough = "Fewer than 30 problems: every interval is rough. " if num_problems < _FEW else ""
    if points > 100:
        return f"{rough}A sample of {what} is too small to show any difference."
    return (
        f"{rough}A sample of {what} shows a true difference of about "
        f"{number(points, 1)} points four times out of five, and usually misses a smaller one. An "
        "interval that includes 0 shows neither a gain nor the lack of one. Other problems and "
        "other models may differ."
    )


def _signal(auc: Sequence[results.AucResult]) -> str:
    terms = [(row.term, row.auc) for row in auc if row.term and row.term in _TERMS]
    if not terms:
        return ""
    terms.sort(key=lambda term: -term[1].mean)
    (best, first), rest = terms[0], terms[1:]
    others = "; ".join(f"{_TERMS[name].split(',')[0]}: {interval(b)}" for name, b in rest)
    measured = f"{interval(first)}{f' ({others})' if others else ''}"
    if first.low <= 0.5 + 1e-9:  # up to rounding
        return (
            "No single term is shown to tell right answers from wrong ones. The best, "
            f"{_TERMS[best]}, has a pairwise AUC of {measured}; 0.5 is chance."
        )
    if not rest:
        return (
            f"The only single term, {_TERMS[best]}, puts a right answer above a wrong one with a "
            f"pairwise AUC of {measured}; 0.5 is chance."
        )
    ahead = all(b.high < first.low for _, b in rest)
    carries = "carries most of the signal" if ahead else "does best, but not clearly"
    return (
        f"Of the single terms, {_TERMS[best]}, {carries}: it puts a right answer above a wrong "
        f"one with a pairwise AUC of {measured}; 0.5 is chance."
    )


# --- what both templates show ---


def _view(report: results.SelectionReport) -> dict[str, Any]:
    ranked = sorted(report.strategies, key=lambda strategy: -strategy.accuracy.mean)
    by_kind = {
        heading: [s for s in ranked if s.kind == kind] for kind, heading in figures.KINDS.items()
    }
    compared = {name for s in ranked for name in s.versus}
    cases = [_case(case) for case in report.cases]
    first = next((case for case in cases if not ranked or case["is_telling"]), None)
    return {
        "report": report,
        "summary": summarize(report),
        "groups": {heading: group for heading, group in by_kind.items() if group},
        "baselines": [name for name in _BASELINES if name in compared],
        "auc_table": [
            ["score", "pairwise AUC"],
            *([row.score, interval(row.auc)] for row in report.auc),
        ],
        "cost_table": _cost_table(ranked),
        "group_table": _group_table(report.by_group, {s.id: s.label for s in ranked}),
        "first_case": first,
        "other_cases": [case for case in cases if case is not first],
        "facts": _facts(report),
        "needed": {s.id: _needed(s.needed) for s in ranked if s.needed is not None},
    }


def _cost_table(ranked: Sequence[results.StrategyResult]) -> list[list[str]]:
    """Accuracy and cost per problem; only the head if no cost is known."""
    rows = [
        [
            s.label,
            accuracy(s.accuracy),
            count(s.cost.generated_tokens),
            count(s.cost.scored_tokens),
            count(s.cost.flops),
            number(s.cost.seconds, 3),
        ]
        for s in ranked
        if s.cost is not None
    ]
    return [
        ["strategy", "accuracy, %", "generated tokens", "scored tokens", "FLOPs", "seconds"],
        *rows,
    ]


def _group_table(
    by_group: Sequence[results.GroupResult], labels: Mapping[str, str]
) -> list[list[str]]:
    """Accuracy with a row per strategy and a column per group; transposed if groups are many."""
    if not by_group:
        return []
    present = {name for row in by_group for name in row.accuracy}
    names = [name for name in labels if name in present]
    table = [["strategy", *(f"{row.group} ({row.num_problems})" for row in by_group)]]
    table += [
        [labels[name], *(percent(row.accuracy.get(name)) for row in by_group)] for name in names
    ]
    if len(by_group) > max(len(names), 6):
        table = [list(row) for row in zip(*table, strict=True)]
        table[0][0] = "group"
    return table


def _facts(report: results.SelectionReport) -> list[list[str]]:
    """The models, settings, command and version behind the report, as (name, value)."""
    facts = []
    for role, model in report.models.items():
        size = f" ({count(model.parameters)} parameters)" if model.parameters else ""
        facts.append([f"{role} model", f"{model.name}{size}"])
    for name, value in report.settings.items():
        facts.append([name, f"{value:.4g}" if isinstance(value, float) else value])
    made_by = {"command": report.command, "ledom": report.ledom_version}
    return facts + [[name, value] for name, value in made_by.items() if value]


def _case(case: results.Case) -> dict[str, Any]:
    """A case, with the question's words under the picked and the rejected answer (`panels`)."""
    by_role = {candidate.role: candidate for candidate in case.candidates}
    pair = [by_role[role] for role in ("picked", "rejected") if role in by_role]
    shown = [candidate for candidate in pair if candidate.question_tokens]
    words = [question_words(case.question, candidate.question_tokens) for candidate in shown]
    totals = [candidate.scores["reverse"] for candidate in shown]
    gaps: list[Word] = []
    if len(shown) == 2:
        words, gaps = compare(*words)
    return {
        "case": case,
        "score_names": list(dict.fromkeys(name for c in case.candidates for name in c.scores)),
        "panels": [*zip(shown, totals, words, strict=True)],
        "gaps": gaps[:_NUM_GAP_WORDS],
        "gap_total": totals[0] - totals[1] if len(shown) == 2 else None,
        "is_telling": [candidate.correct for candidate in pair] == [True, False],
    }


def _needed(needed: results.Needed) -> str:
    """`19.2 [18.7, 19.6] of 32 candidates needed, 40.1% [38.8, 41.5] saved`."""
    saved = [percent(bound) for bound in asdict(needed.saved).values()]
    return (
        f"{interval(needed.candidates, 1)} of {needed.of} candidates needed, "
        f"{saved[0]}% [{saved[1]}, {saved[2]}] saved"
    )
