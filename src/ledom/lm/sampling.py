"""How a model draws the tokens of a text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ledom.core.errors import InputError
from ledom.core.reading import require
from ledom.lm.confidence import ConfidenceSettings

__all__ = ["Sampling"]

_COLDEST, _HOTTEST = 0.001, 1000.0  # temperatures within which fp32 logits stay finite


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token.

    >>> Sampling(temperature=0.7, top_p=2)
    Traceback (most recent call last):
    ledom.core.errors.InputError: top_p is 2; it must lie in (0, 1]
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability."""
    max_tokens: int = 256
    """Maximum number of tokens to write."""
    seed: int = 0
    """Seed; together with the prompt's text and the sample's number it determines every draw."""
    stop_pattern: str | None = None
    """A regular expression: a text ends at its first match. White space next to the prompt is not
    part of what is searched."""
    confidence: ConfidenceSettings | None = None
    """How to compute the texts' confidence; None: not at all. See `ledom.lm.confidence`."""

    def __post_init__(self) -> None:
        checks = {
            f"temperature is {self.temperature}; it must be 0, or from {_COLDEST} to {_HOTTEST}": (
                self.temperature == 0 or _COLDEST <= self.temperature <= _HOTTEST
            ),
            f"top_k is {self.top_k}; it must be 0 or more": self.top_k >= 0,
            f"top_p is {self.top_p}; it must lie in (0, 1]": 0 < self.top_p <= 1,
            f"max_tokens is {self.max_tokens}; it must be at least 1": self.max_tokens >= 1,
            f"seed is {self.seed}; it must be 0 or more": self.seed >= 0,
        }
        require(checks)
        try:
            re.compile(self.stop_pattern or "")
        except re.error as error:
            raise InputError(
                f"stop_pattern {self.stop_pattern!r} is not a regular expression: {error}"
            ) from None

    @property
    def greedy(self) -> Sampling:
        """The same settings, but always taking the most likely token.

        >>> Sampling(top_k=5, max_tokens=9).greedy == Sampling(temperature=0, max_tokens=9)
        True
        """
        return replace(self, temperature=0.0, top_k=0, top_p=1.0)
