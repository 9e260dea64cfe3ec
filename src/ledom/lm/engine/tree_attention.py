"""How the tokens of a tree's row attend: their own segment causally, and all of those above.

On a CPU the fused kernel computes hidden pairs too and hides them afterwards, so a segment's
queries go to it some at a time, with no more keys than they may see. What texts share is one call
for all of the queries below it, without a mask, joined with what they saw before by the logarithms
of their normalizers. On a GPU one call takes all segments, and one more each level of the tree.
Everything here is in model order.

Shapes: T tokens of the row, Q queries, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ledom.lm.engine.prefix_tree import PrefixTree
from ledom.model.kernels import attention, has_varlen, varlen_attention

__all__ = ["TreeAttention"]

_QUERIES = 64  # queries of one segment that go to the CPU's kernel together

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
        self._segments, self._device, self._dtype = _Segments(tree), device, dtype
        self._plans = {len(tree.ids): self._plan(np.arange(len(tree.ids)))}
        if wanted is not None:
            self._plans[len(wanted)] = self._plan(wanted)

    def _plan(self, places: NDArray[np.int64]) -> _Plan | _VarlenPlan:
        """How the queries at some places attend."""
        if has_varlen(self._device, self._dtype):
            return _VarlenPlan(self._segments, places, self._device)
        return _Plan(self._segments, places, self._masks)

    @cached_property
    def _masks(self) -> _Masks:
        return _Masks(
            max(end - start for start, end in self._segments.spans), self._device, self._dtype
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._plans[len(q)](q, k, v)


class _Segments:
    """Where a tree's segments lie in its row."""

    def __init__(self, tree: PrefixTree) -> None:
        ends = list(accumulate(tree.sizes))
        self.spans: list[_Span] = [
            (end - size, end) for end, size in zip(ends, tree.sizes, strict=True)
        ]
        self.depths = [len(above) for above in tree.ancestors]
        self.reaches = list(ends)
        """Where the last token ends that sees a segment."""
        for end, above in zip(ends, tree.ancestors, strict=True):
            for segment in above:
                self.reaches[segment] = end

    def queries(self, places: NDArray[np.int64], segment: int) -> tuple[int, int, int]:
        """Of queries at some places: where the segment's begin, where they end, and where the last
        ends that sees it from below."""
        start, end = self.spans[segment]
        found = np.searchsorted(places, (start, end, self.reaches[segment]))
        first, last, below = found.tolist()
        return first, last, below


class _Plan:
    """The kernel calls for queries at some places of the row."""

    def __init__(self, segments: _Segments, places: NDArray[np.int64], masks: _Masks) -> None:
        self._masks = masks
        self._own: list[tuple[_Span, _Span, NDArray[np.int64]]] = []
        """(queries, keys, for each query its place in the segment)"""
        self._shared: list[tuple[_Span, _Span]] = []
        """(queries, keys)"""
        for segment, (start, end) in enumerate(segments.spans):
            first, last, below = segments.queries(places, segment)
            for a in range(first, last, _QUERIES):
                b = min(a + _QUERIES, last)
                seen = places[a:b] - start
                self._own.append(((a, b), (start, start + int(seen[-1]) + 1), seen))
            if below > last:
                self._shared.append(((last, below), (start, end)))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[Q, H, D], [T, K, D] twice -> [Q, H, D]."""
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        own = [
            attention(q[:, :, a:b], k[:, :, start:end], v[:, :, start:end], self._masks(seen))
            for (a, b), (start, end), seen in self._own
        ]
        out = torch.cat([part for part, _ in own], dim=2)
        if self._shared:
            normalizers = torch.cat([part for _, part in own], dim=2)
            for (a, b), (start, end) in self._shared:
                more, theirs = attention(q[:, :, a:b], k[:, :, start:end], v[:, :, start:end])
                ours = normalizers[:, :, a:b]
                share = torch.sigmoid(theirs - ours)[..., None].to(out.dtype)
                out[:, :, a:b].lerp_(more, share)
                torch.logaddexp(ours, theirs, out=ours)
        return out[0].transpose(0, 1)


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


class _VarlenPlan:
    """The same in few calls: each takes all pairs of a stretch of queries and one of keys."""

    def __init__(
        self, segments: _Segments, places: NDArray[np.int64], device: torch.device
    ) -> None:
        own: list[tuple[_Span, _Span]] = []
        shared: dict[int, list[tuple[_Span, _Span]]] = {}
        for segment, (start, end) in enumerate(segments.spans):
            first, last, below = segments.queries(places, segment)
            # The last of a stretch of queries sees all of the keys that go with it.
            for a, b in _stretches(places, first, last):
                own.append(((a, b), (start, int(places[b - 1]) + 1)))
            if below > last:
                level = shared.setdefault(segments.depths[segment], [])
                level.append(((last, below), (start, end)))
        self._own = _Stretches.of(own, device)
        self._shared = [_Stretches.of(level, device) for level in shared.values()]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[Q, H, D], [T, K, D] twice -> [Q, H, D]."""
        out, normalizers = self._own.attend(q, k, v, causal=True)
        for level in self._shared:
            more, theirs = level.attend(q, k, v, causal=False)
            before, ours = out[level.queries], normalizers[level.queries]
            share = torch.sigmoid(theirs - ours)[..., None].to(out.dtype)
            out[level.queries] = before.lerp(more, share)
            normalizers[level.queries] = torch.logaddexp(ours, theirs)
        return out


@dataclass
class _Stretches:
    """Pairs of a stretch of queries and a stretch of keys, which one call takes."""

    queries: Tensor
    """Places among the queries."""
    keys: Tensor
    """Places in the row."""
    query_starts: Tensor
    """Where each stretch begins in `queries`, and the end, [pairs + 1] in int32."""
    key_starts: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, pairs: Sequence[tuple[_Span, _Span]], device: torch.device) -> _Stretches:
        queries, query_starts, longest = _joined([query for query, _ in pairs])
        keys, key_starts, longest_key = _joined([key for _, key in pairs])
        return cls(
            torch.from_numpy(queries).to(device),
            torch.from_numpy(keys).to(device),
            torch.from_numpy(query_starts).to(device),
            torch.from_numpy(key_starts).to(device),
            (longest, longest_key),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """Results and normalizers of `queries`."""
        return varlen_attention(
            q[self.queries],
            k[self.keys],
            v[self.keys],
            (self.query_starts, self.key_starts),
            self.longest,
            causal,
        )


def _stretches(places: NDArray[np.int64], first: int, last: int) -> Iterator[_Span]:
    """The parts of [first, last) whose places lie side by side."""
    breaks = np.flatnonzero(np.diff(places[first:last]) != 1) + first + 1
    bounds = [first, *breaks.tolist(), last]
    return ((a, b) for a, b in pairwise(bounds) if a < b)


def _joined(spans: Sequence[_Span]) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Spans end to end: their places, where each begins and the last ends, the longest."""
    sizes = [end - start for start, end in spans]
    at = np.concatenate([np.arange(start, end) for start, end in spans])
    return at, np.array([0, *accumulate(sizes)], np.int32), max(sizes)
