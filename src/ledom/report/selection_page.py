"""The report of `ledom rerank` and `ledom explain` as files: report.json, report.md, report.html.

The two renderings are pure functions of the `SelectionReport`. No statistics are computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ledom.report import plots
from ledom.report.formatting import (
    MISSING,
    accuracy,
    clean,
    count,
    difference,
    escape,
    interval,
    markdown_table,
    number,
    percent,
    render_template,
    write_pages,
)
from ledom.report.results import (
    Case,
    CaseCandidate,
    ChosenAnswer,
    GroupResult,
    Interval,
    Needed,
    SelectionReport,
    StrategyResult,
)
from ledom.report.summary import Summary, summarize
from ledom.report.words import Word, compare, question_words

__all__ = ["render_html", "render_markdown", "write_report"]

NUM_GAP_WORDS = 6  # listed as the main differences

_BASELINES = ("greedy", "random", "majority")


def write_report(folder: Path, report: SelectionReport) -> Path:
    """Write report.json, report.md and report.html into `folder`; returns the page's path.

    Raises `OutputError` if the folder cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(Path(folder), SelectionReport(title="Two of three", warning=None))
    ...     page.name, sorted(file.suffix for file in Path(folder).iterdir())
    ('report.html', ['.html', '.json', '.md'])
    """
    html, markdown = render_html(report), render_markdown(report)
    return write_pages(folder, "report", report, markdown, html)


def render_html(report: SelectionReport) -> str:
    """The report as one page that needs no network and no script.

    >>> page = render_html(SelectionReport(title="<b>Two</b> of three", warning=None))
    >>> "&lt;b&gt;Two" in page, "<script" in page
    (True, False)
    """
    view = _view(report)
    return render_template("selection.html", vars(view), _figures(view))


def render_markdown(report: SelectionReport) -> str:
    """The report as Markdown: the same words, tables and cases, without the figures.

    >>> report = SelectionReport(title="Two of three", warning="The texts are unfamiliar.")
    >>> render_markdown(report).splitlines()[0]
    '# Two of three'
    """
    view = _view(report)
    report, summary = view.report, view.summary
    aucs = [[row.score, interval(row.auc)] for row in report.auc]
    return _joined(
        f"# {escape(report.title)}",
        escape(summary.sentence),
        f"**Warning:** {escape(report.warning)}." if report.warning else "",
        _markdown_claims([(c.claim, c.difference) for c in summary.claims]),
        _table("", _first_rows(summary)),
        _table("", _answer_rows(report.answers)),
        escape(summary.sample),
        escape(summary.signal),
        "\n".join(f"* {escape(note)}" for note in report.notes),
        _headed("## A worked case", [_markdown_case(view.first_case)] if view.first_case else []),
        _table("## All strategies", _strategy_table(view)),
        _headed(
            "## All comparisons",
            [_markdown_claims([(row.claim, row.difference) for row in report.headline])],
        ),
        _table("## Telling right answers from wrong ones", [["score", "pairwise AUC"], *aucs]),
        _table("## What each strategy costs", view.cost_table),
        _table("## Accuracy by group, %", view.group_table),
        _headed("## More cases", list(map(_markdown_case, view.other_cases))),
        _table("## How this was made", [["what", "value"], *view.facts]),
    )


# --- the view: what both renderings show ---


@dataclass(frozen=True)
class _Panel:
    """The question under one candidate, word by word."""

    candidate: CaseCandidate
    words: list[Word]


@dataclass(frozen=True)
class _CaseView:
    """A case, and its comparison of the picked and the rejected answer."""

    case: Case
    panels: list[_Panel]
    gaps: list[Word]
    """Words that the rejected answer explains notably worse, worst first."""
    gap_total: float | None

    @property
    def score_names(self) -> list[str]:
        return list(dict.fromkeys(name for c in self.case.candidates for name in c.scores))


@dataclass(frozen=True)
class _View:
    """The variables of the template."""

    report: SelectionReport
    summary: Summary
    groups: dict[str, list[StrategyResult]]
    """Strategies by heading, the best first."""
    baselines: list[str]
    """The ids of the strategies that others are compared with."""
    group_table: list[list[str]]
    cost_table: list[list[str]]
    first_case: _CaseView | None
    other_cases: list[_CaseView]
    facts: list[list[str]]
    needed: dict[str, str]
    """How many candidates a stopped vote needed, in words, by strategy id."""


def _view(report: SelectionReport) -> _View:
    report = clean(report)
    ranked = sorted(report.strategies, key=lambda strategy: -strategy.accuracy.mean)
    by_kind = {
        heading: [s for s in ranked if s.kind == kind] for kind, heading in plots.KINDS.items()
    }
    versus = {name for s in ranked for name in s.versus}
    cases = [_case(case) for case in report.cases]
    first = next((case for case in cases if not ranked or _is_telling(case.case)), None)
    return _View(
        report=report,
        summary=summarize(report),
        groups={heading: group for heading, group in by_kind.items() if group},
        baselines=[name for name in _BASELINES if name in versus],
        cost_table=_cost_table(ranked),
        group_table=_group_table(report.by_group, {s.id: s.label for s in ranked}),
        first_case=first,
        other_cases=[case for case in cases if case is not first],
        facts=_facts(report),
        needed={s.id: _needed(s.needed) for s in ranked if s.needed is not None},
    )


def _is_telling(case: Case) -> bool:
    """Whether the picked answer is right and the rejected one wrong."""
    verdicts = {c.role: c.correct for c in case.candidates}
    return verdicts.get("picked") is True and verdicts.get("rejected") is False


def _cost_table(ranked: Sequence[StrategyResult]) -> list[list[str]]:
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


def _group_table(by_group: Sequence[GroupResult], labels: Mapping[str, str]) -> list[list[str]]:
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


def _facts(report: SelectionReport) -> list[list[str]]:
    """The models, settings, command and version behind the report, as (name, value)."""
    facts = []
    for role, model in report.models.items():
        size = f" ({count(model.parameters)} parameters)" if model.parameters else ""
        facts.append([f"{role} model", f"{model.name}{size}"])
    for name, value in report.settings.items():
        facts.append([name, f"{value:.4g}" if isinstance(value, float) else value])
    made_by = {"command": report.command, "ledom": report.ledom_version}
    return facts + [[name, value] for name, value in made_by.items() if value]


def _case(case: Case) -> _CaseView:
    """A case, with the question's words under the picked and the rejected answer."""
    by_role = {candidate.role: candidate for candidate in case.candidates}
    pair = [by_role[role] for role in ("picked", "rejected") if role in by_role]
    shown = [candidate for candidate in pair if candidate.question_tokens]
    words = [question_words(case.question, candidate.question_tokens) for candidate in shown]
    gaps: list[Word] = []
    if len(shown) == 2:
        words, gaps = compare(*words)
    return _CaseView(
        case=case,
        panels=[_Panel(*panel) for panel in zip(shown, words, strict=True)],
        gaps=gaps[:NUM_GAP_WORDS],
        gap_total=shown[0].total - shown[1].total if len(shown) == 2 else None,
    )


def _figures(view: _View) -> dict[str, str]:
    report, summary = view.report, view.summary
    known = {s.id: s.versus for s in report.strategies}
    differences = {
        row.label: known[row.strategy][summary.opponent]
        for row in summary.rows
        if summary.opponent in known[row.strategy]
    }
    return {
        "differences": plots.differences_figure(differences, summary.opponent_name),
        "strategies": plots.strategies_figure(report.strategies),
        "by_n": plots.by_n_figure(report.accuracy_by_n, report.strategies),
        "by_lambda": plots.by_lambda_figure(report.accuracy_by_lambda),
        "reliability": plots.reliability_figure(report.reliability),
    }


def _needed(needed: Needed) -> str:
    """`19.2 [18.7, 19.6] of 32 candidates needed, 40.1% [38.8, 41.5] saved`."""
    saved = [percent(bound) for bound in asdict(needed.saved).values()]
    return (
        f"{interval(needed.candidates, 1)} of {needed.of} candidates needed, "
        f"{saved[0]}% [{saved[1]}, {saved[2]}] saved"
    )


# --- Markdown ---


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _headed(heading: str, parts: Sequence[str]) -> str:
    """Parts below a heading; nothing if there are none."""
    return "\n\n".join(part for part in [heading, *parts] if part) if any(parts) else ""


def _table(heading: str, rows: Sequence[Sequence[str]]) -> str:
    """A heading and its table; nothing if the table has no row below its head."""
    return _headed(heading, [markdown_table(rows)] if len(rows) > 1 else [])


def _markdown_claims(claims: Sequence[tuple[str, Interval]]) -> str:
    words = {"better": "✓ shown", "worse": "✗ worse", "open": "not shown"}
    return "\n".join(
        f"- **{escape(claim)}**: {difference(by)} points ({words[by.verdict]})"
        for claim, by in claims
    )


def _first_rows(summary: Summary) -> list[list[str]]:
    heads = [f"minus {name}" for name in summary.columns]
    rows = [
        [
            row.label,
            accuracy(row.accuracy),
            *(difference(row.versus.get(c)) for c in summary.columns),
        ]
        for row in summary.rows
    ]
    return [["choosing by", "accuracy, %", *heads], *rows]


def _answer_rows(answers: Sequence[ChosenAnswer]) -> list[list[str]]:
    rows = [[a.problem_id, a.answer or MISSING, percent(a.share)] for a in answers]
    return [["problem", "chosen answer", "share of the votes, %"], *rows]


def _strategy_table(view: _View) -> list[list[str]]:
    heads = [f"minus {name}" for name in view.baselines]
    rows = [
        [
            s.label,
            s.kind,
            accuracy(s.accuracy),
            *(difference(s.versus.get(name)) for name in view.baselines),
            view.needed.get(s.id, s.formula),
        ]
        for group in view.groups.values()
        for s in group
    ]
    return [["strategy", "kind", "accuracy, %", *heads, "formula"], *rows]


def _markdown_case(view: _CaseView) -> str:
    case = view.case
    parts = [
        f"### Problem {escape(case.problem_id)}",
        f"> {escape(case.question)}",
        f"Right answer: {escape(case.answer or 'unknown')}",
    ]
    if view.gaps:
        rows = [
            [w.text, number((w.logprob or 0) + (w.gap or 0)), number(w.logprob)] for w in view.gaps
        ]
        parts += [
            "Words that the rejected answer explains worse than the picked one, log P in nats:",
            markdown_table([["word", "given the picked", "given the rejected"], *rows]),
        ]
    head = ["rank", "answer", "verdict", "samples", *view.score_names, "role"]
    rows = [_candidate_row(candidate, view.score_names) for candidate in case.candidates]
    return "\n\n".join([*parts, markdown_table([head, *rows])])


def _candidate_row(candidate: CaseCandidate, score_names: Sequence[str]) -> list[str]:
    verdict = {True: "right", False: "wrong", None: "unknown"}[candidate.correct]
    scores = [number(candidate.scores.get(name)) for name in score_names]
    known = [str(candidate.rank), candidate.answer or MISSING, verdict, str(candidate.count)]
    return [*known, *scores, candidate.role or ""]
