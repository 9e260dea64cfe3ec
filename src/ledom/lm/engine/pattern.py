"""Tells whether a text that is being written has reached its stop pattern."""

from __future__ import annotations

import re
from functools import cached_property

from ledom.core.direction import Direction
from ledom.text.tokenizer import Tokenizer

__all__ = ["PatternSearch"]

_NEW_TOKENS = 12  # decoded again for each token before their text is kept
_MOST_OVERLAP = 4  # kept tokens that are decoded with new ones; a character has at most 4 bytes
_INCOMPLETE = "\ufffd"  # the text of an incomplete character's bytes
_RARE = "\u07ff\uefff\U0007ffff\U000c0000"  # no vocabulary merges their bytes


class PatternSearch:
    """Searches a growing text; call it after every new token with all ids so far, in model order.

    White space next to the prompt is ignored. The text of older tokens is kept, so only the time of
    the search itself grows with the text.

    >>> from ledom.text.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer([], 257)
    >>> search, ids = PatternSearch("bc", tokenizer, Direction.FORWARD), tokenizer.encode("abc").ids
    >>> [search(ids[:end]) for end in (1, 2, 3)]
    [False, False, True]
    """

    def __init__(self, pattern: str, tokenizer: Tokenizer, direction: Direction) -> None:
        self._pattern, self._tokenizer, self._direction = re.compile(pattern), tokenizer, direction
        self._kept = self._overlap = ""
        """The text of the first `_num_kept` tokens, and of the newest of them, from `_begin` on,
        decoded alone. New tokens are decoded together with these, as inside a text."""
        self._num_kept = self._begin = 0

    def __call__(self, ids: list[int]) -> bool:
        forward = self._direction is Direction.FORWARD
        text = self._text(ids)
        newest = text[-1:] if forward else text[:1]
        if newest == _INCOMPLETE and self._is_open(ids):
            return False
        return bool(self._pattern.search(text.lstrip() if forward else text.rstrip()))

    def _is_open(self, ids: list[int]) -> bool:
        """Whether more bytes would complete the newest character; if not, it stays U+FFFD."""
        newest = ids[self._begin :]
        length = len(self._decode(newest))
        longer = ([*newest, *[byte] * count] for byte in self._bytes for count in (1, 2, 3))
        return any(len(self._decode(more)) <= length for more in longer)

    @cached_property
    def _bytes(self) -> list[int]:
        """One-byte tokens that end a character or, for a text that grows in front, begin one.

        Repeating one of these one to three times completes any incomplete character.
        """
        encoded = map(self._direction.to_model_order, map(self._tokenizer.encode_inside, _RARE))
        ends = {token for ids in encoded for token in ids[-1:]}
        return [token for token in ends if self._tokenizer.decode([token]) == _INCOMPLETE]

    def _text(self, ids: list[int]) -> str:
        """Decode all tokens."""
        forward, known = self._direction is Direction.FORWARD, len(self._overlap)
        text = self._decode(ids[self._begin :])
        if forward and text.startswith(self._overlap):
            text = self._kept + text[known:]
        elif not forward and text.endswith(self._overlap):
            text = text[: len(text) - known] + self._kept
        else:
            text = self._decode(ids)
        if len(ids) - self._num_kept >= _NEW_TOKENS:
            self._keep(ids, text)
        return text

    def _keep(self, ids: list[int], text: str) -> None:
        """Keep this text of all tokens, unless it ends inside a character."""
        forward = self._direction is Direction.FORWARD
        for begin in range(len(ids) - 1, len(ids) - 1 - _MOST_OVERLAP, -1):
            overlap = self._decode(ids[begin:])
            inside = text.endswith(overlap) if forward else text.startswith(overlap)
            if overlap and inside and overlap[-1 if forward else 0] != _INCOMPLETE:
                self._kept, self._overlap = text, overlap
                self._num_kept, self._begin = len(ids), begin
                return

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(self._direction.to_reading_order(ids))
