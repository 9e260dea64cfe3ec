"""Lays out batches of texts as prefix trees, so that shared prefixes are computed once.

For a forward model, the candidates of a question share the question. In either direction, pairs
with the same demonstrations share these, and equal texts share everything. Texts are sorted, which
puts shared prefixes next to each other, and split into batches of at most a budget of tokens.

All ids and tokens are in model order.

Shapes: T tokens in the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrefixTree", "batches"]

_MIN_SHARED = 16
"""Fewer shared tokens than this cost more in kernel calls than they save."""
_SHARED_TIMES = 8
"""New tokens that a batch may hold per shared token; see `batches`."""


@dataclass
class PrefixTree:
    """Texts laid out in one row of segments; a shared prefix is a segment of its own.

    A token sees the segments above its own and the earlier tokens of its own segment.
    """

    ids: list[int] = field(default_factory=list)
    """The row's tokens, [T]."""
    positions: list[int] = field(default_factory=list)
    """Each token's position in its texts, [T]."""
    sizes: list[int] = field(default_factory=list)
    """The number of tokens of each segment, in row order."""
    ancestors: list[list[int]] = field(default_factory=list)
    """For each segment, the segments above it, outermost first."""
    places: list[NDArray[np.int64]] = field(default_factory=list)
    """For each text, in the given order, its tokens' indices in the row."""

    @classmethod
    def build(cls, texts: Sequence[Sequence[int]]) -> PrefixTree:
        """Build the tree of some texts, which must be sorted.

        >>> tree = PrefixTree.build([[1, 2], [1, 2]])
        >>> tree.ids, tree.sizes
        ([1, 2], [2])
        """
        tree = cls()
        paths = list(tree._grow(texts))
        sizes = np.array(tree.sizes, np.int64)
        starts = sizes.cumsum() - sizes
        tree.places = [_joined(starts[path], sizes[path]) for path in paths]
        return tree

    def _grow(self, texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Add the texts; yields the segments of each.

        It is a loop, because each of many texts may continue the one before it.
        """
        shared = [shared_length(a, b) for a, b in pairwise(texts)]  # by each text and the next
        todo: list[tuple[int, int, int, list[int]]] = [(0, len(texts), 0, [])]
        while todo:
            # texts[first:end], whose first `depth` tokens are in the segments `above`
            first, end, depth, above = todo.pop()
            while first < end and len(texts[first]) == depth:  # no tokens of its own
                yield above
                first += 1
            if first == end:
                continue
            last = first  # of the texts up to which all neighbors share enough
            while last + 1 < end and _worth_sharing(shared[last], depth, texts[last]):
                last += 1
            todo.append((last + 1, end, depth, above))  # after those that follow
            if last == first:
                yield self._extend(above, texts[first], depth, len(texts[first]))
            else:
                common = min(shared[first:last])
                path = self._extend(above, texts[first], depth, common)
                todo.append((first, last + 1, common, path))

    def _extend(self, above: list[int], text: Sequence[int], depth: int, end: int) -> list[int]:
        """Extend the path `above` by a segment of the text's tokens [depth, end), if any."""
        if depth == end:
            return above
        self.ids.extend(text[depth:end])
        self.positions.extend(range(depth, end))
        self.sizes.append(end - depth)
        self.ancestors.append(list(above))
        return [*above, len(self.sizes) - 1]


def _joined(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices in the row of some segments' tokens."""
    moved = starts - (sizes.cumsum() - sizes)
    joined: NDArray[np.int64] = np.arange(sizes.sum()) + np.repeat(moved, sizes)
    return joined


def _worth_sharing(shared: int, depth: int, text: Sequence[int]) -> bool:
    """Whether sharing tokens [depth, shared) pays off; up to a text's end, it always does."""
    return shared - depth >= _MIN_SHARED or shared == len(text)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens in the common prefix of two texts.

    >>> shared_length([1, 2, 3], [1, 2, 4])
    2
    """
    a, b = list(first), list(second)
    known, end = 0, min(len(a), len(b))
    while known < end:  # by halving, because Python compares lists faster than it loops over them
        middle = (known + end + 1) // 2
        if a[known:middle] == b[known:middle]:
            known = middle
        else:
            end = middle - 1
    return known


def batches(texts: Sequence[Sequence[int]], budget: int, workers: int = 1) -> Iterator[list[int]]:
    """Split texts into batches of at most `budget` new tokens (or one text); yields their indices.

    The indices are in the sorted order of the texts. A group of texts with a common prefix may be
    split over batches, each of which then computes the prefix once. To keep this a small part of
    the work, a batch whose texts all share a long prefix may hold `_SHARED_TIMES` times as many new
    tokens as the prefix has. Texts that need more than one such batch are split evenly among the
    workers.

    >>> list(batches([[5], [1, 2], [1, 2]], budget=4))
    [[1, 2, 0]]
    """
    order = sorted(range(len(texts)), key=lambda place: list(texts[place]))
    shared = [0, *(shared_length(texts[a], texts[b]) for a, b in pairwise(order))]
    total = sum(len(texts[place]) - known for place, known in zip(order, shared, strict=False))
    batch: list[int] = []
    cost, common = 0, 0
    for place, known in zip(order, shared, strict=False):
        text = texts[place]
        new = len(text)
        if batch:
            new -= known if _worth_sharing(known, 0, texts[batch[-1]]) else 0
            common = min(common, known)
        most = max(budget, _SHARED_TIMES * common)
        if total > most:  # each worker computes the common prefix
            most = max(budget, min(most, -(-(total + (workers - 1) * common) // workers)))
        if batch and cost + new > most:
            yield batch
            batch, cost, new = [], 0, len(text)
        if not batch:
            common = len(text)
        batch.append(place)
        cost += new
    if batch:
        yield batch
