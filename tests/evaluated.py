"""Evaluations of fake models on a small task, and their hand-computed numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledom.core.stage import no_progress
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.report.formatting import to_json

if TYPE_CHECKING:
    from ledom.evaluate.tasks import Source

__all__ = ["QUESTIONS", "evaluate", "found_rows", "logprobs", "write_rows"]

QUESTIONS = [
    {
        "id": f"q{i}",
        "question": f"What is {i} + 3?",
        "choices": [f"{i + 3}", f"{i + 2} or so", f"it is {2 * i}", "none of these"],
        "answer_index": i % 4,
    }
    for i in range(12)
]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def logprobs(model: FakeLanguageModel, fed: Sequence[int]) -> list[float]:
    """The fake's log P of each id but the first, ids in the order fed."""
    return [-math.log1p((a + b) % 7) for a, b in pairwise(fed)]


def found_rows(found: dict[str, Any], metric: str) -> dict[tuple[str, str], dict[str, Any]]:
    (task,) = found["tasks"]
    return {(r["model"], r["scoring"]): r for r in task["rows"] if r["metric"] == metric}


def evaluate(source: Source, out: Path, *models: FakeLanguageModel) -> dict[str, Any]:
    """Run an evaluation and return what `ledom eval` writes; needs lm-eval."""
    from ledom.evaluate.evaluation import Job, evaluate_models

    found: dict[str, Any] = to_json(evaluate_models(Job([source], models, out), no_progress))
    assert json.loads((out / "results.json").read_text()) == found
    return found
