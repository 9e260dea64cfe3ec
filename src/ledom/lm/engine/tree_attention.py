"""Attention over a row that holds a prefix tree: each text sees itself, shared stretches once.

A segment's tokens see the earlier ones of their own causally, and all of every segment above. The
fused kernel for CPUs computes hidden pairs too and hides them afterwards, so a segment's queries go
to it some at a time, with no more keys than they may see. What texts share is one call for all of
the queries below it, without a mask, joined with what they saw before by the logarithms of their
normalizers. Everything here is in model order.

Shapes: T tokens of the row, Q queries, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ledom.lm.engine.prefix_tree import PrefixTree
from ledom.model.kernels import attention

__all__ = ["TreeAttention"]

_QUERIES = 64  # queries of one segment that go to the kernel together

_Span = tuple[int, int]


class TreeAttention:
    """How the tokens of a tree's row attend, and those at some `wanted` places (ascending).

    Call it as an `Attend` of `model.attention`.
    """

    def __init__(
        self,
        tree: PrefixTree,
        wanted: NDArray[np.int64] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._plans = {len(tree.ids): _Plan(tree, np.arange(len(tree.ids)))}
        if wanted is not None:
            self._plans[len(wanted)] = _Plan(tree, wanted)
        self._masks = _Masks(max(tree.sizes), device, dtype)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        plan = self._plans[len(q)]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        own = [
            attention(q[:, :, a:b], k[:, :, start:end], v[:, :, start:end], self._masks(seen))
            for (a, b), (start, end), seen in plan.own
        ]
        out = torch.cat([part for part, _ in own], dim=2)
        if plan.shared:
            normalizers = torch.cat([part for _, part in own], dim=2)
            for (a, b), (start, end) in plan.shared:
                more, theirs = attention(q[:, :, a:b], k[:, :, start:end], v[:, :, start:end])
                ours = normalizers[:, :, a:b]
                share = torch.sigmoid(theirs - ours)[..., None].to(out.dtype)
                out[:, :, a:b].lerp_(more, share)
                torch.logaddexp(ours, theirs, out=ours)
        return out[0].transpose(0, 1)


class _Plan:
    """The kernel calls for queries at some places of the row."""

    def __init__(self, tree: PrefixTree, places: NDArray[np.int64]) -> None:
        ends = list(accumulate(tree.sizes))
        reach = list(ends)  # where the last token ends that sees a segment
        for end, above in zip(ends, tree.ancestors, strict=True):
            for segment in above:
                reach[segment] = end
        self.own: list[tuple[_Span, _Span, NDArray[np.int64]]] = []
        """(queries, keys, for each query its place in the segment)"""
        self.shared: list[tuple[_Span, _Span]] = []
        """(queries, keys)"""
        for segment, (end, size) in enumerate(zip(ends, tree.sizes, strict=True)):
            start = end - size
            first, last = np.searchsorted(places, (start, end)).tolist()
            for a in range(first, last, _QUERIES):
                b = min(a + _QUERIES, last)
                seen = places[a:b] - start
                self.own.append(((a, b), (start, start + int(seen[-1]) + 1), seen))
            below = int(np.searchsorted(places, reach[segment]))
            if below > last:
                self.shared.append(((last, below), (start, end)))


class _Masks:
    """Masks [queries, keys] to add, 0 where a query sees a key, for queries of one segment."""

    def __init__(self, longest: int, device: torch.device, dtype: torch.dtype) -> None:
        # Row i of the strip sees the columns up to longest + i; any block is a part of it.
        strip = torch.full((_QUERIES, longest + _QUERIES), -torch.inf, device=device, dtype=dtype)
        self._strip = strip.triu(longest + 1)
        self._longest = longest

    def __call__(self, seen: NDArray[np.int64]) -> Tensor:
        """The mask of queries that see the keys up to `seen`, ascending, each."""
        first, last = int(seen[0]), int(seen[-1])
        if last - first + 1 == len(seen):
            start = self._longest - first
            return self._strip[: len(seen), start : start + last + 1]
        hidden = np.arange(last + 1) > seen[:, None]
        mask = self._strip.new_zeros(hidden.shape)
        return mask.masked_fill_(torch.from_numpy(hidden).to(mask.device), -torch.inf)
