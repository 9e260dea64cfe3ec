"""How confident a model was while writing, from the few most likely tokens at each position.

A token's confidence is the negative mean log-probability of the k most likely tokens at its
position. It is large if one token has nearly all of the probability, because the others then have
little. A text has three values: the means over all tokens, over its last window, and over its least
confident window (DeepConf: Fu et al., Deep Think with Confidence, 2025). Only the top k are needed,
so this also works with servers that do not return the whole distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ledom.core.errors import InputError
from ledom.core.reading import check_counts, is_number

__all__ = ["Confidence", "ConfidenceSettings", "confidence_of", "of_alternatives"]


@dataclass(frozen=True)
class ConfidenceSettings:
    """How confidence is computed, and when low confidence ends a text.

    >>> ConfidenceSettings(window=0)
    Traceback (most recent call last):
    ledom.core.errors.InputError: window is 0; it must be at least 1
    """

    top_k: int = 20
    """The number of most likely tokens to use; servers allow 5 (OpenAI) or 20 (vLLM)."""
    window: int = 64
    """Tokens per window. The paper uses 2,048, for texts of tens of thousands of tokens."""
    least: float | tuple[float, ...] | None = None
    """A text ends (`unsure`) as soon as the mean over its latest full window falls below this.
    Either one number for all prompts of a call to `generate`, or one number per prompt."""

    def __post_init__(self) -> None:
        check_counts(1, top_k=self.top_k, window=self.window)
        least: Any = self.least if isinstance(self.least, tuple) else (self.least or 0.0,)
        if not all(is_number(x) and x == x for x in least):  # NaN equals nothing
            raise InputError(
                f"confidence: least is {self.least!r}; give a number, a tuple of them, or None"
            )

    def thresholds(self, prompts: int) -> Sequence[float | None]:
        """`least` for each of so many prompts; raises `InputError` for another number of them.

        >>> ConfidenceSettings(least=0.5).thresholds(2)
        (0.5, 0.5)
        """
        least = self.least if isinstance(self.least, tuple) else (self.least,) * prompts
        if len(least) != prompts:
            raise InputError(
                f"confidence: least has {len(least)} numbers for {prompts} prompts; give one for "
                "each, or one for all"
            )
        return least


@dataclass(frozen=True)
class Confidence:
    """The confidence of a text in nats; larger is more confident."""

    mean: float
    tail: float
    """The mean over the last window."""
    lowest: float
    """The mean over the least confident window."""


def confidence_of(tokens: Sequence[float], window: int) -> Confidence | None:
    """The confidence of a text, from its tokens' confidences; None for an empty text.

    A text shorter than the window counts as one window.

    >>> confidence_of([4.0, 1.0, 1.0, 2.0], 2)
    Confidence(mean=2.0, tail=1.5, lowest=1.0)
    """
    if not tokens:
        return None
    values = np.asarray(tokens, dtype=np.float64)
    width = min(window, len(values))
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    return Confidence(float(values.mean()), float(means[-1]), float(means.min()))


def of_alternatives(
    alternatives: Sequence[Mapping[object, float]], settings: ConfidenceSettings
) -> Confidence | None:
    """The confidence of a text, computed from the alternatives that a server returns per token.

    Only the `top_k` most likely are used, because some servers add the sampled token.

    >>> of_alternatives([{"a": -1.0, "b": -3.0, "drawn": -9.0}], ConfidenceSettings(top_k=2)).mean
    2.0
    """
    tokens = [
        -float(np.mean(sorted(found.values(), reverse=True)[: settings.top_k]))
        for found in alternatives
    ]
    return confidence_of(tokens, settings.window)
