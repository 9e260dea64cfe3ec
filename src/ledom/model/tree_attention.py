"""Attention in the row of a prefix tree.

A token sees its own segment causally, and all segments above. On a CPU, the fused kernel also
computes masked pairs, so it gets a segment's queries in small groups, with only the keys that they
may see. A shared segment needs one call for all queries below it, without a mask; the results are
combined by their log normalizers. On a GPU, one call computes each segment's attention to itself,
and one more call per level of the tree handles the shared segments.

Shapes: T tokens in the row, Q queries, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ledom.model.kernels import attention, has_varlen, varlen_attention
from ledom.model.native.attention import has_native, tree_attention
from ledom.model.native.library import workspace
from ledom.model.prefix_tree import PrefixTree

__all__ = ["TreeAttention"]

_QUERIES = 64  # queries of a segment per call to the CPU's kernel

_Span = tuple[int, int]


class TreeAttention:
    """An `Attend` (`model.attention`) for the row of a tree.

    There is a query for every token, or only for the `wanted` indices in the row (ascending). If it
    `reuses` memory, each result of ledom's own kernel is overwritten by the next one.
    """

    def __init__(
        self,
        tree: PrefixTree,
        wanted: NDArray[np.int64] | None,
        device: torch.device,
        dtype: torch.dtype,
        reuses: bool = False,
    ) -> None:
        self._segments, self._reuses = _Segments(tree), reuses
        self._device, self._dtype = device, dtype
        self._places = {len(x): x for x in (np.arange(len(tree.ids)), wanted) if x is not None}
        self._plans: dict[tuple[int, bool], _NativePlan | _VarlenPlan | _Plan] = {}

    def _plan(self, places: NDArray[np.int64], native: bool) -> _NativePlan | _VarlenPlan | _Plan:
        """The kernel calls for the queries at these indices in the row."""
        if native:
            return _NativePlan(self._segments, places, self._reuses)
        if has_varlen(self._device, self._dtype):
            return _VarlenPlan(self._segments, places, self._device)
        return _Plan(self._segments, places, self._masks)

    @cached_property
    def _masks(self) -> _Masks:
        longest = max(end - start for start, end in self._segments.spans)
        return _Masks(longest, self._device, self._dtype)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        which = len(q), has_native(k, v)  # layers may have different widths
        if which not in self._plans:
            self._plans[which] = self._plan(self._places[len(q)], which[1])
        return self._plans[which](q, k, v)


class _Segments:
    """The positions of a tree's segments in its row."""

    def __init__(self, tree: PrefixTree) -> None:
        ends = list(accumulate(tree.sizes))
        self.spans: list[_Span] = [
            (end - size, end) for end, size in zip(ends, tree.sizes, strict=True)
        ]
        self.ancestors = tree.ancestors
        self.reaches = list(ends)
        """For each segment, the end of the last segment that sees it."""
        for end, above in zip(ends, tree.ancestors, strict=True):
            for segment in above:
                self.reaches[segment] = end

    def queries(self, places: NDArray[np.int64], segment: int) -> tuple[int, int, int]:
        """(first, last, below): the segment holds `places[first:last]`, the segments below it
        `places[last:below]`."""
        start, end = self.spans[segment]
        found = np.searchsorted(places, (start, end, self.reaches[segment]))
        first, last, below = found.tolist()
        return first, last, below


class _NativePlan:
    """The arguments of ledom's own kernel for queries at some indices in the row."""

    def __init__(self, segments: _Segments, places: NDArray[np.int64], reuses: bool) -> None:
        tasks: list[tuple[int, int, int, int]] = []
        spans: list[_Span] = []
        for segment, span in enumerate(segments.spans):
            first, last, _ = segments.queries(places, segment)
            begin = len(spans)
            spans += [*(segments.spans[above] for above in segments.ancestors[segment]), span]
            for a in range(first, last, _QUERIES):
                tasks.append((a, min(a + _QUERIES, last), begin, len(spans)))
        self._tasks, self._spans = np.array(tasks, np.int64), np.array(spans, np.int64)
        self._limits, self._reuses = places + 1, reuses

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[Q, H, D], [T, K, D] twice -> [Q, H, D]."""
        out = workspace("attended", *q.shape) if self._reuses else q.new_empty(q.shape)
        tree_attention(q, k, v, self._tasks, self._spans, self._limits, out)
        return out


class _Plan:
    """The kernel calls on a CPU for queries at some indices in the row."""

    def __init__(self, segments: _Segments, places: NDArray[np.int64], masks: _Masks) -> None:
        self._masks = masks
        self._own: list[tuple[_Span, _Span, NDArray[np.int64]]] = []
        """(queries, keys, each query's index in its segment)"""
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
    """Additive masks [queries, keys] for queries of one segment: 0 where a query sees a key."""

    def __init__(self, longest: int, device: torch.device, dtype: torch.dtype) -> None:
        # Row i sees the columns up to longest + i; every causal mask is a slice of this strip.
        strip = torch.full((_QUERIES, longest + _QUERIES), -torch.inf, device=device, dtype=dtype)
        self._strip = strip.triu(longest + 1)
        self._longest = longest

    def __call__(self, seen: NDArray[np.int64]) -> Tensor:
        """The mask of queries where query i sees the keys 0 to `seen[i]`; `seen` ascends."""
        first, last = int(seen[0]), int(seen[-1])
        if last - first + 1 == len(seen):
            start = self._longest - first
            return self._strip[: len(seen), start : start + last + 1]
        hidden = np.arange(last + 1) > seen[:, None]
        mask = self._strip.new_zeros(hidden.shape)
        return mask.masked_fill_(torch.from_numpy(hidden).to(mask.device), -torch.inf)


class _VarlenPlan:
    """The kernel calls on a GPU; each handles many pairs of a query span and a key span."""

    def __init__(
        self, segments: _Segments, places: NDArray[np.int64], device: torch.device
    ) -> None:
        own: list[tuple[_Span, _Span]] = []
        shared: dict[int, list[tuple[_Span, _Span]]] = {}
        for segment, (start, end) in enumerate(segments.spans):
            first, last, below = segments.queries(places, segment)
            # With a causal kernel, the last query of a span sees all keys of the pair.
            for a, b in _consecutive(places, first, last):
                own.append(((a, b), (start, int(places[b - 1]) + 1)))
            if below > last:
                level = shared.setdefault(len(segments.ancestors[segment]), [])
                level.append(((last, below), (start, end)))
        self._own = _SpanPairs(own, device)
        self._shared = [_SpanPairs(level, device) for level in shared.values()]

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


class _SpanPairs:
    """Pairs of a query span and a key span, for one call to `varlen_attention`."""

    def __init__(self, pairs: Sequence[tuple[_Span, _Span]], device: torch.device) -> None:
        queries, keys = (_joined(spans) for spans in zip(*pairs, strict=True))
        self.queries, self._keys = (torch.from_numpy(x[0]).to(device) for x in (queries, keys))
        """The indices in the row."""
        starts, key_starts = (torch.from_numpy(x[1]).to(device) for x in (queries, keys))
        self._starts, self._longest = (starts, key_starts), (queries[2], keys[2])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """Results and log normalizers for `queries`."""
        q, k, v = q[self.queries], k[self._keys], v[self._keys]
        return varlen_attention(q, k, v, self._starts, self._longest, causal)


def _consecutive(places: NDArray[np.int64], first: int, last: int) -> Iterator[_Span]:
    """Split [first, last) into spans over which `places` are consecutive integers."""
    breaks = np.flatnonzero(np.diff(places[first:last]) != 1) + first + 1
    bounds = [first, *breaks.tolist(), last]
    return ((a, b) for a, b in pairwise(bounds) if a < b)


def _joined(spans: Sequence[_Span]) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Concatenated spans: their indices, their boundaries, and the length of the longest."""
    sizes = [end - start for start, end in spans]
    at = np.concatenate([np.arange(start, end) for start, end in spans])
    return at, np.array([0, *accumulate(sizes)], np.int32), max(sizes)
