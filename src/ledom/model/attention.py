"""Attention over documents packed end to end, block-diagonal without a mask.

Registered with transformers as the attention implementation `ledom`. The documents of a batch lie
in one row, without padding; `cu_seq_lens_q` (the name that flash attention uses) says where each
begins. Each attends only to itself, causally. On a CPU one call of the fused kernel a document is
faster than any mask; a row of one document is the plain causal path. Where `attend` is given
(`lm.trunk`), it says instead what each token sees.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from ledom.lm.trunk import Attend

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
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a packed row.

    Shapes: query [1, heads, T, head_dim]; key and value [1, kv_heads, T, head_dim]; the result is
    [1, T, heads, head_dim]. `cu_seq_lens_q` holds the document borders 0 .. T.
    """
    if attend is not None:
        if scaling is not None:  # `attend` divides by the root of the head's width
            query = query * (scaling * query.shape[-1] ** 0.5)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return attend(module.layer_idx, q, k, v)[None], None  # type: ignore[arg-type]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    if cu_seq_lens_q is None:
        sizes = [query.shape[2]]
    else:
        borders = [int(border) for border in cu_seq_lens_q]
        sizes = [end - start for start, end in pairwise(borders)]
    documents = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
        for q, k, v in documents
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
