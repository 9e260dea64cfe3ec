"""Attention over documents packed end to end (block-diagonal without a mask), and over a cache.

Registered with transformers as the attention implementation `ledom`. The documents of a batch lie
in one row, without padding; `cu_seq_lens_q` (the name that flash attention uses) says where each
begins. Each attends only to itself, causally. On a CPU one call of the fused kernel a document is
faster than any mask; a row of one document is the plain causal path.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
    ancestors: Sequence[Sequence[int]] | None = None,
    row_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a packed row.

    With `row_mask` instead, one step of decoding: see `_row_attention`.

    Shapes: query [1, heads, T, head_dim]; key and value [1, kv_heads, T, head_dim]; the result is
    [1, T, heads, head_dim]. `cu_seq_lens_q` holds the document borders 0 .. T. With `ancestors`,
    the documents are segments of texts, and each also sees all of the segments listed for it
    (places in the row, outermost first): see `ledom.lm.prefix`.
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
    keys, values = key.split(sizes, dim=2), value.split(sizes, dim=2)
    parts = []
    for place, own in enumerate(query.split(sizes, dim=2)):
        seen = [*ancestors[place], place] if ancestors is not None else [place]
        k = torch.cat([keys[i] for i in seen], dim=2) if len(seen) > 1 else keys[place]
        v = torch.cat([values[i] for i in seen], dim=2) if len(seen) > 1 else values[place]
        mask = _causal_mask(own.shape[2], k.shape[2], own.device) if len(seen) > 1 else None
        parts.append(
            scaled_dot_product_attention(
                own,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                dropout_p=dropout,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


@lru_cache(maxsize=256)  # every layer asks for the same ones
def _causal_mask(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Query i sees the keys up to its own, the last queries being the last keys."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return mask.tril(keys - queries)


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
