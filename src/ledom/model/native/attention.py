"""Attention with compiled kernels; one call computes all texts of a batch.

Passes without gradients use `tree_attention` and `cache_attention`; training uses the others.

Shapes: T tokens, Q queries, H query heads, K key-value heads, D head width, A texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ledom.model.native.library import library_for, workspace

__all__ = [
    "LANES",
    "cache_attention",
    "causal_attention",
    "causal_attention_backward",
    "has_native",
    "tree_attention",
]

LANES = 16
"""Numbers per widest vector; keys are read in whole vectors."""
_WIDEST_HEAD = 256  # MOST_WIDTH in attention.c
_QUERIES = 64  # of a document per task; threads take turns at tasks


def has_native(keys: Tensor, values: Tensor) -> bool:
    """Whether the compiled kernels support attention over these keys and values, both [..., D].

    >>> has_native(torch.ones(2, 64), torch.ones(2, 128))  # not with two widths
    False
    """
    width = keys.shape[-1]
    fits = width == values.shape[-1] and width <= _WIDEST_HEAD
    return fits and library_for(keys, values) is not None


def _with_whole_heads(x: Tensor) -> Tensor:
    """x [T, heads, D], copied if the heads of a row are not contiguous; the rows may be apart."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tasks: NDArray[np.int64],
    spans: NDArray[np.int64],
    limits: NDArray[np.int64],
    out: Tensor,
    normalizers: Tensor | None = None,
) -> None:
    """Write the attention of queries [Q, H, D] over spans of keys and values [T, K, D] to `out`.

    Each of `tasks` [tasks, 4] is (first, last, begin, end): the queries [first, last) see the
    `spans` [begin, end) of keys, each a row (start, end) of [spans, 2]. These follow each other in
    a text; the last one holds the queries themselves, and query i sees its keys up to `limits[i]`
    (exclusive). `out` is [Q, H, D] and `normalizers` [Q, H]; the latter receives the logarithms of
    the weights' sums. Both are contiguous. Needs `has_native`.
    """
    native = library_for(q, k, v)
    assert native is not None
    q, k, v = _with_whole_heads(q), _with_whole_heads(k), _with_whole_heads(v)
    heads, width = q.shape[1:]
    columns = k.shape[1] * width
    # At least one vector more than the keys fill, because a span's last vector may reach past its
    # end. An odd number of vectors, because rows at powers of two would share cache lines.
    vectors = -(-len(k) // LANES)
    stride = LANES * (vectors + 1 + vectors % 2)
    keys = workspace("keys", columns * stride)
    threads = torch.get_num_threads()
    native.transpose_keys(
        k.data_ptr(), k.stride(0), keys.data_ptr(), stride, len(k), columns, threads
    )
    native.tree_attention(
        *(q.data_ptr(), q.stride(0), keys.data_ptr(), stride, v.data_ptr(), v.stride(0)),
        *(out.data_ptr(), k.shape[1], heads // k.shape[1], width),
        *(tasks.ctypes.data, len(tasks), spans.ctypes.data, limits.ctypes.data),
        *(None if normalizers is None else normalizers.data_ptr(), threads),
    )


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    boundaries: Tensor,
    scale: float,
    out: Tensor,
    normalizers: Tensor,
) -> None:
    """Write each document's causal attention to `out`, and its log normalizers [T, H].

    q, k, v and `out` are [T, H, D]; `boundaries` [documents + 1] divide the tokens into documents.
    Needs `has_native`.
    """
    width = q.shape[2]
    if scale != width**-0.5:  # the kernel's own
        q = q * (scale * width**0.5)
    spans = boundaries.to(torch.int64).unfold(0, 2, 1).contiguous().numpy()
    tasks = [
        (first, min(first + _QUERIES, end), document, document + 1)
        for document, (start, end) in enumerate(spans.tolist())
        for first in range(start, end, _QUERIES)
    ]
    limits = np.arange(1, len(q) + 1)
    tree_attention(q, k, v, np.array(tasks), spans, limits, out, normalizers)


def causal_attention_backward(
    given: Sequence[Tensor],
    normalizers: Tensor,
    boundaries: Tensor,
    scale: float,
    gradients: Sequence[Tensor],
) -> None:
    """Write the `gradients` of q, k and v, all [T, H, D].

    `given` are the gradient of `causal_attention`'s result, its q, k and v, and the result, all
    [T, H, D]; `normalizers`, `boundaries` and `scale` are its other arguments. Needs `has_native`.
    """
    native = library_for(*given)
    assert native is not None
    every = [*(x if x.stride(2) == 1 else x.contiguous() for x in given), *gradients]
    addresses = np.array([x.data_ptr() for x in every])
    strides = np.array([x.stride()[:2] for x in every])
    _, heads, width = given[0].shape
    threads, ends = torch.get_num_threads(), boundaries.to(torch.int64).contiguous()
    size = native.backward_scratch(int(ends.diff().max()), width)
    scratch = workspace("backward", threads * size)
    native.attention_backward(
        *(addresses.ctypes.data, strides.ctypes.data, normalizers.data_ptr(), ends.data_ptr()),
        *(len(ends) - 1, heads, width, scale, scratch.data_ptr(), size, threads),
    )


def cache_attention(
    q: Tensor, k: Tensor, v: Tensor, own: NDArray[np.int64], about: NDArray[np.int64], layer: int
) -> Tensor:
    """Attention [A, H, D] of one token per text: q [A, H, D], k and v [A, K, D].

    Each text sees the tokens of its prompt, then `age` tokens of its own, and then itself: k and v
    are first added to its own keys [K, D, room] and values [K, room, D], whose addresses are in
    `own` [2, A]. `about` [5, A] holds for each text its room, its age, the addresses of its
    prompt's keys [layers, K, D, C] and values [layers, K, T, D], and their length T. C is T rounded
    up to a multiple of `LANES`. The room is at least `age` + `LANES`, because keys are read in
    whole vectors, from any token on. Needs `has_native`.
    """
    native = library_for(q, k, v)
    assert native is not None
    q, k, v = _with_whole_heads(q), _with_whole_heads(k), _with_whole_heads(v)
    texts, heads, width = q.shape
    kv_heads = k.shape[1]
    out = q.new_empty(q.shape)
    native.cache_attention(
        *(q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0), k.stride(0), v.stride(0)),
        *(own.ctypes.data, about.ctypes.data, layer, out.data_ptr()),
        *(texts, kv_heads, heads // kv_heads, width, torch.get_num_threads()),
    )
    return out
