"""Attention with compiled kernels; one call computes all texts of a batch.

Shapes: T tokens, Q queries, H query heads, K key-value heads, D head width, A texts.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ledom.model.native.library import library_for, workspace

__all__ = ["LANES", "cache_attention", "has_native", "tree_attention"]

LANES = 16
"""Numbers per widest vector; `cache_attention` reads rows of keys in multiples of it."""
_WIDEST_HEAD = 256  # MOST_WIDTH in attention.c


def has_native(keys: Tensor, values: Tensor) -> bool:
    """Whether the compiled kernels support attention over these keys and values, both [..., D].

    >>> has_native(torch.ones(2, 64), torch.ones(2, 128))  # not with two widths
    False
    """
    width = keys.shape[-1]
    fits = width == values.shape[-1] and width % LANES == 0 and width <= _WIDEST_HEAD
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
) -> None:
    """Write the attention of queries [Q, H, D] over spans of keys and values [T, K, D] to `out`.

    Each of `tasks` [tasks, 4] is (first, last, begin, end): the queries [first, last) see the
    `spans` [begin, end) of keys, each a row (start, end) of [spans, 2]. Query i sees no key from
    `limits[i]` on. `out` is [Q, H, D], contiguous. Needs `has_native`.
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
        *(tasks.ctypes.data, len(tasks), spans.ctypes.data, limits.ctypes.data, threads),
    )


def cache_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: NDArray[np.int64],
    about: NDArray[np.int64],
    layer: int,
) -> Tensor:
    """Attention [A, H, D] of one token per text: q [A, H, D], k and v [A, K, D].

    Each text sees the tokens of its prompt, then `age` tokens of its own, and then itself: k and v
    are first added to its own keys [K, D, room] and values [K, room, D], whose addresses are in
    `own` [2, A]. `about` [5, A] holds for each text its room, its age, the addresses of its
    prompt's keys [layers, K, D, C] and values [layers, K, T, D], and their length T. C is T rounded
    up to a multiple of `LANES`; so is the room. Needs `has_native`.
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
