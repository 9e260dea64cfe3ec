"""Writes the report of `ledom rerank`: report.json, and from it report.md and report.html.

The JSON object is the single source; the two renderings are pure functions of it. Its keys are set
out in docs/formats.md; any of the top-level ones may be missing. This module computes no
statistics: it knows nothing of models, tokens or how an interval was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ledom.report import plots
from ledom.report.numbers import (
    MISSING,
    Bounds,
    accuracy,
    difference,
    interval,
    number,
    percent,
)
from ledom.report.page import clean, escape, markdown_table, plain, render_template, write_pages
from ledom.report.summary import Summary, summarize
from ledom.report.words import Word, compare, question_words

__all__ = ["render_html", "render_markdown", "write_report"]

NUM_GAP_WORDS = 6  # words named as making the difference

_BASELINES = ("greedy", "random", "majority")


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    """Write report.json, report.md and report.html into `folder`; returns the page's path.

    Numbers that are not finite become null. Raises `OutputError` where the folder cannot be
    written.
    """
    return write_pages(folder, "report", report, render_markdown, render_html)


def render_html(report: dict[str, Any]) -> str:
    """The report as one page that needs no network and no script."""
    view = _view(report)
    filters: dict[str, Callable[..., str]] = {
        "accuracy": accuracy,
        "difference": difference,
        "interval": interval,
        "number": number,
        "percent": percent,
        "size": _size,
        "verdict": _verdict,
        "wider": lambda value: accuracy(value).partition(" \N{PLUS-MINUS SIGN} ")[2],
    }
    return render_template("template.html", filters, view, _figures(view))


def render_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the same words, tables and cases, without the figures."""
    view = _view(report)
    summary: Summary = view["summary"]
    first, others = view["first_case"], view["other_cases"]
    parts = [f"# {escape(view['title'])}", escape(summary.sentence)]
    parts.append(f"**Warning:** {escape(view['warning'])}." if view.get("warning") else "")
    parts.append(_markdown_claims([(c.claim, c.difference) for c in summary.claims]))
    parts += _table("", _first_rows(summary)) + _table("", _answer_rows(view["answers"]))
    parts += [escape(summary.sample), escape(summary.signal)]
    parts.append("\n".join(f"* {escape(note)}" for note in view["notes"]))
    parts += ["## A worked case", _markdown_case(first)] if first else []
    parts += _table("## All strategies", _strategy_table(view))
    differences = [(row.get("claim"), row.get("difference")) for row in view["headline"]]
    parts += ["## All comparisons", _markdown_claims(differences)] if differences else []
    aucs = [[row["score"], interval(row["auc"])] for row in view["auc"]]
    parts += _table("## Telling right answers from wrong ones", [["score", "pairwise AUC"], *aucs])
    parts += _table("## Accuracy by group, %", view["group_table"])
    parts += ["## More cases"] if others else []
    parts += [_markdown_case(case) for case in others]
    parts += _table("## How this was made", [["what", "value"], *view["facts"]])
    return "\n\n".join(part for part in parts if part) + "\n"


# --- the view: what both renderings show ---


def _view(report: dict[str, Any]) -> dict[str, Any]:
    lists = ("notes", "strategies", "headline", "auc", "by_group", "cases", "answers")
    view: dict[str, Any] = clean(plain(report))
    view["title"] = view.get("title") or "Report"
    view |= {key: view.get(key) or [] for key in lists}
    view |= {key: view.get(key) or {} for key in ("models", "settings")}
    ranked = sorted(view["strategies"], key=lambda s: -(_mean(s) or 0.0))
    for strategy in ranked:
        strategy["kind"] = strategy["kind"] if strategy.get("kind") in plots.KINDS else "pick"
        strategy["formula"] = _needed(strategy.get("needed")) or strategy.get("formula")
    by_kind = {
        heading: [s for s in ranked if s["kind"] == kind] for kind, heading in plots.KINDS.items()
    }
    versus = {key for s in ranked for key in s.get("versus") or {}}
    cases = [_case(case, number) for number, case in enumerate(view["cases"], start=1)]
    first = _first_case(cases, bool(ranked))
    return view | {
        "summary": summarize(view),
        "strategies": ranked,
        "groups": {heading: group for heading, group in by_kind.items() if group},
        "baselines": [name for name in _BASELINES if name in versus],
        "group_table": _group_table(view["by_group"], [s["name"] for s in ranked]),
        "first_case": first,
        "other_cases": [case for case in cases if case is not first],
        "facts": _facts(view),
    }


def _first_case(cases: Sequence[dict[str, Any]], is_measured: bool) -> dict[str, Any] | None:
    """The case to show first: its rejected answer is wrong and its picked one right.

    Where nothing was measured, any case will do.
    """

    def is_telling(case: dict[str, Any]) -> bool:
        verdict = {c.get("role"): c.get("correct") for c in case["candidates"]}
        return verdict.get("picked") is True and verdict.get("rejected") is False

    return next((case for case in cases if is_telling(case) or not is_measured), None)


def _mean(strategy: dict[str, Any]) -> float | None:
    mean: float | None = (strategy.get("accuracy") or {}).get("mean")
    return mean


def _group_table(by_group: Sequence[dict[str, Any]], order: Sequence[str]) -> list[list[str]]:
    """Accuracy by group, the strategies down and the groups across, or the other way if longer."""
    if not by_group:
        return []
    present = {name for row in by_group for name in row.get("accuracy") or {}}
    names = [name for name in order if name in present] + sorted(present - set(order))
    head = [f"{row.get('group')} ({row.get('num_problems', MISSING)})" for row in by_group]
    table = [["strategy", *head]]
    table += [
        [name, *(percent((row.get("accuracy") or {}).get(name)) for row in by_group)]
        for name in names
    ]
    if len(by_group) > max(len(names), 6):
        table = [list(row) for row in zip(*table, strict=True)]
        table[0][0] = "group"
    return table


def _facts(view: dict[str, Any]) -> list[list[str]]:
    facts = [
        [f"{role} model", f"{model.get('name', '')}{_size_known(model.get('parameters'))}"]
        for role, model in view["models"].items()
    ]
    facts += [
        [name, f"{value:.4g}" if isinstance(value, float) else str(value)]
        for name, value in view["settings"].items()
    ]
    for name, key in (("command", "command"), ("ledom", "ledom_version")):
        facts += [[name, str(view[key])]] if view.get(key) else []
    return facts


def _case(case: dict[str, Any], number: int) -> dict[str, Any]:
    """A case as shown: its candidates by rank, and the question under the pair to compare."""
    question = str(case.get("question") or "")
    candidates = sorted(case.get("candidates") or [], key=lambda c: c.get("rank") or 0)
    pair = [
        next((c for c in candidates if c.get("role") == role), None)
        for role in ("picked", "rejected")
    ]
    shown = [candidate for candidate in pair if candidate and candidate.get("question_tokens")]
    words = [question_words(question, candidate["question_tokens"]) for candidate in shown]
    gaps: list[Word] = []
    if len(shown) == 2:
        words, gaps = compare(*words)
    return case | {
        "number": number,
        "question": question,
        "candidates": candidates,
        "score_names": list(dict.fromkeys(n for c in candidates for n in c.get("scores") or {})),
        "panels": [
            {"candidate": candidate, "words": of_words, "total": _total(candidate)}
            for candidate, of_words in zip(shown, words, strict=True)
        ],
        "gaps": gaps[:NUM_GAP_WORDS],
        "gap_total": _total(shown[0]) - _total(shown[1]) if len(shown) == 2 else None,
    }


def _total(candidate: dict[str, Any]) -> float:
    """log P(x|y): the score where it is known, which counts the document's start too."""
    score = (candidate.get("scores") or {}).get("reverse")
    if isinstance(score, (int, float)):
        return float(score)
    return sum(token.get("logprob") or 0.0 for token in candidate["question_tokens"])


def _figures(view: dict[str, Any]) -> dict[str, str]:
    kinds = {s["name"]: s["kind"] for s in view["strategies"]}
    summary: Summary = view["summary"]
    known = {s["name"]: s.get("versus") or {} for s in view["strategies"]}
    differences = [
        (row.label, Bounds.read(known[row.strategy].get(summary.opponent)))
        for row in summary.rows
        if row.strategy != summary.opponent
    ]
    return {
        "differences": plots.differences_figure(differences, summary.opponent_name),
        "strategies": plots.strategies_figure(view["strategies"]),
        "by_n": plots.by_n_figure(view.get("accuracy_by_n") or {}, kinds),
        "by_lambda": plots.by_lambda_figure(view.get("accuracy_by_lambda") or {}),
        "reliability": plots.reliability_figure(view.get("reliability") or {}),
    }


def _needed(needed: Any) -> str:
    """`19.2 [18.7, 19.6] of 32 candidates needed, 40.1 % [38.8, 41.5] saved`."""
    if not isinstance(needed, dict):
        return ""
    bounds = Bounds.read(needed.get("saved"))
    saved = [percent(bound) for bound in (bounds.mean, bounds.low, bounds.high)]
    return (
        f"{interval(needed.get('candidates'), 1)} of {needed.get('of', MISSING)} candidates "
        f"needed, {saved[0]} % [{saved[1]}, {saved[2]}] saved"
    )


def _verdict(difference: Any) -> str:
    return Bounds.read(difference).verdict


def _size_known(count: Any) -> str:
    return f" ({_size(count)} parameters)" if count else ""


def _size(count: Any) -> str:
    if not isinstance(count, (int, float)):
        return "?"
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"


# --- Markdown ---


def _table(heading: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A heading and its table; nothing where the table has no row below its head."""
    return [heading, markdown_table(rows)] if len(rows) > 1 else []


def _markdown_claims(claims: Sequence[tuple[Any, Any]]) -> str:
    words = {"better": "✓ shown", "worse": "✗ worse", "open": "not shown"}
    return "\n".join(
        f"- **{escape(claim)}**: {difference(by)} points ({words[_verdict(by)]})"
        for claim, by in claims
    )


def _first_rows(summary: Summary) -> list[list[str]]:
    against = [f"against {name}" for name in summary.columns]
    rows = [
        [
            row.label,
            accuracy(row.accuracy),
            *(difference(row.versus.get(c)) for c in summary.columns),
        ]
        for row in summary.rows
    ]
    return [["choosing by", "accuracy, %", *against], *rows]


def _answer_rows(answers: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [str(a.get("problem_id")), str(a.get("answer") or MISSING), percent(a.get("share"))]
        for a in answers
    ]
    return [["problem", "chosen answer", "share of the votes, %"], *rows]


def _strategy_table(view: dict[str, Any]) -> list[list[str]]:
    baselines = view["baselines"]
    against = [f"against {name}" for name in baselines]
    table = [["strategy", "kind", "accuracy, %", *against, "formula"]]
    for strategies in view["groups"].values():
        table += [
            [
                s["name"],
                s["kind"],
                accuracy(s.get("accuracy")),
                *(difference((s.get("versus") or {}).get(name)) for name in baselines),
                s.get("formula") or "",
            ]
            for s in strategies
        ]
    return table


def _markdown_case(case: dict[str, Any]) -> str:
    parts = [
        f"### Problem {escape(case.get('problem_id', ''))}",
        f"> {escape(case['question'])}",
        f"Right answer: {escape(case.get('answer') or 'unknown')}",
    ]
    if case["gaps"]:
        rows = [
            [w.text, number((w.logprob or 0) + (w.gap or 0)), number(w.logprob)]
            for w in case["gaps"]
        ]
        parts += [
            "Words that the rejected answer explains worst beside the picked one, log P in nats:",
            markdown_table([["word", "given the picked", "given the rejected"], *rows]),
        ]
    names = case["score_names"]
    rows = [["rank", "answer", "verdict", "samples", *names, "role"]]
    verdicts = {True: "right", False: "wrong"}
    for c in case["candidates"]:
        scores = [number((c.get("scores") or {}).get(name)) for name in names]
        known = [str(c.get("rank", "")), str(c.get("answer") or MISSING)]
        known += [verdicts.get(c.get("correct"), "unknown"), str(c.get("count") or 1)]
        rows.append([*known, *scores, c.get("role") or ""])
    return "\n\n".join([*parts, markdown_table(rows)])
