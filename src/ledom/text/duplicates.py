"""Finds near duplicates among short texts by their word n-grams.

Two texts are near duplicates if the sets of their 5-word n-grams have a Jaccard similarity of 0.8
or more, as in Lee et al., Deduplicating Training Data Makes Language Models Better (ACL 2022).
MinHash signatures in a locality-sensitive index (datasketch) select the texts to compare; the
comparison itself is exact. This module does not know about models or records.
"""

from __future__ import annotations

import re
from typing import Any

from ledom.core.errors import InputError, needs_extra
from ledom.text.copies import WORD

__all__ = ["NearDuplicates"]

_WORDS = 5  # per n-gram
_PERMUTATIONS = 128  # per signature
_WORD = re.compile(  # a sign before a number, or a percent sign, is a word: 3 - 2 is not 3 + 2
    rf"{WORD}(?:\.\d+)?|[-\u2212+*\u00d7\u00b7/\u00f7^=<>](?=\s?[\d(])|(?<=\d)%"
)
_MAX_THRESHOLD = 0.9  # with a higher one, the index would miss pairs
_MISS_WEIGHT = 0.9999  # against a needless comparison; 0.9 missed one in eight pairs at the limit


class NearDuplicates:
    """An index of texts that finds near duplicates.

    Letter case and punctuation are ignored, but not the signs of a calculation.

    Raises `MissingExtraError` without datasketch, and `InputError` for a similarity outside (0, 1].

    >>> seen = NearDuplicates()
    >>> seen.add("Ava has 3 red pens and buys 4 more. How many has she?")
    >>> seen.find("Ava has 3 red pens, and buys 4 more; how many has she")
    'Ava has 3 red pens and buys 4 more. How many has she?'
    >>> seen.find("Ava has 5 red pens and buys 4 more. How many has she?") is None
    True
    """

    def __init__(self, similarity: float = 0.8) -> None:
        if not 0 < similarity <= 1:
            raise InputError(f"similarity is {similarity}; it must lie in (0, 1]")
        with needs_extra("datasketch", "data", "near duplicates"):
            from datasketch import MinHash, MinHashLSH
        self._similarity = similarity
        self._empty = MinHash(_PERMUTATIONS)
        threshold, weights = min(similarity, _MAX_THRESHOLD), (1 - _MISS_WEIGHT, _MISS_WEIGHT)
        self._index: Any = MinHashLSH(threshold, _PERMUTATIONS, weights=weights)
        self._texts: list[str] = []
        self._n_grams: list[frozenset[str]] = []

    def add(self, text: str) -> None:
        """Add a text to compare later ones with."""
        n_grams = _n_grams(text)
        self._index.insert(len(self._texts), self._signature(n_grams))
        self._texts.append(text)
        self._n_grams.append(n_grams)

    def find(self, text: str) -> str | None:
        """The most similar near duplicate among the added texts (the first if tied), or None."""
        n_grams = _n_grams(text)
        near: dict[int, float] = {}  # Jaccard similarities, the share of common n-grams
        for number in sorted(self._index.query(self._signature(n_grams))):
            other = self._n_grams[number]
            near[number] = len(n_grams & other) / len(n_grams | other)
        found = max(near, key=near.__getitem__, default=None)
        return self._texts[found] if found is not None and near[found] >= self._similarity else None

    def _signature(self, n_grams: frozenset[str]) -> Any:
        signature = self._empty.copy()  # including its permutations
        signature.update_batch([n_gram.encode() for n_gram in sorted(n_grams)])
        return signature


def _n_grams(text: str) -> frozenset[str]:
    """A text's word n-grams; a text of fewer than `_WORDS` words is one n-gram."""
    words = _WORD.findall(text.casefold())
    count = max(1, len(words) - _WORDS + 1)
    return frozenset(" ".join(words[i : i + _WORDS]) for i in range(count))
