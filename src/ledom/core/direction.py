"""The two directions; this is the only module that flips token order.

Everything outside a model speaks *reading order* (left to right). A reverse model is an ordinary
causal language model that is fed *model order*. For `forward`, both orders are the same; for
`reverse`, one is the other flipped. This module does not know about tokenizers or texts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from ledom.core.errors import DirectionError, InputError

__all__ = ["Direction", "choose_direction"]

SequenceT = TypeVar("SequenceT", list[int], list[str], "np.ndarray")


class Direction(StrEnum):
    """A model's direction: `forward` predicts what follows, `reverse` predicts what precedes.

    >>> Direction("reverse"), str(Direction.FORWARD)
    (<Direction.REVERSE: 'reverse'>, 'forward')
    """

    FORWARD = "forward"
    REVERSE = "reverse"

    @classmethod
    def _missing_(cls, value: object) -> Direction:
        raise InputError(f"direction is {value!r}; give {' or '.join(cls)}")

    def to_model_order(self, sequence: SequenceT) -> SequenceT:
        """Convert a sequence (for arrays, the last axis) from reading order to model order.

        >>> Direction.REVERSE.to_model_order([1, 2, 3]), Direction.FORWARD.to_model_order([1, 2, 3])
        ([3, 2, 1], [1, 2, 3])
        """
        if self is Direction.FORWARD:
            return sequence
        return sequence[..., ::-1] if isinstance(sequence, np.ndarray) else sequence[::-1]

    def to_reading_order(self, sequence: SequenceT) -> SequenceT:
        """Convert a sequence (for arrays, the last axis) from model order to reading order.

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
        """Raise `DirectionError` unless this is the direction `found` in the named model.

        >>> Direction.FORWARD.require(Direction.REVERSE, "tiny", "to sample")
        Traceback (most recent call last):
        ledom.core.errors.DirectionError: tiny is a reverse model; give a forward one to sample
        """
        if found is not self:
            raise DirectionError(f"{model} is a {found} model; give a {self} one {purpose}")


def choose_direction(place: object, recorded: Any, asked: Direction | str | None) -> Direction:
    """The direction of the model in a place.

    Raises `InputError` if `asked` is no direction, and `DirectionError` if the direction is unknown
    or not as `asked`.

    >>> str(choose_direction("folder", "reverse", None))
    'reverse'
    """
    asked = None if asked is None else Direction(asked)
    if recorded is None and asked is None:
        raise DirectionError(
            f"{place}: records no direction; give the one that the model was trained in: forward "
            "or reverse (direction=..., or --direction of a command)"
        )
    if recorded is not None and asked is not None and str(recorded) != str(asked):
        raise DirectionError(
            f"{place}: this is a {recorded} model, used as {asked}; give a model trained in the "
            f"{asked} direction"
        )
    try:
        return asked or Direction(recorded)
    except InputError as error:
        raise DirectionError(f"{place}: config.json: {error}") from None
