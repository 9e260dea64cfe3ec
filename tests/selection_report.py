"""A selection report as JSON with something in every section, which tests then modify."""

from __future__ import annotations

from typing import Any

from from_json import from_json
from ledom.report.results import SelectionReport

__all__ = ["HOSTILE", "QUESTION", "as_report", "bounds", "sample_report"]

HOSTILE = "<script>alert(1)</script> a|b `c` \x00\x1b[31m \ud800 \u202e </details> {{ 7*7 }}"
QUESTION = "Ann has 3  red apples.\nHow many?"


def as_report(report: dict[str, Any]) -> SelectionReport:
    """The typed report; strategies need no description or formula."""
    said_of_all = {"description": "", "formula": ""}
    strategies = [said_of_all | row for row in report.get("strategies", [])]
    return from_json(SelectionReport, report | {"strategies": strategies})


def bounds(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def sample_report() -> dict[str, Any]:
    """Four strategies and one case: a right candidate is picked over a wrong rival."""
    candidates = [
        _candidate(0, role="picked", count=3),
        _candidate(1, role="rejected", question_tokens=_tokens(-4.5)),
        _candidate(2, answer=None, correct=None, text=HOSTILE),
    ]
    return {
        "title": "Reranking",
        "warning": None,
        "command": "ledom rerank --n 4",
        "ledom_version": "0.1.0",
        "num_problems": 500,
        "num_candidates": 4,
        "chosen": "majority",
        "notes": ["tuned elsewhere"],
        "models": {"forward": {"name": "fwd", "parameters": 2_600_000}},
        "settings": {"lambda": 0.45, "normalization": "tokens"},
        "strategies": [
            _strategy("greedy", "baseline", bounds(0.412, 0.4, 0.42)),
            _strategy("reverse|reward", "pick", bounds(0.473, 0.451, 0.49))
            | {"description": "both models", "formula": "log P(y|x) + log P(x|y)"}
            | {"versus": {"greedy": bounds(0.061, 0.011, 0.1)}},
            _strategy("majority", "vote", bounds(0.5, 0.45, 0.55))
            | {"versus": {"greedy": bounds(-0.0321, -0.05, -0.01)}},
            _strategy("oracle", "bound", bounds(0.8, 0.7, 0.9)),
        ],
        "headline": [
            {"claim": "Reward against greedy", "difference": bounds(0.061, 0.011, 0.1)}
            | {"main": True},
            {"claim": "Reward against vote", "difference": bounds(0.004, -0.012, 0.02)},
        ],
        "accuracy_by_n": {"n": [1, 2], "strategies": {"greedy": [0.4, 0.5]}},
        "accuracy_by_lambda": {
            "lambda": [0.0, 1.0],
            "accuracy": [0.4, 0.5],
            "low": [0.3, 0.4],
            "high": [0.5, 0.6],
            "chosen": 1.0,
        },
        "reliability": {
            "score": "log P(x|y)",
            "bins": [{"mean_score": -1.0, "accuracy": 0.5, "low": 0.4, "high": 0.6, "count": 9}],
        },
        "auc": [{"score": "log P(x|y)", "auc": bounds(0.642, 0.631, 0.653)}],
        "by_group": [
            {"group": "easy", "num_problems": 40, "accuracy": {"greedy": 0.61}},
            {"group": "hard", "num_problems": 60, "accuracy": {"greedy": 0.19, "majority": 0.25}},
        ],
        "cases": [
            {"problem_id": "p-1", "question": QUESTION, "answer": "0", "candidates": candidates}
        ],
    }


def _strategy(name: str, kind: str, accuracy: dict[str, float]) -> dict[str, Any]:
    return {"id": name, "label": name, "kind": kind, "accuracy": accuracy, "versus": {}}


def _tokens(last: float) -> list[dict[str, Any]]:
    """Tokens of `QUESTION`: "Ann", " has", " 3", "  ", "red", " app", "les", "." and the rest."""
    ends = [3, 7, 9, 11, 14, 18, 21, 22, 26, 32]
    logprobs = [-6.5, -0.25, -1.0, -0.5, last, -1.0, -0.5, -0.25, -2.0, -0.125]
    starts = [0, *ends[:-1]]
    tokens = [
        {"start": start, "end": end, "logprob": logprob}
        for start, end, logprob in zip(starts, ends, logprobs, strict=True)
    ]
    return [{"start": 0, "end": 0, "logprob": -9.0}, *tokens]  # the document's start


def _candidate(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "text": f"solution number {index}",
        "answer": str(index),
        "correct": index == 0,
        "rank": index + 1,
        "role": None,
        "count": 1,
        "scores": {"reverse": -12.345 - 4 * index},
        "question_tokens": _tokens(-0.5),
        **changes,
    }
