"""The two directions, and the only place where token order flips.

Everything outside a model speaks *reading order* (left to right). A reverse model is an ordinary
causal language model that is fed *model order*: for `forward` the two are the same, for `reverse`
model order is reading order flipped. This module knows nothing of tokenizers, models or texts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import numpy as np

from ledom.core.errors import DirectionError, InputError

__all__ = ["Direction"]

SequenceT = TypeVar("SequenceT", list[int], list[str], "np.ndarray")


class Direction(StrEnum):
    """Which way a model reads: `forward` predicts what follows, `reverse` what comes before.

    >>> Direction("reverse"), str(Direction.FORWARD)
    (<Direction.REVERSE: 'reverse'>, 'forward')
    """

    FORWARD = "forward"
    REVERSE = "reverse"

    @classmethod
    def _missing_(cls, value: object) -> Direction:
        raise InputError(f"direction is {value!r}; give {' or '.join(cls)}")

    def to_model_order(self, sequence: SequenceT) -> SequenceT:
        """Turn a sequence (its last axis, for arrays) from reading order into model order.

        >>> Direction.REVERSE.to_model_order([1, 2, 3]), Direction.FORWARD.to_model_order([1, 2, 3])
        ([3, 2, 1], [1, 2, 3])
        """
        if self is Direction.FORWARD:
            return sequence
        return sequence[..., ::-1] if isinstance(sequence, np.ndarray) else sequence[::-1]

    def to_reading_order(self, sequence: SequenceT) -> SequenceT:
        """Turn a sequence (its last axis, for arrays) from model order into reading order.

        >>> Direction.REVERSE.to_reading_order(np.array([[3, 2, 1]]))
        array([[1, 2, 3]])
        """
        return self.to_model_order(sequence)  # a flip is its own inverse

    def span_to_model_order(self, start: int, end: int, length: int) -> tuple[int, int]:
        """Convert a span [start, end) of a sequence of `length` items to model order.

        >>> Direction.REVERSE.span_to_model_order(0, 2, length=5)  # the first two are read last
        (3, 5)
        """
        return (start, end) if self is Direction.FORWARD else (length - end, length - start)

    def require(self, found: Direction, model: str, purpose: str) -> None:
        """Raise `DirectionError` unless this is the direction `found` in the model of that name.

        >>> Direction.FORWARD.require(Direction.REVERSE, "tiny", "to sample")
        Traceback (most recent call last):
        ledom.core.errors.DirectionError: tiny is a reverse model; give a forward one to sample
        """
        if found is not self:
            raise DirectionError(f"{model} is a {found} model; give a {self} one {purpose}")
