"""Attention over documents packed end to end (block-diagonal without a mask), and over a cache.

Registered with transformers as the attention implementation `ledom`. The documents of a batch lie
in one row, without padding; `cu_seq_lens_q` (the name that flash attention uses) says where each
begins. Each attends only to itself, causally. On a CPU one call of the fused kernel a document is
faster than any mask; a row of one document is the plain causal path.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["IMPLEMENTATION", "packed_attention"]

IMPLEMENTATION = "ledom"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | list[int] | None = None,
    row_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a packed row.

    With `row_mask` instead, one step of decoding: see `_row_attention`.

    Shapes: query [1, heads, T, head_dim]; key and value [1, kv_heads, T, head_dim]; the result is
    [1, T, heads, head_dim]. `cu_seq_lens_q` holds the document borders 0 .. T.
    """
    if row_mask is not None:
        return _row_attention(query, key, value, row_mask, scaling), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    if cu_seq_lens_q is None:
        sizes = [query.shape[2]]
    else:
        borders = [int(border) for border in cu_seq_lens_q]
        sizes = [end - start for start, end in pairwise(borders)]
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
        for q, k, v in zip(
            query.split(sizes, dim=2),
            key.split(sizes, dim=2),
            value.split(sizes, dim=2),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _row_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """One query a row, [rows, heads, 1, head_dim], over the row's own columns of a cache.

    `row_mask` [rows, 1, 1, columns] is true where a row has written. The query heads that share a
    key-value head stand as its queries, so keys need not be repeated.
    """
    rows, heads, _, head_dim = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], head_dim)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=row_mask, scale=scaling)
    return out.reshape(rows, 1, heads, head_dim)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
