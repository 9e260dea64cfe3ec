"""Scores, tables, spans and models with the values that a test needs; the rest is made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ledom.core.direction import Direction
from ledom.core.records import Score
from ledom.lm.language_model import LanguageModel, TokenSpan

if TYPE_CHECKING:
    from ledom.rerank.candidate_table import CandidateTable

__all__ = ["SMALL_MODEL", "made_score", "made_table", "noise", "token_score", "whole_text"]

SMALL_MODEL = (
    "model: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 1}\n"
)
"""A recipe line for a model that trains in a moment."""


def made_score(
    target: str,
    logprob: float = -1.0,
    num_tokens: int = 1,
    problem_id: str = "p",
    index: int = 0,
    **more: Any,
) -> Score:
    """A score by the model that scores this target: y|x forward, all others reverse."""
    direction: Any = "forward" if target == "y|x" else "reverse"
    return Score(
        problem_id=problem_id,
        index=index,
        model="m",
        direction=direction,
        target=target,  # type: ignore[arg-type]
        logprob=logprob,
        num_tokens=num_tokens,
        **more,
    )


def token_score(target: str, values: list[float], spans: list[list[int]], **more: Any) -> Score:
    """A score with its tokens' log-probabilities and places in the text."""
    return made_score(
        target, sum(values), len(values), token_logprobs=values, token_spans=spans, **more
    )


def noise(shape: tuple[int, int], seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Every feature as noise [P, N]; a new feature changes none of the others."""
    from ledom.rerank.candidate_table import FEATURES

    return {
        name: np.random.default_rng([seed, *name.encode()]).normal(size=shape) for name in FEATURES
    }


def made_table(
    correct: NDArray[np.bool_], features: dict[str, NDArray[np.float64]], **more: Any
) -> CandidateTable:
    """A table of labeled problems [P, N] without greedy candidates; right answers are number 0."""
    from ledom.rerank.candidate_table import CandidateTable
    from ledom.rerank.candidates import question_hash

    rows = range(len(correct))
    columns: dict[str, Any] = {
        "problem_ids": [str(row) for row in rows],
        "question_hashes": [question_hash(f"question {row}") for row in rows],
        "labeled": np.ones(len(rows), bool),
        "features": features,
        "answers": np.where(correct, 0, 1),
        "correct": correct,
        "mask": np.ones(correct.shape, bool),
        "blank": np.zeros(correct.shape, bool),
        "greedy": np.full(len(rows), np.nan),
        "groups": [""] * len(rows),
    }
    return CandidateTable(**columns | more)


def whole_text(lm: LanguageModel, text: str) -> TokenSpan:
    """The span of all tokens with context: all but the first in model order."""
    ids = lm.add_special_tokens(lm.tokenizer.encode(text).ids)
    reverse = lm.direction is Direction.REVERSE
    return TokenSpan(ids, 0 if reverse else 1, len(ids) - 1 if reverse else len(ids))
