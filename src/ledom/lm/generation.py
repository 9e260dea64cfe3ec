"""What a language model gets and returns: spans to score, and texts that it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ledom.lm.confidence import Confidence

__all__ = ["FinishReason", "Generation", "ModelSpan", "PromptTexts", "Prompts", "TokenSpan"]


@dataclass(frozen=True)
class TokenSpan:
    """The tokens [start, end) of `ids` whose log-probabilities are wanted.

    `ids` is a whole text in reading order, with the special tokens that the model was trained with
    (see `LanguageModel.add_special_tokens`). The first token in model order has nothing before it
    and cannot be part of the span.
    """

    ids: Sequence[int]
    start: int
    end: int


ModelSpan = tuple[list[int], int, int]
"""The ids, the start and the end of a `TokenSpan`, all in model order."""


FinishReason = Literal["stop", "length", "pattern", "unsure"]


@dataclass(frozen=True)
class Generation:
    """A text that a model wrote; ids and text in reading order, without the prompt and EOS."""

    text: str
    ids: list[int]
    finish_reason: FinishReason
    """`stop`: the model ended its document; `length`: it reached `max_tokens`; `unsure`: its
    confidence fell below `ConfidenceSettings.least`; `pattern`: it matched `stop_pattern`, and
    `generate` can continue it if it is passed as a prompt."""
    state: Any = field(default=None, compare=False, repr=False)
    """The backend's state, from which it can continue without reading the text again."""
    self_certainty: float | None = field(default=None, compare=False)
    """Mean over the sampled tokens, EOS included, of KL(uniform || P(token | context)) in nats;
    larger is more certain (Kang, Zhao and Song, Scalable Best-of-N Selection for Large Language
    Models via Self-Certainty, 2025). None if the backend does not see the whole distribution."""
    confidence: Confidence | None = field(default=None, compare=False)
    """Confidence of the sampled tokens, EOS included, if `Sampling.confidence` is set."""


Prompts = Sequence[str | Generation]
"""Texts, or generations that stopped at the pattern, to continue."""

PromptTexts = tuple[int, list[Generation]]
"""The index of a prompt, and all texts written for it."""
