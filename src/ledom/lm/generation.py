"""What a language model gets and returns: spans to score, settings of samples, and texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ledom.core.errors import InputError
from ledom.core.reading import check_counts, is_number, require
from ledom.lm.confidence import Confidence, ConfidenceSettings

__all__ = ["FinishReason", "Generation", "ModelSpan", "Sampling", "TokenSpan"]

_COLDEST, _HOTTEST = 0.001, 1000.0  # temperatures between which fp32 logits stay finite


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


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token.

    >>> Sampling(temperature=0.7, top_p=2)
    Traceback (most recent call last):
    ledom.core.errors.InputError: top_p is 2; it must lie in (0, 1]
    """

    temperature: float = 1.0
    """Divides the logits; at 0, the most likely token is always chosen."""
    top_k: int = 0
    """Sample only from the k most likely tokens; 0 means all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability."""
    max_tokens: int = 256
    """Maximum number of tokens to write."""
    seed: int = 0
    """Seed; together with the prompt's text and the sample's number it determines every draw."""
    stop_pattern: str | None = None
    """A regular expression; a text ends at its first match. White space next to the prompt is not
    searched."""
    confidence: ConfidenceSettings | None = None
    """How to compute confidence (see `ledom.lm.confidence`); None means not at all."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            require({f"{name} is {value!r}; it must be a number": is_number(value)})
            if not isinstance(value, int):  # other types do not multiply with tensors
                object.__setattr__(self, name, float(value))
        check_counts(1, max_tokens=self.max_tokens)
        check_counts(top_k=self.top_k, seed=self.seed)
        for name in ("top_k", "max_tokens", "seed"):  # numpy's integers may overflow
            object.__setattr__(self, name, int(getattr(self, name)))
        warm = self.temperature == 0 or _COLDEST <= self.temperature <= _HOTTEST
        limits = f"it must be 0, or from {_COLDEST} to {_HOTTEST}"
        require({f"temperature is {self.temperature}; {limits}": warm})
        require({f"top_p is {self.top_p}; it must lie in (0, 1]": 0 < self.top_p <= 1})
        unknown = f"confidence is {self.confidence!r:.40}; give ConfidenceSettings, or None"
        require({unknown: isinstance(self.confidence, ConfidenceSettings | None)})
        pattern = self.stop_pattern
        try:
            re.compile(pattern or "").search("")  # bytes compile too
        except (re.error, TypeError) as error:
            message = f"stop_pattern {pattern!r} is not a regular expression: {error}"
            raise InputError(message) from None

    @property
    def greedy(self) -> Sampling:
        """The same settings, but always choosing the most likely token.

        >>> Sampling(top_k=5, max_tokens=9).greedy == Sampling(temperature=0, max_tokens=9)
        True
        """
        return replace(self, temperature=0.0, top_k=0, top_p=1.0)


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
