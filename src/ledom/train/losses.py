"""The loss of every predicted token, without the logits of a whole batch in memory.

The vocabulary projection and the cross-entropy are done some tokens at a time, and again in the
backward pass; only one number per token is kept in between. A sixth of the projection's work more
buys the memory of T x V logits and of their derivative. This module knows nothing of objectives.

Shapes: T tokens, V vocabulary, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ledom.model.attention import IMPLEMENTATION
from ledom.model.logits import has_plain_logits
from ledom.model.own_forward import OwnForward

__all__ = ["token_losses", "working_bytes"]

_LOGITS_BYTES = 2**24  # that one chunk of logits takes in fp32: what a processor's cache holds
_LEAST_ROWS = 1024  # in a chunk: each goes once through the whole weight's gradient


def token_losses(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, boundaries: Tensor, targets: Tensor
) -> Tensor:
    """The cross-entropy [T] of `targets` where the model reads `ids` at `positions`, in fp32.

    `boundaries` [documents + 1], on the CPU, divide the row into documents that do not see each
    other. A model without ledom's attention (`model.exactness`) reads them one by one, each from
    its first position.
    """
    if model.config._attn_implementation != IMPLEMENTATION:
        own = OwnForward(model)
        sizes = boundaries.diff().tolist()
        logits = torch.cat([own(document) for document in ids.split(sizes)])
        return cross_entropy(logits.float(), targets, reduction="none")
    reads: dict[str, Any] = {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "use_cache": False,
        "cu_seq_lens_q": boundaries,
    }
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    if getattr(head, "bias", None) is not None or not has_plain_logits(config):
        return cross_entropy(model(**reads).logits[0].float(), targets, reduction="none")
    hidden = model.base_model(**reads).last_hidden_state[0]
    weight = head.weight
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    losses: Tensor = _ProjectedLosses.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return losses


def working_bytes(num_tokens: int, vocab_size: int, width: int, size: int) -> int:
    """Bytes, at most, that working out the losses of T tokens takes beside their inputs.

    `size` is that of a number in the products' precision. A chunk of logits stands in fp32, twice
    where its exponentials are summed up; in the backward pass beside its derivative in the
    products' precision, the weight's gradient and what a chunk adds to it.
    """
    logits = min(num_tokens, _rows(vocab_size)) * vocab_size
    derivative = 0 if size == 4 else size * logits  # in fp32 it takes the logits' place
    return max(2 * 4 * logits, 4 * logits + derivative + vocab_size * width * (4 + size))


def _rows(vocab_size: int) -> int:
    """Tokens in a chunk."""
    return max(_LEAST_ROWS, _LOGITS_BYTES // (4 * vocab_size))


class _ProjectedLosses(torch.autograd.Function):
    """Cross-entropy [T] in fp32 of hidden [T, W] times the weight [V, W] against targets [T]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = _rows(len(weight))
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalizers = torch.empty_like(losses)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ weight.T).float()
            torch.logsumexp(logits, dim=-1, out=normalizers[part])
            chosen = logits.gather(1, targets[part, None])[:, 0]
            torch.sub(normalizers[part], chosen, out=losses[part])
        ctx.rows = rows
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, targets, normalizers = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            share = grads[0][part, None]
            logits = (hidden[part] @ weight.T).float()
            slopes = logits.sub_(normalizers[part, None]).exp_().mul_(share)
            slopes.scatter_add_(1, targets[part, None], -share)
            slopes = slopes.to(weight.dtype)
            torch.mm(slopes, weight, out=hidden_grad[part])
            weight_grad += slopes.T @ hidden[part]
        return hidden_grad, weight_grad.to(weight.dtype), None
